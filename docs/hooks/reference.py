"""Pages and tables of the reference that are made of the program itself.

- A page for each command, of the parser that reads its arguments, below ``reference/cli``.
- ``<!-- commands -->`` in its ``README.md`` becomes a table of them.
- ``<!-- fields: NAME -->`` becomes a table of the fields of a dataclass, of their docstrings.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from typing import get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from isochunk.cli.demo import Compared
from isochunk.cli.main import COMMANDS, parser
from isochunk.cli.options import Command
from isochunk.core.fields import documented, help_text
from isochunk.core.job import Job
from isochunk.core.text_forms import choices
from isochunk.evaluation.config import EvaluateConfig
from isochunk.evaluation.results import ModelFigures, PlaneFigures
from isochunk.evaluation.without_truth.results import JudgedFigures, NotMeasured
from isochunk.train.loop import TrainReport

INDEX = "reference/cli/README.md"
COMMON = ("--help", "--json", "--verbose", "--endpoint-url")
"""Options that every command has."""
RECORDS = {
    record.__name__: record
    for record in (Compared, JudgedFigures, ModelFigures, NotMeasured, PlaneFigures, TrainReport)
}
"""Dataclasses whose fields are keys of what commands print."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of commands into the navigation, behind the one that lists them."""
    find(config.nav).extend({f"isochunk {c.name}": uri(c)} for c in COMMANDS)
    return config


def find(nav: Iterable[object]) -> list[object]:
    """Return the part of a navigation that begins with the index of commands."""
    for item in nav:
        inner = next(iter(item.values())) if isinstance(item, dict) else None
        if isinstance(inner, list):
            if inner[0] == INDEX:
                return inner
            if found := find(inner):
                return found
    return []


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each command."""
    for command in COMMANDS:
        files.append(File.generated(config, uri(command), content=command_page(command)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables."""
    if page.file.src_uri == INDEX:
        rows = (f"| [`{c.name}`]({c.name}.md) | {cell(c.text)} |" for c in COMMANDS)
        table = "\n".join(["| command | what it does |", "|---|---|", *rows])
        markdown = markdown.replace("<!-- commands -->", table)
    return re.sub(r"<!-- fields: (\w+) -->", lambda m: fields_table(RECORDS[m[1]]), markdown)


def uri(command: Command) -> str:
    """Return where the page of a command lies."""
    return f"reference/cli/{command.name}.md"


def command_page(command: Command) -> str:
    """Write the page of a command."""
    top = parser([command.name])
    # argparse has no public way to ask a parser for what it takes.
    (subparsers,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    sub = subparsers.choices[command.name]
    own = [a for a in sub._actions if not set(a.option_strings) & set(COMMON)]
    common = [a for a in sub._actions if set(a.option_strings) & set(COMMON)]
    lines = [f"# isochunk {command.name}", f"{sentence(command.text)}", usage(command, own)]
    parts = {
        "Arguments": [a for a in own if not a.option_strings],
        "Options": [a for a in own if a.option_strings],
        "Options of every command": common,
    }
    for title, actions in parts.items():
        if actions:
            lines += [f"## {title}", *(entry(action) for action in actions)]
    lines.append(
        f"[What it prints with `--json`](../json.md#isochunk-{command.name}). "
        "[Exit codes, configuration files and the rest](README.md)."
    )
    return "\n\n".join(lines) + "\n"


def usage(command: Command, own: Iterable[argparse.Action]) -> str:
    """Write how a command is called, its options left to the list of them."""
    words = (
        f"[{a.dest.upper()}]" if a.nargs == "?" else a.dest.upper()
        for a in own
        if not a.option_strings
    )
    return f"```\n{' '.join(['isochunk', command.name, *words, '[OPTIONS]'])}\n```"


def entry(action: argparse.Action) -> str:
    """Write an argument or option as an entry of a list of definitions."""
    name = action.option_strings[-1] if action.option_strings else action.dest.upper()
    value = ""
    if action.option_strings and action.nargs != 0:
        shown = action.metavar or name.lstrip("-").replace("-", "_").upper()
        value = " | ".join(action.choices) if action.choices else str(shown)
    term = f"`{' '.join(filter(None, [name, value]))}`{{ #{name.lstrip('-').lower()} }}"
    return f"{term}\n:   {' '.join(told(action))}"


def told(action: argparse.Action) -> Iterator[str]:
    """Yield what is said of an argument: its help, and its default where that is worth saying."""
    text, default = action.help or "", action.default
    if default is argparse.SUPPRESS:  # the option is a field, or --help
        text, default = FIELDS.get(text, (text, None))
    yield sentence(cell(text))
    if default not in (None, False, [], MISSING) and "default" not in text:
        yield f"Default: `{plain(default)}`."
    if isinstance(action, argparse._AppendAction) and "repeat" not in text:
        yield "May be repeated."


def plain(value: object) -> str:
    """Write a default as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


FIELDS = {
    help_text(text): (text, field.default)
    for cls in (EvaluateConfig, Job)
    for field in fields(cls)
    if (text := documented(cls).get(field.name))
}
"""What is said of a field, with its markup, and its default; by the help text made of it."""


def fields_table(record: type) -> str:
    """Write the fields of a dataclass as a table of the keys that JSON makes of them."""
    hints, lines = get_type_hints(record), ["| key | what it is |", "|---|---|"]
    for name, text in documented(record).items():
        first = text[:1].lower() + text[1:] if re.match("[A-Z][a-z]* ", text) else text
        words = ", ".join(f"`{word}`" for word in choices(hints[name]) or ())
        told = cell(first.replace("None", "``null``"))
        lines.append(f"| `{name}` | {words}{': ' if words else ''}{told} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Write a text so that it fits into Markdown: names as code, and nothing that is markup."""
    bare = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", text.replace("``", "`"))
    return bare.replace("|", "\\|").replace("<", "&lt;")


def sentence(text: str) -> str:
    """Begin a text with a capital and end it with a full stop, where it begins with a word."""
    if not text:
        return ""
    first = text[0].upper() + text[1:] if re.match(r"[a-z]+\b(?![./:,])", text) else text
    return first if first.endswith((".", "!")) else f"{first}."
