"""Which tile costs least, and how deep a pipeline goes with it, in a worker's memory. Pure."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

from isochunk.core.geometry import Triple, ceil_div, triple
from isochunk.core.limits import DEVICE_ELEMENTS, MAX_DEPTH, MAX_SPLIT, MIN_TILE
from isochunk.core.spec import ModelSpec
from isochunk.errors import UsageError
from isochunk.planning.plan import Plan


def fit_memory(made: Plan, memory: int) -> Plan:
    """Choose the tile of least work that fits a worker's memory, and the deepest pipeline with it.

    Reading while computing is worth more than a large tile, so one block alone is in flight only
    where nothing else fits.

    Args:
        made: a plan of any depth and tile.
        memory: bytes of one worker.

    Raises:
        UsageError: not even one block and one small tile fit.
    """
    tiles = tiles_by_work(made)
    for least in (2, 1):
        for tile in tiles:
            for depth in range(MAX_DEPTH, least - 1, -1):
                plan = replace(made, depth=depth, tile=tile)
                if plan.worker_memory_bytes() <= memory:
                    return plan
    smallest = min(
        (replace(made, depth=1, tile=tile) for tile in tiles), key=Plan.worker_memory_bytes
    )
    raise UsageError(
        f"one tile of model {made.model.name!r} and one block {made.stages[0].block} need "
        f"{smallest.worker_memory_bytes() / 2**20:.0f} MiB a worker but --memory is "
        f"{memory / 2**20:.0f} MiB; raise --memory or choose a smaller --block"
    )


def device_tile(made: Plan, device_bytes: int) -> Triple:
    """Return the tile of least work that fits a GPU, or the smallest there is."""
    tiles = tiles_by_work(made)
    for tile in tiles:
        few = made.tile_cost(tile).elements <= DEVICE_ELEMENTS
        if few and made.tile_bytes(tile) <= device_bytes:
            return tile
    return min(tiles, key=made.tile_bytes)


def tiles_by_work(made: Plan) -> list[Triple]:
    """Return the tiles that cut a block into equal parts, those of least work first.

    Of equal work the one that needs least memory comes first; a model whose tiles cost no memory
    has one, the block.
    """
    whole = block_tile(made)
    if not made.tile_bytes(whole):
        return [whole]
    steps = tile_steps(made.model)
    along = []
    for extent, step in zip(whole, steps, strict=True):
        cells = ceil_div(extent, step)
        least = max(step, min(MIN_TILE, extent))
        parts = {ceil_div(cells, n) * step for n in range(1, min(cells, MAX_SPLIT) + 1)}
        along.append([part for part in parts if part >= least])
    return sorted(
        map(triple, product(*along)),
        key=lambda tile: (block_macs(made, tile), made.tile_bytes(tile)),
    )


def block_macs(made: Plan, tile: Triple) -> float:
    """Return the multiply-adds of a block that is cut into tiles."""
    count = math.prod(map(ceil_div, block_tile(made), tile))
    return count * made.tile_cost(tile).macs


def block_tile(made: Plan) -> Triple:
    """Return the tile that covers a whole block, in whole cells of the model's alignment."""
    steps = tile_steps(made.model)
    return triple(ceil_div(b, s) * s for b, s in zip(made.stages[0].block, steps, strict=True))


def tile_steps(model: ModelSpec) -> Triple:
    """Return the target voxels by which a tile's extents grow."""
    strides = (g * r for g, r in zip(model.alignment, model.resolved_factor, strict=True))
    return triple(s if s.denominator == 1 else 1 for s in strides)
