"""Volumes in neuroglancer: view what is written, serve what would be."""

from __future__ import annotations

import argparse
import json
from contextlib import suppress

from isochunk.cli.options import (
    DONE,
    READING,
    Command,
    Result,
    access_arguments,
    add_fields,
    job_of,
)
from isochunk.core.job import Job

PREVIEWED = (
    "model",
    "spacing",
    "box",
    "window",
    "sections",
    "device",
    "precision",
    "memory",
    "trust",
    "consistent",
    "allow_inexact",
)
"""Fields of a job that can be said of a preview."""


def view_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk view``."""
    parser.add_argument("target", help="URL of the volume to look at")
    parser.add_argument("source", nargs="?", help="URL of the volume that it was made of")
    add_fields(parser, Job, READING)


def view(options: argparse.Namespace) -> Result:
    """``isochunk view``: prints the link, then serves local volumes until interrupted."""
    from isochunk.storage.access import Access
    from isochunk.viewing.result import view_result

    access = Access(**access_arguments(options))
    with (
        suppress(KeyboardInterrupt),
        view_result(options.target, options.source, access) as viewer,
    ):
        announce(options, viewer.url)
        viewer.wait()
    return None, DONE


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk serve``."""
    parser.add_argument("source", help="URL of the anisotropic volume")
    parser.add_argument("--port", type=int, default=0, help="to listen on; default: a free one")
    add_fields(parser, Job, (*PREVIEWED, *READING))


def serve(options: argparse.Namespace) -> Result:
    """``isochunk serve``: prints the link, then predicts until interrupted."""
    from isochunk.viewing.preview import preview

    job = job_of(options, target="preview")
    with suppress(KeyboardInterrupt), preview(job, options.port) as viewer:
        announce(options, viewer.url)
        viewer.wait()
    return None, DONE


def announce(options: argparse.Namespace, url: str) -> None:
    """Print a link at once, before a command waits."""
    print(json.dumps({"neuroglancer_url": url}) if options.json else url, flush=True)


COMMANDS = (
    Command("view", "look at a result, beside its source, in neuroglancer", view_arguments, view),
    Command("serve", "predict chunks as neuroglancer asks for them", serve_arguments, serve),
)
