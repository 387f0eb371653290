"""How deep a pipeline and how large a tile fit a worker's memory. Pure."""

from __future__ import annotations

from dataclasses import replace

from isochunk.core.geometry import Triple, triple
from isochunk.core.limits import DEVICE_TILE_BYTES, MAX_DEPTH, MIN_TILE
from isochunk.core.spec import ModelSpec
from isochunk.errors import UsageError
from isochunk.planning.plan import Plan


def fit_memory(made: Plan, memory: int) -> Plan:
    """Choose the deepest pipeline and the largest tile that fit a worker's memory.

    Args:
        made: a plan of any depth and tile.
        memory: bytes of one worker.

    Raises:
        UsageError: not even one block and one small tile fit.
    """
    tile = block_tile(made)
    for depth in range(MAX_DEPTH, 0, -1):
        plan = replace(made, depth=depth, tile=tile)
        if plan.worker_memory_bytes() <= memory:
            return plan
        if depth > 2:  # noqa: PLR2004 - reading while computing is worth more than a large tile
            continue
        small: Triple | None = tile
        while plan.worker_memory_bytes() > memory and (small := half_tile(made, plan.tile)):
            plan = replace(plan, tile=small)
        if plan.worker_memory_bytes() <= memory:
            return plan
    raise UsageError(
        f"one tile of model {made.model.name!r} and one block {made.stages[0].block} need "
        f"{plan.worker_memory_bytes() / 2**20:.0f} MiB a worker but --memory is "
        f"{memory / 2**20:.0f} MiB; raise --memory or choose a smaller --block"
    )


def device_tile(made: Plan, device_bytes: int) -> Triple:
    """Return the largest tile of a block that fits a GPU, by what the model is known to need."""
    tile = block_tile(made)
    limit = min(device_bytes, DEVICE_TILE_BYTES)
    while made.tile_bytes(tile) > limit and (small := half_tile(made, tile)):
        tile = small
    return tile


def block_tile(made: Plan) -> Triple:
    """Return the tile that covers a whole block, in whole cells of the model's alignment."""
    steps = tile_steps(made.model)
    return triple(-(-b // s) * s for b, s in zip(made.stages[0].block, steps, strict=True))


def half_tile(made: Plan, tile: Triple) -> Triple | None:
    """Halve a tile along its longest axis; None if it is as small as can be, or costs nothing."""
    steps = tile_steps(made.model)
    axis = max(range(3), key=lambda a: tile[a])
    half = -(-tile[axis] // 2 // steps[axis]) * steps[axis]
    if half < MIN_TILE or half >= tile[axis] or not made.model.bytes_per_voxel:
        return None
    return triple(half if a == axis else n for a, n in enumerate(tile))


def tile_steps(model: ModelSpec) -> Triple:
    """Return the target voxels by which a tile's extents grow."""
    strides = (g * r for g, r in zip(model.alignment, model.resolved_factor, strict=True))
    return triple(s if s.denominator == 1 else 1 for s in strides)
