"""Sentences with a label: what plans and reports say, wherever it is shown."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import NamedTuple

LEFT, BAD = "text-align:left;vertical-align:top", ";color:#b3261e"
"""Styles of a notebook's table, whose own are for numbers."""


class Sentence(NamedTuple):
    """A sentence with a label."""

    label: str
    """What it is about; empty where it goes on from the sentence before."""
    said: str
    """What is said."""
    good: bool = True
    """False for what was not to be."""


def as_html(head: str, sentences: Iterable[Sentence]) -> str:
    """Write sentences as a small table, for a notebook."""
    rows = "".join(
        f'<tr><th style="{LEFT}">{escape(s.label)}</th>'
        f'<td style="{LEFT}{"" if s.good else BAD}">{escape(s.said)}</td></tr>'
        for s in sentences
    )
    return f"<table><caption>{escape(head)}</caption>{rows}</table>"
