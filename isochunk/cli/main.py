"""The command line: arguments to jobs, reports to text or JSON, errors to exit codes.

Exit codes: 0 done, 1 something is missing or failed, 2 the request cannot be carried out. With
``--json`` standard output holds one JSON object and nothing else; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence

import isochunk
from isochunk.cli import jobs, learning, targets, viewers, volumes
from isochunk.cli.options import INCOMPLETE, REFUSED, Command, Parser
from isochunk.cli.text import as_text
from isochunk.errors import IsochunkError, UsageError
from isochunk.host.allocator import keep_memory

COMMANDS = (
    *volumes.COMMANDS,
    *jobs.COMMANDS,
    *targets.COMMANDS,
    *learning.COMMANDS,
    *viewers.COMMANDS,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    keep_memory()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        options = parser(words).parse_args(words)
    except UsageError as error:
        return refuse(error, as_json="--json" in words)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("isochunk").setLevel(logging.INFO)
    command: Command = options.command
    try:
        result, code = command.run(options)
    except IsochunkError as error:
        return refuse(error, as_json=options.json)
    except KeyboardInterrupt:
        print("isochunk: interrupted; the same command resumes", file=sys.stderr)
        return INCOMPLETE
    if result is not None:
        print(json.dumps(result) if options.json else as_text(result))
    return code


def refuse(error: IsochunkError, *, as_json: bool) -> int:
    """Say what went wrong and return the exit code."""
    if as_json:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
    print(f"isochunk: {error}", file=sys.stderr)
    return REFUSED if isinstance(error, UsageError) else INCOMPLETE


def parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Describe every command, and the arguments of the one that is asked for.

    Those of the others would have to be imported from what they belong to.
    """
    top = Parser(prog="isochunk", description="Isotropic volumes from anisotropic ones.")
    top.add_argument("--version", action="version", version=isochunk.__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.text, description=command.text)
        sub.set_defaults(command=command)
        sub.add_argument("--json", action="store_true", help="one JSON object on standard output")
        sub.add_argument("--verbose", action="store_true", help="say more on standard error")
        sub.add_argument("--endpoint-url", help="S3-compatible server")
        if command.name in words:
            command.arguments(sub)
    return top
