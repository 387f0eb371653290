"""Control groups: limits of a container or a job, which may be far below the machine's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def control_groups(root: Path, controller: str) -> Iterator[tuple[bool, Path]]:
    """Yield the folders of the groups that this process is in, each before those it lies in.

    Args:
        root: where ``proc`` and ``sys`` are mounted.
        controller: of the first version's groups, as memory or cpu; the second has one tree.

    Yields:
        Whether a group is of the second version, and its folder.
    """
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        second = number == "0"
        if not second and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("" if second else controller)
        folder = base / path.strip("/")
        for at in (folder, *folder.parents):
            if not at.is_relative_to(base):
                break
            yield second, at


def read_text(path: Path) -> str:
    """Read a file; empty where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
