"""How words are laid out: facts, tables and sentences, of rich."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, TypeAlias

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from isochunk.core.sentence import Sentence

Said: TypeAlias = RenderableType | Sequence[RenderableType]
"""One line, or several; or a table."""
Fact: TypeAlias = tuple[str, Said]
"""A label, and what is said of it."""

WIDTH = 100
"""Columns where there is no terminal."""
GOOD, BAD, ADVICE = "green", "bold red", "cyan"
"""Styles; there are none where there is no terminal, nor with NO_COLOR."""


def console(stream: IO[str]) -> Console:
    """Return what writes to a stream: in colours on a terminal, else in 100 columns of plain text.

    COLUMNS, NO_COLOR and FORCE_COLOR are heeded. Nothing is taken for markup: URLs hold brackets.
    """
    width = int(os.environ.get("COLUMNS") or 0) or (
        shutil.get_terminal_size().columns if stream.isatty() else WIDTH
    )
    return Console(file=stream, width=width, highlight=False, emoji=False, markup=False)


def facts(rows: Iterable[Fact]) -> Table:
    """Lay out facts, a label each; of several lines the first beside the label.

    Facts that are empty are left out.
    """
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, said in rows:
        lines = [said] if isinstance(said, str) or not isinstance(said, Sequence) else said
        kept = [line for line in lines if line != ""]
        for i, line in enumerate(kept):
            table.add_row("" if i else label, line)
    return table


def styled(sentences: Iterable[Sentence]) -> list[Fact]:
    """Return sentences as facts, what was not to be marked."""
    return [(s.label, s.said if s.good else marked(s.said, good=False)) for s in sentences]


def columns(rows: Sequence[Mapping[str, RenderableType]], right: Sequence[str] = ()) -> Table:
    """Lay out rows of equal keys as columns.

    Args:
        rows: what is said, by the columns' heads.
        right: heads of columns of numbers.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for head in rows[0]:
        table.add_column(head, justify="right" if head in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    return table


def marked(said: str, *, good: bool) -> Text:
    """Say how something ended."""
    return Text(said, GOOD if good else BAD)


def advice(said: str) -> Text:
    """Say what to do."""
    return Text(said, ADVICE)


def in_words(shown: RenderableType) -> str:
    """Write what is laid out for standard output; lines that stand alone are left whole."""
    out = console(sys.stdout)
    with out.capture() as written:
        for part in _parts(shown):
            out.print(part, soft_wrap=isinstance(part, Text))
    return "\n".join(line.rstrip() for line in written.get().splitlines())


def _parts(shown: RenderableType) -> Iterator[RenderableType]:
    if isinstance(shown, Group):
        for part in shown.renderables:
            yield from _parts(part)
    else:
        yield shown


def say_error(error: Exception) -> None:
    """Say on standard error what went wrong, and apart from it what to do."""
    what, comma, todo = str(error).rpartition("; ")
    said = Text().append("isochunk: ", "bold")
    said.append(what or todo, BAD)
    if what:
        said.append(comma).append(todo, ADVICE)
    console(sys.stderr).print(said, soft_wrap=True)
