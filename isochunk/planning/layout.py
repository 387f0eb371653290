"""How the target is cut into levels, shards and blocks.

A block is the unit of work and covers whole stored objects of every level it writes, so no two
blocks touch the same object. A stage is a set of blocks that read the same thing: the source, or a
target level written by an earlier stage. A stage writes its first level and, from the same block in
memory, up to two coarser ones; the next stage then reads back only 1/64 of the voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from isochunk.core.geometry import AXES, Box, Spacing, Triple, ceil_div, grid_shape, triple
from isochunk.core.limits import BLOCK_EXTENT, LARGE_VOLUME, MAX_FUSED_LEVELS, MAX_LEVELS
from isochunk.core.spec import Format, LevelSpec
from isochunk.errors import GeometryError
from isochunk.storage.keys import level_key, precomputed_shard_shapes, precomputed_sharding


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of equal shape that read the same volume."""

    reads: int | None
    """Target level that is read; None for the source volume, through the model."""
    writes: tuple[int, ...]
    """Target levels written, finest first."""
    block: Triple
    """Voxels of a block on the grid of the first level written."""


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """What the user asked of the target's storage, before it meets the volume's extent."""

    format: Format
    """Storage format of the target."""
    chunk: Triple
    """Chunk shape."""
    shard: Triple | Literal["auto", "none"]
    """Shard shape, or how to find it."""
    block: Triple | None
    """Block shape, or None for the default."""
    levels: int | None
    """Levels wanted, or None for as many as are useful."""
    lossy: bool
    """Whether reading back differs from what was written."""


def pooling(spacing: Spacing) -> Triple:
    """Return the pooling to the next level: 2 along every axis finer than twice the finest."""
    finest = min(spacing)
    return triple(2 if s < 2 * finest else 1 for s in spacing)


def pooled_box(box: Box, by: Triple) -> Box:
    """Return the box of a level pooled from ``box``; the last window may be cut."""
    return Box(
        triple(a // p for a, p in zip(box.lo, by, strict=True)),
        triple(map(ceil_div, box.hi, by)),
    )


def pooling_between(fine: LevelSpec, coarse: LevelSpec) -> Triple:
    """Return the voxels of one level that become one of the next."""
    return triple(c / f for c, f in zip(coarse.spacing, fine.spacing, strict=True))


def coarser_box(box: Box, fine: LevelSpec, coarse: LevelSpec) -> Box:
    """Return where a box of one level lies on the next."""
    return pooled_box(box, pooling_between(fine, coarse))


def finer_box(box: Box, fine: LevelSpec, coarse: LevelSpec) -> Box:
    """Return the voxels of the finer level under a box of the coarser."""
    by = pooling_between(fine, coarse)
    lo = triple(a * p for a, p in zip(box.lo, by, strict=True))
    hi = triple(b * p for b, p in zip(box.hi, by, strict=True))
    return Box(lo, hi) & fine.box


def lay_out(
    box: Box, spacing: Spacing, options: LayoutOptions
) -> tuple[tuple[LevelSpec, ...], tuple[Stage, ...]]:
    """Cut a target into levels and stages.

    Args:
        box: stored voxels of the finest level.
        spacing: their size in nm.
        options: what the user asked for.

    Raises:
        GeometryError: a shard is no multiple of the chunk, a block cuts a shard, or a level was
            asked for whose corner is no whole voxel.
    """
    shard = wanted_shard(box, options)
    finest = level(0, box, spacing, options, shard)
    block = wanted_block(finest, options)
    levels, stages = [finest], [Stage(None, (0,), block)]
    limit = options.levels or MAX_LEVELS
    while len(levels) < limit and (options.levels or exceeds(levels[-1])):
        last, by = levels[-1], pooling(levels[-1].spacing)
        if any(a % p for a, p in zip(last.box.lo, by, strict=True)):
            if options.levels:
                raise GeometryError(
                    f"level {len(levels)} of {options.levels} would start at half a voxel, since "
                    f"level {len(levels) - 1} starts at {last.box.lo}; ask for --levels "
                    f"{len(levels)}, or for a --box whose corner divides by a higher power of two"
                )
            break
        coarse_box = pooled_box(last.box, by)
        coarse_spacing = Spacing(*(s * p for s, p in zip(last.spacing, by, strict=True)))
        index = len(levels)
        fused = None
        if not options.lossy and len(stages[-1].writes) < MAX_FUSED_LEVELS:
            small = triple(ceil_div(b, p) for b, p in zip(block, by, strict=True))
            part = None if shard is None else triple(map(min, shard, small))
            fused = level(index, coarse_box, coarse_spacing, options, part)
        if fused is not None and fits_pooled(block, by, fused):
            levels.append(fused)
            block = small
            stages[-1] = replace(stages[-1], writes=(*stages[-1].writes, index))
        else:
            levels.append(level(index, coarse_box, coarse_spacing, options, shard))
            block = default_block(levels[-1])
            stages.append(Stage(index - 1, (index,), block))
    return tuple(levels), tuple(stages)


def exceeds(level: LevelSpec) -> bool:
    """Tell whether a level is larger than one chunk."""
    return any(n > c for n, c in zip(level.box.shape, level.chunk, strict=True))


def fits_pooled(block: Triple, by: Triple, coarse: LevelSpec) -> bool:
    """Tell whether a block, pooled, covers whole objects of the coarser level."""
    return all(
        ceil_div(b, p) >= n or (b % p == 0 and (b // p) % o == 0)
        for b, p, o, n in zip(block, by, coarse.object_shape, coarse.box.shape, strict=True)
    )


def level(
    index: int, box: Box, spacing: Spacing, options: LayoutOptions, shard: Triple | None
) -> LevelSpec:
    """Describe one level; its shard is cut to what the level's extent can fill.

    Raises:
        GeometryError: the shard asked for at the finest level is none that precomputed can have.
    """
    plain = LevelSpec(level_key(options.format, index, spacing), box, spacing, options.chunk, None)
    if shard is None:
        return plain
    fitted = fit_shard(box.shape, options.chunk, shard, options.format)
    asked = index == 0 and options.shard != "auto"
    if options.format == "precomputed" and not asked:
        fitted = max(
            (
                shape
                for shape in precomputed_shard_shapes(plain)
                if all(a <= b for a, b in zip(shape, fitted, strict=True))
            ),
            key=math.prod,
        )
    if fitted == options.chunk:
        return plain
    made = replace(plain, shard=fitted)
    if options.format == "precomputed":
        precomputed_sharding(made)
    return made


def wanted_shard(box: Box, options: LayoutOptions) -> Triple | None:
    """Return the shard shape asked for, or the default in whole chunks."""
    if options.shard == "none" or (options.shard == "auto" and options.format == "zarr2"):
        return None  # zarr v2 has no shards
    if options.shard == "auto":
        extent = 2 * BLOCK_EXTENT if box.size > LARGE_VOLUME else BLOCK_EXTENT
        return triple(c << max(0, (extent // c).bit_length() - 1) for c in options.chunk)
    for axis, s, c in zip(AXES, options.shard, options.chunk, strict=True):
        if s % c:
            raise GeometryError(
                f"shard {options.shard} cuts chunk {options.chunk} along {axis}; choose a "
                f"multiple of {c}"
            )
    return options.shard


def fit_shard(shape: Triple, chunk: Triple, shard: Triple, format: Format) -> Triple:
    """Cut a shard to the chunks that exist; precomputed counts them in powers of two."""
    fitted = []
    for n, c, s in zip(shape, chunk, shard, strict=True):
        chunks = ceil_div(n, c)
        if format == "precomputed":
            chunks = 1 << (chunks - 1).bit_length()
        fitted.append(max(1, min(s // c, chunks)) * c)
    return triple(fitted)


def wanted_block(finest: LevelSpec, options: LayoutOptions) -> Triple:
    """Return the block asked for, or the default in whole objects."""
    if options.block is None:
        return default_block(finest)
    what = "shard" if finest.shard else "chunk"
    for axis, b, o, n in zip(
        AXES, options.block, finest.object_shape, finest.box.shape, strict=True
    ):
        if b % o and b < n:
            raise GeometryError(
                f"block {options.block} cuts {what} {finest.object_shape} along {axis}; "
                f"choose a multiple of {o}"
            )
    return triple(
        ceil_div(min(b, n), o) * o
        for b, o, n in zip(options.block, finest.object_shape, finest.box.shape, strict=True)
    )


def default_block(level: LevelSpec) -> Triple:
    """Return whole objects up to the default extent, no larger than the level needs."""
    return triple(
        o * max(1, min(BLOCK_EXTENT // o, ceil_div(n, o)))
        for o, n in zip(level.object_shape, level.box.shape, strict=True)
    )


def block_count(box: Box, block: Triple) -> int:
    """Return how many blocks cover a box."""
    return math.prod(grid_shape(box.shape, block))


def block_box(box: Box, block: Triple, index: int) -> Box:
    """Return block ``index`` of a box, in boustrophedon order with z fastest.

    The inverse is :func:`block_index`.

    Neighbours in this order share a face, so the halo of one is still in the cache for the next.

    Raises:
        IndexError: there is no such block.
    """
    nz, ny, nx = grid_shape(box.shape, block)
    if not 0 <= index < nz * ny * nx:
        raise IndexError(f"block {index} of {nz * ny * nx}")
    column, z = divmod(index, nz)
    x, y = divmod(column, ny)
    y = ny - 1 - y if x % 2 else y
    z = nz - 1 - z if column % 2 else z
    lo = triple(a + i * b for a, i, b in zip(box.lo, (z, y, x), block, strict=True))
    return Box.from_shape(block, lo) & box


def block_bounds(
    box: Box, block: Triple, indices: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first voxels and ends of many blocks, (n, 3) each; see :func:`block_box`."""
    nz, ny, _ = grid_shape(box.shape, block)
    column, z = np.divmod(indices, nz)
    x, y = np.divmod(column, ny)
    y = np.where(x % 2, ny - 1 - y, y)
    z = np.where(column % 2, nz - 1 - z, z)
    lo = np.stack([z, y, x], axis=1) * np.array(block) + np.array(box.lo)
    return lo, np.minimum(lo + np.array(block), np.array(box.hi))


def block_index(box: Box, block: Triple, cell: Triple) -> int:
    """Return the number of the block at grid position ``cell`` (z, y, x)."""
    nz, ny, _ = grid_shape(box.shape, block)
    z, y, x = cell
    column = x * ny + (ny - 1 - y if x % 2 else y)
    return column * nz + (nz - 1 - z if column % 2 else z)


def blocks_over(box: Box, block: Triple, part: Box) -> Iterator[int]:
    """Yield the numbers of the blocks that ``part`` of a box touches."""
    ranges = (
        range((a - o) // b, ceil_div(z - o, b))
        for a, z, o, b in zip(part.lo, part.hi, box.lo, block, strict=True)
    )
    return (block_index(box, block, triple(cell)) for cell in product(*ranges))
