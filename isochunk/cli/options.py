"""Options of the command line, made of the fields that dataclasses declare, and read back."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn, TypeAlias, get_type_hints

from rich.console import RenderableType

from isochunk.core.fields import documented, help_text
from isochunk.core.job import Job
from isochunk.core.option_names import option_of
from isochunk.core.text_forms import choices, field_kind, read_field
from isochunk.errors import UsageError
from isochunk.host.files import read_toml

DONE, INCOMPLETE, REFUSED = 0, 1, 2
"""Exit codes: all is done; something is missing or failed; the request cannot be carried out."""

Result: TypeAlias = tuple[dict[str, Any] | None, int]
"""What a command found, or None if it printed by itself, and its exit code."""

ACCESS_FIELDS = {
    "endpoint_url": "endpoint_url",
    "source_spacing": "spacing",
    "requester_pays": "requester_pays",
    "missing": "missing",
    "channel": "channel",
    "time": "time",
    "timeout_s": "timeout_s",
    "requests": "requests",
}
"""Fields of :class:`Job` that say how volumes are read, where there is no job, and what
:class:`~isochunk.storage.access.Access` calls them."""

READING = tuple(name for name in ACCESS_FIELDS if name != "endpoint_url")
"""Those of them that commands which read volumes take; the endpoint is an option of every one."""


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are errors like all others."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        advice = f"{self.prog} --help lists what there is"
        if "expected one argument" in message:
            advice = "a value that begins with - is written behind =, as --window=-1000,2500"
        raise UsageError(f"{message}; {advice}")


@dataclass(frozen=True, slots=True)
class Command:
    """A word after ``isochunk``."""

    name: str
    """The word."""
    text: str
    """What ``--help`` says of it."""
    arguments: Callable[[argparse.ArgumentParser], None]
    """Adds its arguments; called only where the command is asked for."""
    run: Callable[[argparse.Namespace], Result]
    """Carries it out."""
    words: Callable[[Mapping[str, Any]], RenderableType] = str
    """Says what it found, for people; unused where it prints by itself."""


def add_fields(parser: argparse.ArgumentParser, cls: type, names: Sequence[str]) -> None:
    """Add options for fields of a dataclass; those not given stay out of the namespace."""
    hints, texts = get_type_hints(cls, include_extras=True), documented(cls)
    for name in names:
        text, kind = help_text(texts[name]), field_kind(hints[name])
        if kind is bool:
            parser.add_argument(
                option_of(name),
                dest=name,
                action="store_true",
                default=argparse.SUPPRESS,
                help=text,
            )
        else:
            parser.add_argument(
                option_of(name),
                dest=name,
                default=argparse.SUPPRESS,
                type=int if kind is int else str,
                choices=choices(kind),
                help=text,
            )


def given(options: argparse.Namespace, cls: type, names: Iterable[str]) -> dict[str, Any]:
    """Return those fields of a dataclass that were given, read by their types."""
    hints = get_type_hints(cls, include_extras=True)
    values = {name: getattr(options, name, None) for name in names}
    return {
        name: read_field(value, hints[name], option_of(name))
        for name, value in values.items()
        if value is not None
    }


def job_of(options: argparse.Namespace, **fixed: str) -> Job:
    """Make a job of a configuration file and options; options win, and what is fixed wins both."""
    config = getattr(options, "config", None)
    table = read_toml(config) if config else {}
    told = given(options, Job, (f.name for f in fields(Job)))
    return Job.from_mapping({**table, **told, **fixed})


def access_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of :class:`~isochunk.storage.access.Access` that were given."""
    told = given(options, Job, ACCESS_FIELDS)
    return {ACCESS_FIELDS[name]: value for name, value in told.items()}
