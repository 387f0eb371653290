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
from isochunk.core.job import Job


def info_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk info``."""
    parser.add_argument("url")
    add_fields(parser, Job, READING)


def info(options: argparse.Namespace) -> Result:
    """``isochunk info``."""
    from isochunk.storage.access import Access
    from isochunk.storage.open import open_volume

    return open_volume(options.url, Access(**access_arguments(options))).spec.summary(), DONE


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk inspect``."""
    parser.add_argument("source")
    parser.add_argument("--out", metavar="FILE", help="section table to write, TOML to be edited")
    parser.add_argument("--level", type=int, help="level to read; default: the finest small one")
    add_fields(parser, Job, ("box", "window", *READING))


def inspect(options: argparse.Namespace) -> Result:
    """``isochunk inspect``."""
    from isochunk.engine.inspection import inspect_volume
    from isochunk.engine.windowed import open_rounded
    from isochunk.storage.access import Access

    told = given(options, Job, ("box", "window"))
    access = Access(**access_arguments(options))
    volume = open_rounded(options.source, access, told.get("window"))
    found = inspect_volume(volume, told.get("box"), options.level)
    if options.out is not None:
        found.write(options.out)
    return found.summary(), DONE


def models(options: argparse.Namespace) -> Result:
    """``isochunk models``."""
    from isochunk.models.interpolation import INTERPOLATIONS, interpolation_spec
    from isochunk.models.load import shipped

    del options
    specs = [interpolation_spec(name) for name in INTERPOLATIONS] + [s for _, s in shipped()]
    return {"rows": [spec.summary() for spec in specs]}, DONE


COMMANDS = (
    Command("info", "what a volume is", info_arguments, info),
    Command("inspect", "lost, uneven and displaced sections", inspect_arguments, inspect),
    Command("models", "the models that are shipped", lambda _: None, models),
)
