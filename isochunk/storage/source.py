"""Reading volumes through tensorstore."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorstore as ts

from isochunk.core.codec import JsonObject
from isochunk.core.geometry import AXES, Box
from isochunk.core.limits import WHOLE_OBJECTS_BYTES
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import CorruptDataError, NotFoundError, StorageError
from isochunk.storage.axes import Pick, pick_of
from isochunk.storage.keys import object_boxes, object_key
from isochunk.storage.objects import Store
from isochunk.storage.volume import check_inside

log = logging.getLogger(__name__)

RANGE_IGNORED = "Requested byte range"
"""In tensorstore's words where a server answers a range with status 200 (rclone 1.75 does)."""


READS = 4
"""Reads of bytes that do not decode. What cuts answers on their way cuts several in a row, and they
may all be of one chunk; what is stored wrong costs three reads more."""

_DRIVERS = {"zarr2": "zarr", "zarr3": "zarr3", "n5": "n5"}


class TensorStoreVolume:
    """A volume that tensorstore reads."""

    def __init__(
        self, spec: VolumeSpec, store: Store, axes: tuple[str, ...], *, strict: bool
    ) -> None:
        """Keep what is known; arrays are opened when first used.

        Args:
            spec: the volume.
            store: where it is.
            axes: names of the stored arrays' axes.
            strict: an absent object is an error, not background.
        """
        self._spec = spec
        self._store = store
        self._axes = axes
        self._strict = strict
        self._views: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._whole: TensorStoreVolume | None = None

    @property
    def spec(self) -> VolumeSpec:
        """What is stored and where."""
        return self._spec

    def read(self, box: Box, level: int = 0) -> Voxels:
        """Read a box that lies inside ``spec.levels[level].box`` as a z, y, x array.

        Raises:
            GeometryError: the box leaves the level.
            StorageError: storage failed after retries; the message names box and URL.
        """
        check_inside(self._spec, level, box)
        voxels = self._read(box, level) if self._whole is None else self._read_whole(box, level)
        if self._strict:
            self._check_present(box, level, voxels)
        return voxels

    def _read(self, box: Box, level: int) -> Voxels:
        view = self.view(level)
        doing = f"reading box {box} of level {level} of"
        try:
            voxels: Voxels = self._wait_all([part_of(view, box).read], doing)[0]
        except StorageError as error:
            if RANGE_IGNORED not in str(error) or self._spec.levels[level].shard is None:
                raise
            log.warning("%s does not serve byte ranges; whole shards are read", self._spec.url)
            return self._read_whole(box, level)
        return voxels

    def _wait_all(self, reads: Sequence[Callable[..., Any]], doing: str) -> list[Any]:
        """Read at the same time; what does not decode may have been cut on its way: again."""
        begin = [partial(read, order="C") for read in reads]
        started = [self._store.start(b, doing) for b in begin]
        return [
            self._finish(finish, again, doing) for again, finish in zip(begin, started, strict=True)
        ]

    def _finish(self, finish: Callable[[], Any], again: Callable[[], Any], doing: str) -> Any:
        for left in reversed(range(READS)):
            try:
                return finish()
            except CorruptDataError as error:
                if not left:
                    raise
                log.info("%s; reading again", error)
                finish = self._store.start(again, doing)
        raise AssertionError  # the last read has returned or raised

    def _read_whole(self, box: Box, level: int) -> Voxels:
        """Read the whole objects a box touches, which takes no range if none of it is cached."""
        with self._lock:
            if self._whole is None:
                store = Store(self._store.location, self._store.access)
                self._whole = TensorStoreVolume(self._spec, store, self._axes, strict=False)
        voxels = np.empty(box.shape, self._spec.dtype)
        scale, view = self._spec.levels[level], self._whole.view(level)
        cells = list(object_boxes(scale, box))
        together = max(1, WHOLE_OBJECTS_BYTES // (math.prod(scale.object_shape) * voxels.itemsize))
        for first in range(0, len(cells), together):
            some = cells[first : first + together]
            doing = f"reading box {box} of level {level} of"
            whole = [part_of(view, cell).read for cell in some]
            for cell, got in zip(some, self._wait_all(whole, doing), strict=True):
                part = cell & box
                voxels[part.slices(box.lo)] = got[part.slices(cell.lo)]
        return voxels

    def _check_present(self, box: Box, level: int, voxels: Voxels) -> None:
        """Tell absent objects from black ones; only where all voxels are zero is it asked."""
        black = [
            object_key(self._spec, level, cell)
            for cell in object_boxes(self._spec.levels[level], box)
            if not voxels[(cell & box).slices(box.lo)].any()
        ]
        for key in self._store.absent(black):
            raise NotFoundError(
                f"reading box {box} of {self._spec.url}: object {key} is missing though the volume "
                "covers it; restore it, or say that absent objects are background "
                "(--missing background)"
            )

    def view(self, level: int) -> Any:
        """Return the level's array as z, y, x, in global voxels."""
        with self._lock:
            if level not in self._views:
                spec = self._array_json(self._spec.levels[level])
                doing = f"opening level {level} of"
                array = self._store.wait(lambda: ts.open(spec, context=self._store.context), doing)
                self._views[level] = _zyx(array, self._axes, pick_of(self._spec))
            return self._views[level]

    def _array_json(self, level: LevelSpec) -> JsonObject:
        return array_json(self._spec, level, self._store)


def part_of(view: Any, box: Box) -> Any:
    """Select a box of a z, y, x tensorstore array in global voxels."""
    return view[tuple(slice(a, b) for a, b in zip(box.lo, box.hi, strict=True))]


def _zyx(array: Any, axes: tuple[str, ...], pick: Pick) -> Any:
    """Take one place of each other axis, and put z, y and x in order."""
    for position in reversed(range(len(axes))):
        if axes[position] not in AXES:
            first = array.domain[position].inclusive_min
            array = array[ts.d[position][first + pick.index(axes[position])]]
    kept = [name for name in axes if name in AXES]
    return array[ts.d[[kept.index(axis) for axis in AXES]].transpose[:]]


def array_json(spec: VolumeSpec, level: LevelSpec, store: Store) -> JsonObject:
    """Return the tensorstore spec of one level."""
    base: JsonObject = {"recheck_cached_metadata": "open", "recheck_cached_data": "open"}
    if spec.format == "precomputed":
        return {
            **base,
            "driver": "neuroglancer_precomputed",
            "kvstore": store.kvstore_json,
            "scale_metadata": {"key": level.key},
        }
    path = f"{store.kvstore_json['path']}{level.key}/" if level.key else None
    kvstore = {**store.kvstore_json, "path": path} if path else store.kvstore_json
    return {**base, "driver": _DRIVERS[spec.format], "kvstore": kvstore}
