"""Which tile of a block costs least, and how deep a pipeline goes with it in memory. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isochunk.core.geometry import Triple, ceil_div, triple
from isochunk.core.limits import DEVICE_ELEMENTS, MAX_DEPTH, MAX_SPLIT, MIN_TILE
from isochunk.core.spec import ModelSpec
from isochunk.errors import UsageError
from isochunk.planning.plan import Plan

SLAB_BYTES = 4 * DEVICE_ELEMENTS
"""Of the largest slab of a tensor that is too large for one call on a GPU."""

MACS_PER_BYTE = 0.5
"""Multiply-adds in the time in which one of a tile's bytes is written and read."""


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """Ways to cut a block into equal tiles, those of least work first."""

    shapes: NDArray[np.int64]
    """(n, 3) target voxels."""
    bytes: NDArray[np.float64]
    """(n,) working memory of a forward pass."""
    elements: NDArray[np.float64]
    """(n,) of its largest tensor."""

    @classmethod
    def of(cls, made: Plan) -> Tiles:
        """Cut the blocks of a plan's first stage; where tiles cost no memory, in one."""
        whole, steps = block_tile(made), tile_steps(made.model)
        if made.costs is None and not made.tile_bytes(whole):
            return cls(np.array([whole]), np.zeros(1), np.zeros(1))
        along = [_parts(extent, step) for extent, step in zip(whole, steps, strict=True)]
        shapes = np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, 3)
        macs, size, elements = made.tile_costs(shapes)
        # Memory that is gone through takes time too, and is all that some networks do.
        count = np.prod(-(-np.array(whole) // shapes), axis=1)
        work = count * (macs + MACS_PER_BYTE * size)
        order = np.argsort(work, kind="stable")
        return cls(shapes[order], size[order], elements[order])

    def first(self, fits: NDArray[np.bool_]) -> Triple | None:
        """Return the first tile of those that fit."""
        return triple(self.shapes[fits.argmax()].tolist()) if fits.any() else None

    def smallest(self) -> Triple:
        """Return the tile that needs least memory."""
        return triple(self.shapes[self.bytes.argmin()].tolist())


def fit_memory(made: Plan, memory: int) -> Plan:
    """Choose the tile of least work that fits a worker's memory, and the deepest pipeline with it.

    Reading while computing is worth more than a large tile, so one block alone is in flight only
    where nothing else fits.

    Args:
        made: a plan of any depth; its tile is kept where it computes on a GPU, which
            :func:`fit_device` fits it to.
        memory: bytes of one worker.

    Raises:
        UsageError: not even one block and one small tile fit; it says what would.
    """
    tiles = Tiles.of(made)
    for least in (min(2, MAX_DEPTH), 1):
        shallow = replace(made, depth=least)
        rest = memory - shallow.worker_memory_bytes(tile_bytes=0)
        tile = made.tile if made.on_gpu else tiles.first(tiles.bytes <= rest)
        if tile is None or rest < 0:
            continue
        for depth in range(MAX_DEPTH, least - 1, -1):
            plan = replace(made, depth=depth, tile=tile)
            if plan.worker_memory_bytes() <= memory:
                return plan
    needed = replace(made, depth=1).worker_memory_bytes(
        tile_bytes=0 if made.on_gpu else int(tiles.bytes.min())
    )
    raise UsageError(
        f"one tile of model {made.model.name!r} and one block {made.stages[0].block} need "
        f"{ceil_div(needed, 1 << 20)} MiB of a worker's memory, and it has {memory >> 20} MiB; "
        "raise --memory or choose a smaller --block"
    )


def fit_device(made: Plan, device_bytes: int) -> Plan:
    """Choose the tile of least work that fits a GPU beside blocks in flight, and their number.

    As in :func:`fit_memory`, one block alone is in flight only where nothing else fits. Where even
    that does not, the tile is the smallest there is: a worker halves it no further, and says so.

    Args:
        made: a plan as deep as host memory lets it be.
        device_bytes: what a worker has of a GPU.
    """
    tiles = Tiles.of(made)
    each = made.block_device_bytes()
    for least in (min(2, made.depth), 1):
        tile = tiles.first(_fits_device(made, tiles, device_bytes - least * each))
        if tile is not None:
            room = int(device_bytes - made.tile_bytes(tile)) // each
            return replace(made, tile=tile, depth=max(least, min(made.depth, room)))
    return replace(made, tile=tiles.smallest(), depth=1)


def device_tile(made: Plan, device_bytes: int) -> Triple:
    """Return the tile of least work that fits a GPU beside the blocks in flight, or the smallest.

    Args:
        made: a plan whose depth stays.
        device_bytes: what this worker has of a GPU.
    """
    tiles = Tiles.of(made)
    rest = device_bytes - made.depth * made.block_device_bytes()
    return tiles.first(_fits_device(made, tiles, rest)) or tiles.smallest()


def _fits_device(made: Plan, tiles: Tiles, device_bytes: int) -> NDArray[np.bool_]:
    """Tell which tiles fit a GPU's memory, and what its kernels can count.

    Our own networks pass larger tensors on in slabs (``models.large_calls``), of which one is there
    beside the whole.
    """
    large = tiles.elements > DEVICE_ELEMENTS
    if made.model.arch == "module":
        return ~large & (tiles.bytes <= device_bytes)
    return tiles.bytes + large * SLAB_BYTES <= device_bytes


def block_macs(made: Plan) -> float:
    """Return the multiply-adds of a block of a plan's first stage, cut into its tiles."""
    count = math.prod(map(ceil_div, block_tile(made), made.tile))
    return count * made.tile_cost(made.tile).macs


def block_tile(made: Plan) -> Triple:
    """Return the tile that covers a whole block, in whole cells of the model's alignment."""
    steps = tile_steps(made.model)
    return triple(ceil_div(b, s) * s for b, s in zip(made.stages[0].block, steps, strict=True))


def tile_steps(model: ModelSpec) -> Triple:
    """Return the target voxels by which a tile's extents grow."""
    strides = (g * r for g, r in zip(model.alignment, model.resolved_factor, strict=True))
    return triple(s if s.denominator == 1 else 1 for s in strides)


def _parts(extent: int, step: int) -> list[int]:
    """Return the extents of tiles that cut an axis of a block into equal parts."""
    cells = ceil_div(extent, step)
    least = max(step, min(MIN_TILE, extent))
    parts = {ceil_div(cells, n) * step for n in range(1, min(cells, MAX_SPLIT) + 1)}
    return sorted(part for part in parts if part >= least)
