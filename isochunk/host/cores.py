"""Cores that this process may really use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from isochunk.host.groups import control_groups, read_text


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores there are for this process: those it may run on, and as its groups allow.

    A container's limit is often a share of time of all cores, which affinity does not show.

    Args:
        root: where ``proc`` and ``sys`` are mounted.

    Returns:
        At least 1.
    """
    affine = getattr(os, "sched_getaffinity", None)
    cores = len(affine(0)) if affine else os.cpu_count() or 1
    return max(1, min([cores, *map(int, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield how many cores' time each control group that this process is in allows."""
    for second, at in control_groups(root, "cpu"):
        names = ["cpu.max"] if second else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        match [word for name in names for word in read_text(at / name).split()]:
            case [quota, period] if quota.isdigit() and int(quota) and int(period):
                yield int(quota) / int(period)
