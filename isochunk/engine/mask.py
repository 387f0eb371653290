"""Which blocks a mask leaves as background, found for many blocks by one read."""

from __future__ import annotations

from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from isochunk.core.geometry import Box, triple
from isochunk.core.limits import MASK_VOXELS
from isochunk.core.spec import VolumeSpec
from isochunk.planning.layout import block_bounds
from isochunk.planning.plan import Plan
from isochunk.storage.volume import Volume


def masked_blocks(plan: Plan, mask: Volume, blocks: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell which blocks of the first stage stay background.

    Args:
        plan: what the blocks belong to.
        mask: a block is computed where any of the voxels it touches here is not zero; beyond the
            mask's extent there is nothing.
        blocks: (n,) numbers of blocks; neighbours in this order are read together.

    Returns:
        (n,) True for background.

    Raises:
        StorageError: the mask cannot be read.
    """
    lo, hi = mask_bounds(plan, mask.spec, blocks)
    out = np.ones(len(blocks), np.bool_)
    touching = np.flatnonzero((lo < hi).all(axis=1))
    # Halves of runs, until what one read returns is small.
    runs = [touching]
    while runs:
        run = runs.pop()
        if len(run) == 0:
            continue
        box = Box(triple(lo[run].min(axis=0)), triple(hi[run].max(axis=0)))
        if box.size > MASK_VOXELS and len(run) > 1:
            runs += np.array_split(run, 2)
            continue
        voxels = mask.read(box)
        inside = ((lo[run] - box.lo).tolist(), (hi[run] - box.lo).tolist())
        out[run] = [not voxels[tuple(map(slice, a, b))].any() for a, b in zip(*inside, strict=True)]
    return out


def mask_bounds(
    plan: Plan, mask: VolumeSpec, blocks: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the mask's voxels that blocks of the first stage touch.

    Returns:
        (n, 3) first voxels, and (n, 3) ends; a block outside the mask ends before it starts.
    """
    bounds = block_bounds(plan.target.box, plan.stages[0].block, blocks)
    found = []
    for values, rounded in zip(bounds, (floor, ceil), strict=True):
        columns = []
        for axis in range(3):
            unit, step = tuple(plan.target.spacing)[axis], tuple(mask.spacing)[axis]
            start = plan.target.corner_nm[axis] - mask.corner_nm[axis]
            # Exact, and few: blocks share the planes between them.
            planes, where = np.unique(values[:, axis], return_inverse=True)
            at = [rounded((start + int(plane) * unit) / step) for plane in planes]
            clipped = np.clip(at, mask.box.lo[axis], mask.box.hi[axis])
            columns.append(clipped[where])
        found.append(np.stack(columns, axis=1))
    return found[0], found[1]
