"""Memory that this process may really use."""

from __future__ import annotations

from pathlib import Path

USABLE = 0.9
"""Share of what is free that is planned with; the rest is for others."""

UNLIMITED = 1 << 60
"""More than any machine has: how old control groups write no limit."""


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
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = base / path.strip("/")
        for at in (folder, *folder.parents):
            if not at.is_relative_to(base):
                break
            limit, used = (_text(at / name).strip() for name in names[:2])
            if limit.isdigit() and used.isdigit() and int(limit) < UNLIMITED:
                cached = _table(at / "memory.stat").get(names[2], 0)
                found.append(max(0, int(limit) - int(used) + cached))
    return found


def _table(path: Path) -> dict[str, int]:
    """Read lines of a name and a number."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _text(path: Path) -> str:
    """Read a file; empty where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
