"""Jobs: plan, run, and the demo."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import fields
from typing import Any

import isochunk
from isochunk.cli.options import DONE, INCOMPLETE, Command, Result, add_fields, job_of
from isochunk.cli.words import jobs as words
from isochunk.cli.words.demo import demo as demo_words
from isochunk.core.codec import JsonObject
from isochunk.core.job import Job
from isochunk.errors import UsageError
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access

DEMO_MODEL = "fsrcnn-z4"

POSITIONAL = ("source", "target")


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk run``."""
    for name in POSITIONAL:
        parser.add_argument(name, nargs="?")
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
    if options.calibrate is None:
        if options.prices:
            raise UsageError("--prices says what calibrated blocks cost; add --calibrate N")
        made = isochunk.plan(job_of(options))
        return {**made.summary(), **hinted(made)}, DONE
    from isochunk.engine.cost import estimate, read_prices

    prices = read_prices(options.prices)
    made = isochunk.plan(job_of(options))
    measured = isochunk.calibrate(made, options.calibrate)
    cost = estimate(made, measured, prices).summary()
    found = {**made.summary(), **hinted(made)}
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
    with RunProgress(made) as progress:
        report = isochunk.run(made, watch=progress)
    result = report.summary()
    if not options.json:
        result["view"] = view_of(made)
    return result, DONE if report.complete else INCOMPLETE


def view_of(made: Plan) -> str:
    """Return the command that shows a result beside its source."""
    return shlex.join(["isochunk", "view", made.job.target, made.job.source])


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk demo``."""
    parser.add_argument("--out", default="demo", help="folder to write to")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")


def demo(options: argparse.Namespace) -> Result:
    """``isochunk demo``."""
    from isochunk.cli.demo import make_source
    from isochunk.cli.progress import AuditBar, RunProgress

    source, target = make_source(options.out), f"{options.out}/isotropic"
    job = Job(
        source=source, target=target, model=DEMO_MODEL, workers=options.workers, overwrite=True
    )
    made = isochunk.plan(job)
    with RunProgress(made) as progress:
        report = isochunk.run(made, watch=progress)
    with AuditBar() as bar:
        audited = isochunk.audit(target, watch=bar)
    complete = report.complete and audited.complete
    result: dict[str, Any] = {
        "plan": made.summary(),
        "run": report.summary(),
        "audit": audited.summary(),
    }
    if not options.json:
        result["view"] = view_of(made)
    return result, DONE if complete else INCOMPLETE


COMMANDS = (
    Command("plan", "what a run would do; nothing is written", plan_arguments, plan, words.plan),
    Command("run", "make a volume isotropic", run_arguments, run, words.run),
    Command(
        "demo",
        "the whole job on a synthetic volume, on this machine",
        demo_arguments,
        demo,
        demo_words,
    ),
)
