"""The command line: arguments to jobs, reports to text or JSON, errors to exit codes.

Exit codes: 0 done, 1 something is missing or failed, 2 the request cannot be carried out. With
``--json`` standard output holds one JSON object and nothing else; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn, TextIO

import isochunk
from isochunk.cli import doctor, jobs, learning, packages, targets, viewers, volumes
from isochunk.cli.options import INCOMPLETE, REFUSED, Command, Parser
from isochunk.cli.words.layout import in_words, say_error
from isochunk.errors import IsochunkError, UsageError
from isochunk.host.allocator import keep_memory

COMMANDS = (
    *volumes.COMMANDS,
    *jobs.COMMANDS,
    *targets.COMMANDS,
    *learning.COMMANDS,
    *packages.COMMANDS,
    *viewers.COMMANDS,
    *doctor.COMMANDS,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if "_ARGCOMPLETE" in os.environ:
        complete(os.environ.get("COMP_LINE", ""))
    keep_memory()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        options = parser(words).parse_args(words)
    except UsageError as error:
        return refuse(error, as_json="--json" in words)
    log_to_stderr(verbose=options.verbose)
    command: Command = options.command
    try:
        result, code = command.run(options)
    except IsochunkError as error:
        return refuse(error, as_json=options.json)
    except KeyboardInterrupt:
        print("isochunk: interrupted; the same command resumes", file=sys.stderr)
        return INCOMPLETE
    if result is not None:
        say(json.dumps(result) if options.json else in_words(command.words(result)))
    return code


def complete(line: str) -> NoReturn:
    """Tell a shell how a line may go on; ``register-python-argcomplete isochunk`` has it ask."""
    import argcomplete

    argcomplete.autocomplete(parser(line.split()))
    raise AssertionError("argcomplete ends the process")


def log_to_stderr(*, verbose: bool) -> None:
    """Log what isochunk tells and what others do that matters, or all that is told."""
    handler = OnStderr()
    if not verbose:  # loggers of Dask have levels of their own, so the root's is no help
        handler.addFilter(ours_or_grave)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=[handler],
    )
    logging.getLogger("isochunk").setLevel(logging.INFO)


class OnStderr(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at that moment: a bar that is shown makes room for lines."""

    @property
    def stream(self) -> TextIO:
        """Standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """Keep it."""


def ours_or_grave(record: logging.LogRecord) -> bool:
    """Tell whether a record is isochunk's own, or a warning, or of Dask an error.

    Dask's warnings are of its own affairs, such as processes that end slowly, but for those of
    memory: a worker that takes too much is ended.
    """
    room, *inside = record.name.split(".")
    if room == "isochunk":
        return True
    dasks = room == "distributed" and "memory" not in inside
    return record.levelno >= (logging.ERROR if dasks else logging.WARNING)


def say(text: str) -> None:
    """Print a result; whoever reads may stop reading, as ``head`` does."""
    with suppress(BrokenPipeError):
        print(text, flush=True)


def refuse(error: IsochunkError, *, as_json: bool) -> int:
    """Say what went wrong and return the exit code."""
    if as_json:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
    say_error(error)
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
