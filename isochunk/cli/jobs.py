"""Jobs: plan, run, and the demo."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import webbrowser
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import isochunk
from isochunk.cli.options import DONE, INCOMPLETE, Command, Result, add_fields, job_of
from isochunk.cli.words import jobs as words
from isochunk.cli.words.demo import demo as demo_words
from isochunk.core.codec import JsonObject
from isochunk.core.fields import documented, help_text
from isochunk.core.job import Job
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access

DEMO: Mapping[str, Any] = MappingProxyType(
    {
        "model": "anyz-z4",
        "chunk": (32, 32, 32),
        "shard": "none",
        "block": (96, 96, 96),
        "overwrite": True,
    }
)
"""The demo's job: eight blocks, so that there are seams."""

POSITIONAL = ("source", "target")


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk run``."""
    for name in POSITIONAL:
        parser.add_argument(name, nargs="?", help=help_text(documented(Job)[name]))
    parser.add_argument("--config", help="TOML file with the same fields")
    named = (f.name for f in fields(Job) if f.name not in (*POSITIONAL, "endpoint_url"))
    add_fields(parser, Job, tuple(named))


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk plan``."""
    run_arguments(parser)
    parser.add_argument(
        "--calibrate", type=int, metavar="N", help="run N blocks and say what the job costs"
    )
    parser.add_argument("--prices", metavar="FILE", help="TOML file; default: example prices")


def plan(options: argparse.Namespace) -> Result:
    """``isochunk plan``."""
    from isochunk.engine.cost import estimate, month_of, read_prices

    prices = read_prices(options.prices)
    made = isochunk.plan(job_of(options))
    month = month_of(made, prices)
    if options.calibrate is None:
        return {**made.summary(), "storage_month": month, **hinted(made)}, DONE
    measured = isochunk.calibrate(made, options.calibrate)
    cost = estimate(made, measured, prices).summary()
    found = {**made.summary(), "storage_month": month, **hinted(made)}
    return {**found, "calibration": measured.summary(), "cost": cost}, DONE


def hinted(made: Plan) -> JsonObject:
    """Look at some sections of a plan's source; empty where nothing is to be said of them.

    With a section table nothing is looked at: what is to be done of sections is said already.
    """
    if made.sections is not None:
        return {}
    from isochunk.engine.section_hint import hint_of_sections

    hint = hint_of_sections(made.source.url, Access.for_job(made.job), made.region)
    return {} if hint is None else {"sections_hint": hint.summary()}


def run(options: argparse.Namespace) -> Result:
    """``isochunk run``."""
    from isochunk.cli.progress import RunProgress

    made = isochunk.plan(job_of(options))
    with RunProgress() as progress:
        report = isochunk.run(made, watch=progress)
    result = report.summary()
    if not options.json:
        result |= {"view": view_of(made), "page": page_of(made)}
    return result, DONE if report.complete else INCOMPLETE


def page_of(made: Plan) -> str:
    """Return where the page of a run is, or the command that makes a copy of it here."""
    from isochunk.pages.run_page import PAGE_KEY

    url = made.target.url
    if url.startswith("file://"):
        return f"{url}/{PAGE_KEY}"
    return shlex.join(["isochunk", "report", made.job.target, "--out", "report.html"])


def view_of(made: Plan) -> str:
    """Return the command that shows a result beside its source."""
    return shlex.join(["isochunk", "view", made.job.target, made.job.source])


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk demo``."""
    parser.add_argument("--out", default="demo", help="folder to write to")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")


def demo(options: argparse.Namespace) -> Result:
    """``isochunk demo``."""
    from isochunk.cli.demo import compare, write_page
    from isochunk.cli.progress import AuditBar, RunProgress

    folder = Path(options.out)
    source = isochunk.sample_tissue(folder / "anisotropic")
    target = f"{folder}/isotropic"
    job = Job(source=source, target=target, workers=options.workers, **DEMO)
    made = isochunk.plan(job)
    with RunProgress() as progress:
        report = isochunk.run(made, watch=progress)
    with AuditBar() as bar:
        audited = isochunk.audit(target, watch=bar)
    cubic = isochunk.plan(replace(job, target=f"{folder}/cubic", model="cubic", workers=None))
    isochunk.run(cubic)
    compared = compare(made, cubic)
    result: dict[str, Any] = {
        "plan": made.summary(),
        "run": report.summary(),
        "audit": audited.summary(),
        "compared": asdict(compared),
    }
    page = write_page(folder, (made, cubic), result, compared)
    result["page"] = page.resolve().as_uri()
    if not options.json:
        result["view"] = view_of(made)
        if sys.stdout.isatty() and has_desktop():
            webbrowser.open(result["page"])
    return result, DONE if report.complete and audited.complete else INCOMPLETE


def has_desktop() -> bool:
    """Tell whether there is a desktop on which a browser can show something."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


COMMANDS = (
    Command("plan", "what a run would do; nothing is written", plan_arguments, plan, words.plan),
    Command("run", "make a volume isotropic", run_arguments, run, words.run),
    Command(
        "demo",
        "the whole job on a little real tissue, on this machine",
        demo_arguments,
        demo,
        demo_words,
    ),
)
