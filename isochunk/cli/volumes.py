"""What there is: a volume, the shipped models."""

from __future__ import annotations

import argparse

from isochunk.cli.options import (
    DONE,
    READING,
    Command,
    Result,
    access_arguments,
    add_fields,
    given,
)
from isochunk.cli.words import volumes as words
from isochunk.core.job import Job, RunOptions

PLACE = ("scheduler", "cluster", "workers")
"""Fields that say where a volume is read."""


def info_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk info``."""
    parser.add_argument("url", help="URL of the volume")
    add_fields(parser, Job, READING)


def info(options: argparse.Namespace) -> Result:
    """``isochunk info``."""
    from isochunk.storage.access import Access
    from isochunk.storage.open import open_volume

    return open_volume(options.url, Access(**access_arguments(options))).spec.summary(), DONE


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk inspect``."""
    parser.add_argument("source", help="URL of the anisotropic volume")
    parser.add_argument("--out", metavar="FILE", help="section table to write, TOML to be edited")
    parser.add_argument("--level", type=int, help="level to read; default: the finest small one")
    parser.add_argument("--report", metavar="DIR", help="folder for a page that shows what is told")
    add_fields(parser, Job, ("box", "window", *READING, *PLACE))


def inspect(options: argparse.Namespace) -> Result:
    """``isochunk inspect``."""
    from isochunk.api.jobs import open_cluster
    from isochunk.api.volumes import inspect_on
    from isochunk.engine.windowed import Opening
    from isochunk.storage.access import Access

    told = given(options, Job, ("box", "window"))
    opening = Opening(options.source, Access(**access_arguments(options)), told.get("window"))
    volume, opening = opening.fixed()
    # Nothing is computed with a model.
    place = RunOptions(model="linear", **given(options, Job, PLACE))
    with open_cluster(place, None) as client:
        found = inspect_on(volume, opening, client, told.get("box"), options.level)
    if options.out is not None:
        found.write(options.out)
    if options.report is not None:
        from isochunk.evaluation.sections_page import write_sections_page

        write_sections_page(found, volume, options.report)
    return found.summary(), DONE


def models_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk models``."""
    parser.add_argument("name", nargs="?", help="say all of one: its name, or a checkpoint folder")


def models(options: argparse.Namespace) -> Result:
    """``isochunk models``."""
    from isochunk.models.interpolation import INTERPOLATIONS, interpolation_spec
    from isochunk.models.load import baselines, describe, shipped

    specs = [interpolation_spec(name) for name in INTERPOLATIONS]
    specs += [spec for _, spec in (*shipped(), *baselines())]
    if options.name is not None:
        specs = [describe(options.name)]
    return {"rows": [spec.summary() for spec in specs]}, DONE


COMMANDS = (
    Command("info", "what a volume is", info_arguments, info, words.info),
    Command(
        "inspect", "lost, uneven and displaced sections", inspect_arguments, inspect, words.inspect
    ),
    Command("models", "the models that are shipped", models_arguments, models, words.models),
)
