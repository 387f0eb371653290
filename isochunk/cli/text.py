"""Results written for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def as_text(value: Mapping[str, Any], indent: str = "") -> str:
    """Write a result for people: a line a key, lists of rows as a table."""
    lines = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            lines += [f"{indent}{key}:", as_text(item, indent + "  ")]
        elif isinstance(item, list) and item and isinstance(item[0], Mapping):
            lines += [f"{indent}{key}:", as_table(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {as_word(item)}")
    return "\n".join(lines)


def as_table(rows: Sequence[Mapping[str, Any]], indent: str) -> str:
    """Write rows of equal keys as aligned columns."""
    cells = [[str(k) for k in rows[0]]] + [
        [f"{v:.6g}" if isinstance(v, float) else as_word(v) for v in row.values()] for row in rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        indent + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def as_word(value: Any) -> str:
    """Write a value on one line; what there is none of is a dash."""
    if isinstance(value, list):
        return ", ".join(map(as_word, value))
    return "-" if value is None else str(value)
