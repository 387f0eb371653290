"""What there is: a volume, the shipped models."""

from __future__ import annotations

import argparse

import isochunk
from isochunk.cli.options import DONE, Command, Result, add_fields
from isochunk.core.job import Job


def info_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk info``."""
    parser.add_argument("url")
    add_fields(parser, Job, ("source_spacing",))


def info(options: argparse.Namespace) -> Result:
    """``isochunk info``."""
    spacing = getattr(options, "source_spacing", None)
    volume = isochunk.open(options.url, options.endpoint_url, spacing)
    return volume.spec.summary(), DONE


def models(options: argparse.Namespace) -> Result:
    """``isochunk models``."""
    from isochunk.models.interpolation import INTERPOLATIONS, interpolation_spec
    from isochunk.models.load import shipped

    del options
    specs = [interpolation_spec(name) for name in INTERPOLATIONS] + [s for _, s in shipped()]
    return {"rows": [spec.summary() for spec in specs]}, DONE


COMMANDS = (
    Command("info", "what a volume is", info_arguments, info),
    Command("models", "the models that are shipped", lambda _: None, models),
)
