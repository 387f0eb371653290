"""What is free for this process, on machines and in containers that are made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from isochunk.host.memory import USABLE, usable_memory_bytes

GIB = 1 << 30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def machine(free: int) -> dict[str, str]:
    """A machine twice as large as what is free of it."""
    lines = (("MemTotal", 2 * free), ("MemFree", free // 8), ("MemAvailable", free))
    return {"proc/meminfo": "".join(f"{name}: {n // 1024} kB\n" for name, n in lines)}


def group(path: str, limit: object, used: int, cached: int = 0) -> dict[str, str]:
    """A control group of version 2."""
    at = f"sys/fs/cgroup/{path}".rstrip("/")
    return {
        f"{at}/memory.max": f"{limit}\n",
        f"{at}/memory.current": f"{used}\n",
        f"{at}/memory.stat": f"anon {used - cached}\ninactive_file {cached}\n",
    }


def old_group(path: str, limit: int, used: int, cached: int = 0) -> dict[str, str]:
    """A control group of version 1; its own ``inactive_file`` leaves those below it out."""
    at = f"sys/fs/cgroup/memory/{path}".rstrip("/")
    return {
        f"{at}/memory.limit_in_bytes": f"{limit}\n",
        f"{at}/memory.usage_in_bytes": f"{used}\n",
        f"{at}/memory.stat": f"inactive_file 0\ntotal_inactive_file {cached}\n",
    }


def member(*lines: str) -> dict[str, str]:
    """The groups that this process is in."""
    return {"proc/self/cgroup": "".join(f"{line}\n" for line in lines)}


V1 = ("4:memory:/pod/one", "3:cpu,cpuacct:/pod/one", "0::/")
NO_LIMIT = 0x7FFFFFFFFFFFF000  # what the kernel writes where there is none

TREES = {
    "machine": (machine(8 * GIB), 8 * GIB),
    "limit below the machine": (
        {**machine(8 * GIB), **member("0::/job"), **group("job", 4 * GIB, GIB)},
        3 * GIB,
    ),
    "machine below the limit": (
        {**machine(2 * GIB), **member("0::/job"), **group("job", 4 * GIB, GIB)},
        2 * GIB,
    ),
    "container that sees its own group as the root": (
        {**machine(8 * GIB), **member("0::/"), **group("", 4 * GIB, GIB)},
        3 * GIB,
    ),
    "group within a tighter one": (
        {
            **machine(64 * GIB),
            **member("0::/slice/job/task"),
            **group("slice", 9 * GIB, 4 * GIB),
            **group("slice/job", 4 * GIB, 2 * GIB),
            **group("slice/job/task", "max", GIB),
        },
        2 * GIB,
    ),
    "no limit": (
        {**machine(8 * GIB), **member("0::/job"), **group("job", "max", GIB)},
        8 * GIB,
    ),
    "cached files": (
        {**machine(8 * GIB), **member("0::/job"), **group("job", 4 * GIB, 4 * GIB, 3 * GIB)},
        3 * GIB,
    ),
    "more used than allowed": (
        {**machine(8 * GIB), **member("0::/job"), **group("job", 4 * GIB, 5 * GIB)},
        0,
    ),
    "version 1": (
        {**machine(8 * GIB), **member(*V1), **old_group("pod/one", 4 * GIB, 2 * GIB, GIB)},
        3 * GIB,
    ),
    "version 1 in a container, which sees no path but the root": (
        {**machine(8 * GIB), **member(*V1), **old_group("", 4 * GIB, 2 * GIB)},
        2 * GIB,
    ),
    "version 1 without a limit": (
        {**machine(8 * GIB), **member(*V1), **old_group("pod/one", NO_LIMIT, 2 * GIB)},
        8 * GIB,
    ),
    "group alone": ({**member("0::/job"), **group("job", 4 * GIB, GIB)}, 3 * GIB),
}


@pytest.mark.parametrize(("files", "free"), TREES.values(), ids=TREES)
def test_least_of_machine_and_groups(tmp_path: Path, files: dict[str, str], free: int) -> None:
    assert usable_memory_bytes(tree(tmp_path, files)) == int(USABLE * free)


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert usable_memory_bytes(tmp_path) is None


def test_this_machine_says() -> None:
    free = usable_memory_bytes()
    assert free is None or 0 < free < 1 << 50
