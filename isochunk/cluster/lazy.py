"""A plan's finest level as a lazy Dask array."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from dask import array as da
from dask.delayed import delayed

from isochunk.core.geometry import Box, triple
from isochunk.engine.local import WorkerSettings, open_predictor, predict_box
from isochunk.planning.plan import Plan
from isochunk.storage.open import open_volume

if TYPE_CHECKING:
    from isochunk.core.voxels import Voxels
    from isochunk.models.interface import Predictor
    from isochunk.storage.volume import Volume


class LazyJob:
    """A job that opens itself in whatever process first asks it for voxels."""

    def __init__(self, plan: Plan, settings: WorkerSettings) -> None:
        """Take the job; nothing is opened yet."""
        self.plan = plan
        self.settings = settings
        self._opened: tuple[Predictor, Volume] | None = None
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel closed."""
        return LazyJob, (self.plan, self.settings)

    def predict(self, box: Box) -> Voxels:
        """Predict a stored target box."""
        with self._opening:
            if self._opened is None:
                source = open_volume(self.plan.source.url, self.settings.access)
                self._opened = open_predictor(self.plan, self.settings), source
        return predict_box(self.plan, *self._opened, box)


def predict_chunk(job: LazyJob, block_info: dict[Any, Any]) -> Voxels:
    """Predict one chunk of a lazy array."""
    lo, hi = zip(*block_info[None]["array-location"], strict=True)
    return job.predict(Box(triple(lo), triple(hi)).shift(job.plan.target.box.lo))


def lazy_array(plan: Plan, settings: WorkerSettings) -> da.Array:
    """Return the plan's finest level as a lazy array, a chunk for each block."""
    grid, block = plan.target.box, plan.stages[0].block
    chunks = tuple(
        tuple(min(b, n - start) for start in range(0, n, b))
        for n, b in zip(grid.shape, block, strict=True)
    )
    array: da.Array = da.map_blocks(
        predict_chunk,
        delayed(LazyJob(plan, settings)),
        chunks=chunks,
        dtype=plan.target.dtype,
        meta=np.empty((0, 0, 0), plan.target.dtype),
    )
    return array
