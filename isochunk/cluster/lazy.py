"""A plan's finest level as a lazy Dask array."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from dask import array as da
from dask.delayed import delayed

from isochunk.core.geometry import Box, triple
from isochunk.engine.opened import OpenJob, open_job
from isochunk.planning.plan import Plan

if TYPE_CHECKING:
    from isochunk.core.voxels import Voxels


class LazyJob:
    """A job that opens itself in whatever process first asks it for voxels."""

    def __init__(self, plan: Plan) -> None:
        """Take the job; nothing is opened yet."""
        # Planned in one process and opened in others, which may have other devices.
        self.plan = replace(plan, found_device=None)
        self._opened: OpenJob | None = None
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without open handles."""
        return LazyJob, (self.plan,)

    def predict(self, box: Box) -> Voxels:
        """Predict a stored target box."""
        with self._opening:
            if self._opened is None:
                self._opened = open_job(self.plan)
        return self._opened.predict(box)


def predict_chunk(job: LazyJob, block_info: dict[Any, Any]) -> Voxels:
    """Predict one chunk of a lazy array."""
    lo, hi = zip(*block_info[None]["array-location"], strict=True)
    return job.predict(Box(triple(lo), triple(hi)).shift(job.plan.target.box.lo))


def lazy_array(plan: Plan) -> da.Array:
    """Return the plan's finest level as a lazy array, a chunk for each block."""
    grid, block = plan.target.box, plan.stages[0].block
    chunks = tuple(
        tuple(min(b, n - start) for start in range(0, n, b))
        for n, b in zip(grid.shape, block, strict=True)
    )
    array: da.Array = da.map_blocks(
        predict_chunk,
        delayed(LazyJob(plan)),
        chunks=chunks,
        dtype=plan.target.dtype,
        meta=np.empty((0, 0, 0), plan.target.dtype),
    )
    return array
