"""Which voxels stand for the sections of a volume, and how they are read: a slab ahead."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, product
from typing import TypeAlias

import numpy as np

from isochunk.core.geometry import Box, ceil_div, triple
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import UsageError
from isochunk.storage.volume import Volume

Slab: TypeAlias = tuple[int, int]
"""First z of some sections, and the z after the last."""

SECTION_VOXELS = 1 << 20
"""Voxels read of a section at most, but for one window of a chunk."""
WINDOW_EDGE = 128, 1024
"""Edge of a window where only some of a section is read: whole chunks, but for larger ones."""
SLAB = 64
"""Sections read together at most: two such slabs are held, one of them while it is read."""
READERS = 8
"""Windows read at the same time."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Which voxels stand for the sections of a volume."""

    level: int
    """Level of the volume, as deep along z as the finest."""
    windows: tuple[Box, ...]
    """Boxes of that level, of one size, that reach through all sections."""
    whole: bool
    """Whether they are all of the sections."""
    bytes_read: int
    """Voxels in them, in bytes before compression."""


def plan_reading(spec: VolumeSpec, box: Box | None, level: int | None) -> Reading:
    """Choose the level and the windows that stand for a volume's sections.

    Args:
        spec: the volume.
        box: source voxels to look at; None for all.
        level: which level; None for the finest whose sections have at most ``SECTION_VOXELS``, or
            else for the coarsest, of which windows of whole chunks are read, spread evenly.

    Raises:
        UsageError: the box is outside, or the level does not hold every section.
    """
    whole = spec.box if box is None else box
    if whole not in spec.box or whole.size == 0:
        raise UsageError(f"--box {whole} is not inside {spec.url}, {spec.box}; choose one that is")
    complete = [
        i
        for i, own in enumerate(spec.levels)
        if own.spacing.z == spec.spacing.z
        and (own.box.lo[0], own.box.hi[0]) == (spec.box.lo[0], spec.box.hi[0])
    ]
    boxes = {i: _on_level(whole, spec, spec.levels[i]) for i in complete}
    if level is None:
        small = [i for i in complete if boxes[i].shape[1] * boxes[i].shape[2] <= SECTION_VOXELS]
        level = small[0] if small else complete[-1]
    elif level not in complete:
        raise UsageError(
            f"level {level} of {spec.url} does not hold every section; choose --level from "
            f"{', '.join(map(str, complete))}, or leave it out"
        )
    windows = spread_windows(boxes[level], spec.levels[level])
    size = sum(w.size for w in windows) * spec.itemsize
    return Reading(level, windows, windows == (boxes[level],), size)


def spread_windows(box: Box, level: LevelSpec) -> tuple[Box, ...]:
    """Return boxes of one size that reach through all sections and hold few voxels of each.

    The whole box where a section of it has at most ``SECTION_VOXELS``; otherwise as many whole
    chunks as that, spread evenly, or a part of one where chunks are larger still.
    """
    _, height, width = box.shape
    if height * width <= SECTION_VOXELS:
        return (box,)
    least, most = WINDOW_EDGE
    cells = [c * ceil_div(least, c) for c in level.chunk[1:]]
    edges = [min(c, n, most) for c, n in zip(cells, (height, width), strict=True)]
    across = max(1, int(math.sqrt(SECTION_VOXELS / (edges[0] * edges[1]))))
    axes = zip(box.lo[1:], box.hi[1:], level.box.lo[1:], cells, edges, strict=True)
    starts = [_spread(range(lo, hi), grid, cell, edge, across) for lo, hi, grid, cell, edge in axes]
    return tuple(
        Box((box.lo[0], y, x), (box.hi[0], y + edges[0], x + edges[1])) for y, x in product(*starts)
    )


def _spread(axis: range, grid: int, cell: int, edge: int, count: int) -> list[int]:
    """Return where up to ``count`` windows start: on cells of a grid, if a whole one is inside."""
    aligned = grid + ceil_div(axis.start - grid, cell) * cell
    starts = range(aligned, axis.stop - edge + 1, cell) or range(axis.start, axis.start + 1)
    wanted = min(count, len(starts))
    return [starts[(2 * i + 1) * len(starts) // (2 * wanted)] for i in range(wanted)]


def _on_level(box: Box, spec: VolumeSpec, level: LevelSpec) -> Box:
    """Return the voxels of a level of whole sections that a source box overlaps."""
    scale = (Fraction(1), *pixel_of(spec, level))
    lo = triple(math.floor(a / s) for a, s in zip(box.lo, scale, strict=True))
    hi = triple(math.ceil(b / s) for b, s in zip(box.hi, scale, strict=True))
    return Box(lo, hi) & level.box


def pixel_of(spec: VolumeSpec, level: LevelSpec) -> tuple[Fraction, Fraction]:
    """Return the size along y and x of a level's pixel, in source pixels."""
    return level.spacing.y / spec.spacing.y, level.spacing.x / spec.spacing.x


def read_sections(
    volume: Volume, reading: Reading, part: Slab | None = None
) -> Iterator[tuple[int, Voxels]]:
    """Yield sections by rising z; while one slab of chunks is used, the next is read.

    Args:
        volume: where to read.
        reading: which voxels.
        part: which sections; None for all.

    Yields:
        Source z, and its windows (windows, y, x) in the volume's type.

    Raises:
        StorageError: a box cannot be read.
    """
    lo, hi = part or (reading.windows[0].lo[0], reading.windows[0].hi[0])
    with ThreadPoolExecutor(READERS, "isochunk-sections") as pool:

        def start(slab: Slab) -> list[Future[Voxels]]:
            boxes = (Box((slab[0], *w.lo[1:]), (slab[1], *w.hi[1:])) for w in reading.windows)
            return [pool.submit(volume.read, box, reading.level) for box in boxes]

        slabs = cut_slabs(volume.spec.levels[reading.level], lo, hi, SLAB)
        begun = start(slabs[0])
        for slab, later in zip(slabs, [*slabs[1:], None], strict=True):
            parts = [future.result() for future in begun]
            begun = [] if later is None else start(later)
            yield from zip(range(*slab), np.stack(parts, axis=1), strict=True)


def cut_slabs(level: LevelSpec, lo: int, hi: int, most: int) -> list[Slab]:
    """Cut z where chunks meet, so that no slab has more than ``most`` sections."""
    chunk, origin = level.chunk[0], level.box.lo[0]
    thick = most // chunk * chunk or most
    first = origin + ((lo - origin) // thick + 1) * thick
    edges = [lo, *range(first, hi, thick), hi]
    return list(pairwise(edges))
