"""Which pages of a TIFF stack are the sections of one channel and one time point. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from isochunk.storage.axes import Pick, pick_from

AXIS_NAMES = {"C": "c", "T": "t"}
"""tifffile's letters of axes of which one place is read."""


def picked_sections(url: str, sizes: Sequence[tuple[str, int]], asked: Pick) -> tuple[Pick, range]:
    """Choose a channel and a time point of a stack, and which of its pages are their sections.

    Args:
        url: of the volume.
        sizes: letters and sizes of the axes of pages; of those that are neither channels nor times
            at most one is larger than 1: its places are sections.
        asked: what the user chose.

    Raises:
        UsageError: there are several, and none was chosen.
    """
    shape = tuple(n for _, n in sizes)
    deep = [i for i, (a, n) in enumerate(sizes) if a not in AXIS_NAMES and n > 1]
    names = tuple(
        "z" if i in deep else AXIS_NAMES.get(a, f"axis {a}") for i, (a, _) in enumerate(sizes)
    )
    around = ("z", "y", "x") if not deep else ("y", "x")
    pick = pick_from(url, (*names, *around), (*shape, *(1 for _ in around)), asked)
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    start = sum(
        pick.index(name) * stride
        for name, stride in zip(names, strides, strict=True)
        if name != "z"
    )
    depth, step = (shape[deep[0]], strides[deep[0]]) if deep else (1, 1)
    return pick, range(start, start + depth * step, step)
