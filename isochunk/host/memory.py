"""Memory that this process may really use."""

from __future__ import annotations

from pathlib import Path

from isochunk.host.groups import control_groups, read_text

USABLE = 0.9
"""Share of what is free that is planned with; the rest is for others."""

UNLIMITED = 1 << 60
"""More than any machine has: how old control groups write no limit."""

FILES = {
    True: ("memory.max", "memory.current"),
    False: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}
"""Limit and use of a control group, of the second version and of the first."""


def usable_memory_bytes(root: Path = Path("/")) -> int | None:
    """Return what is free for this process: of the machine, and of its control groups.

    A container's limit is a control group's, and may be far below the machine's memory. What caches
    of files hold counts as free.

    Args:
        root: where ``proc`` and ``sys`` are mounted.

    Returns:
        Bytes, or None where the system does not say.
    """
    machine = _table(root / "proc/meminfo").get("MemAvailable:")
    free = [] if machine is None else [1024 * machine]
    free += _free_in_groups(root)
    return int(USABLE * min(free)) if free else None


def _free_in_groups(root: Path) -> list[int]:
    """Return what each control group that this process is in leaves free."""
    found = []
    for second, at in control_groups(root, "memory"):
        limit, used = (read_text(at / name).strip() for name in FILES[second])
        if limit.isdigit() and used.isdigit() and int(limit) < UNLIMITED:
            name = "inactive_file" if second else "total_inactive_file"
            cached = _table(at / "memory.stat").get(name, 0)
            found.append(max(0, int(limit) - int(used) + cached))
    return found


def _table(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    lines = (line.split() for line in read_text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
