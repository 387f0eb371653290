"""Tables of docs/reliability.md, filled by the tests that produce their rows.

`make reliability` runs those tests with ``--reliability docs/reliability.md``; without the option
rows are dropped and nothing is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

PREFIX = "table: "
"""Starts the properties of tests that are rows."""

Tables = dict[str, list[Mapping[str, Any]]]


def rendered(rows: list[Mapping[str, Any]]) -> str:
    """Write rows of equal keys as a Markdown table, in one order however the tests ran."""
    columns = list(rows[0])
    assert all(list(row) == columns for row in rows), "rows of one table have the same columns"
    heads = [name.replace("_", " ") for name in columns]
    body = sorted([shown(row[c]) for c in columns] for row in rows)
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def shown(value: Any) -> str:
    """Write one cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class Filler:
    """A plugin of pytest that fills a page when all tests have run."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.tables: Tables = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            for name, cells in report.user_properties:
                if name.startswith(PREFIX):
                    self.tables.setdefault(name.removeprefix(PREFIX), []).append(cells)

    def pytest_sessionfinish(self) -> None:
        fill(self.page, self.tables)


def fill(page: Path, tables: Tables) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- end -->`` by each table."""
    text = page.read_text()
    for name, rows in tables.items():
        place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert place.search(text), f"{page} has no place for the table {name!r}"
        text = place.sub(lambda m, rows=rows: f"{m[1]}{rendered(rows)}\n{m[2]}", text)
    page.write_text(text)
