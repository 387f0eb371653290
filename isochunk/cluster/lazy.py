"""Volumes as lazy Dask arrays: what a plan would make, and what is stored."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from dask import array as da
from dask.delayed import delayed

from isochunk.core.geometry import Box, Triple, triple
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.engine.opened import open_job
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access
from isochunk.storage.open import open_volume

Read: TypeAlias = Callable[[Box], Voxels]


class LazyReader:
    """What opens itself in whatever process first asks it for voxels."""

    def __init__(self, opening: Callable[[], Read]) -> None:
        """Take how it is opened; nothing is opened yet."""
        self.opening = opening
        self._opened: Read | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without open handles."""
        return LazyReader, (self.opening,)

    def read(self, box: Box) -> Voxels:
        """Return the voxels of a box."""
        with self._lock:
            if self._opened is None:
                self._opened = self.opening()
        return self._opened(box)


def read_chunk(reader: LazyReader, corner: Triple, block_info: dict[Any, Any]) -> Voxels:
    """Read one chunk of a lazy array, whose first voxel has the position ``corner``."""
    lo, hi = zip(*block_info[None]["array-location"], strict=True)
    return reader.read(Box(triple(lo), triple(hi)).shift(corner))


def _array(opening: Callable[[], Read], corner: Triple, chunks: Any, dtype: str) -> da.Array:
    array: da.Array = da.map_blocks(
        read_chunk,
        delayed(LazyReader(opening)),
        corner,
        chunks=chunks,
        dtype=dtype,
        meta=np.empty((0, 0, 0), dtype),
    )
    return array


def lazy_array(plan: Plan) -> da.Array:
    """Return the plan's finest level as a lazy array, a chunk for each block."""
    grid, block = plan.target.box, plan.stages[0].block
    # Planned in one process and opened in others, which may have other devices.
    opening = partial(_open_job, replace(plan, found_device=None))
    chunks = da.core.normalize_chunks(block, grid.shape)
    return _array(opening, grid.lo, chunks, plan.target.dtype)


def stored_array(spec: VolumeSpec, access: Access, number: int) -> da.Array:
    """Return a level of a stored volume as a lazy array, a chunk for some whole stored objects."""
    level = spec.levels[number]
    chunks = da.core.normalize_chunks(
        "auto", level.box.shape, dtype=spec.dtype, previous_chunks=level.object_shape
    )
    opening = partial(_open_level, spec.url, access, number)
    return _array(opening, level.box.lo, chunks, spec.dtype)


def _open_job(plan: Plan) -> Read:
    return open_job(plan).predict


def _open_level(url: str, access: Access, number: int) -> Read:
    return partial(open_volume(url, access, again=True).read, level=number)
