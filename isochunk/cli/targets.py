"""What has been written: status, audit, repair."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import isochunk
from isochunk.cli.options import DONE, INCOMPLETE, Command, Result, add_fields, given
from isochunk.cli.words import targets as words
from isochunk.core.job import RunOptions

RUN_OPTIONS = tuple(f.name for f in fields(RunOptions))

AUDIT_OPTIONS = (
    "scheduler",
    "cluster",
    "workers",
    "timeout_s",
    "requests",
    "slow_start",
    "requester_pays",
)
"""Those of them that say where and how a target is read."""


def target_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a target."""
    parser.add_argument("target", help="URL of a volume that a run has written")


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk status``."""
    target_argument(parser)
    add_fields(parser, RunOptions, ("requester_pays",))
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="again, until its run ends")


def status(options: argparse.Namespace) -> Result:
    """``isochunk status``."""
    payer = given(options, RunOptions, ("requester_pays",)).get("requester_pays")
    if options.watch is None:
        result = isochunk.status(options.target, options.endpoint_url, payer)
    else:
        from isochunk.engine.target import watch_status

        at = (options.target, options.watch, options.endpoint_url, payer)
        for result in watch_status(*at):
            print(progress_line(result), file=sys.stderr, flush=True)
    return result, DONE if result["complete"] else INCOMPLETE


def progress_line(status: Mapping[str, Any]) -> str:
    """Write a status on one line."""
    blocks, left = status["blocks"], status.get("left_s")
    line = f"{blocks['done']} of {blocks['total']} blocks"
    if "blocks_per_s" in status:
        line += f", {status['blocks_per_s']:.3g} blocks/s"
    return line if left is None else f"{line}, about {left:.0f} s left"


def audit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk audit``."""
    target_argument(parser)
    add_fields(parser, RunOptions, AUDIT_OPTIONS)


def audit(options: argparse.Namespace) -> Result:
    """``isochunk audit``."""
    from isochunk.cli.progress import AuditBar

    changes = given(options, RunOptions, AUDIT_OPTIONS)
    with AuditBar() as bar:
        report = isochunk.audit(options.target, options.endpoint_url, bar, changes=changes)
    return report.summary(), DONE if report.complete else INCOMPLETE


def report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk report``."""
    target_argument(parser)
    add_fields(parser, RunOptions, ("requester_pays",))
    parser.add_argument("--out", metavar="FILE", help="file to write instead of beside the target")


def report(options: argparse.Namespace) -> Result:
    """``isochunk report``."""
    payer = given(options, RunOptions, ("requester_pays",)).get("requester_pays")
    page = isochunk.report(options.target, options.endpoint_url, payer, options.out)
    return {"page": page}, DONE


def repair_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk repair``."""
    target_argument(parser)
    add_fields(parser, RunOptions, [name for name in RUN_OPTIONS if name != "endpoint_url"])


def repair(options: argparse.Namespace) -> Result:
    """``isochunk repair``."""
    from isochunk.cli.progress import AuditBar

    changes = given(options, RunOptions, RUN_OPTIONS)
    with AuditBar() as bar:
        found, report = isochunk.repair(options.target, changes, watch_audit=bar)
    result = {"found": found.summary(), **report.summary()}
    return result, DONE if report.complete else INCOMPLETE


COMMANDS = (
    Command("status", "what is done of a target", status_arguments, status, words.status),
    Command(
        "audit", "read a target again and prove it complete", audit_arguments, audit, words.audit
    ),
    Command(
        "report",
        "write the page of a target's last run anew",
        report_arguments,
        report,
        words.report,
    ),
    Command(
        "repair",
        "audit a target and compute again what is missing or corrupt",
        repair_arguments,
        repair,
        words.repair,
    ),
)
