"""Creating and writing volumes through tensorstore."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import tensorstore as ts

from isochunk.core.codec import JsonObject
from isochunk.core.geometry import AXES, Box, ceil_div, triple
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import (
    CorruptDataError,
    GeometryError,
    StorageError,
    TargetConflictError,
    UsageError,
)
from isochunk.storage import arrays, ome, precomputed
from isochunk.storage.access import Access
from isochunk.storage.keys import check_whole_objects, object_boxes, object_key, object_keys
from isochunk.storage.objects import Store, check_writable
from isochunk.storage.source import TensorStoreVolume, array_json, part_of
from isochunk.storage.url import Location, parse_url
from isochunk.storage.volume import WritableVolume

DEFAULT = Access()


class TensorStoreTarget(TensorStoreVolume):
    """A volume that isochunk created and writes, object by object."""

    def write(self, box: Box, voxels: Voxels, level: int = 0) -> None:
        """Write whole stored objects; see :meth:`start_write`."""
        self.start_write(box, voxels, level)()

    def start_write(self, box: Box, voxels: Voxels, level: int = 0) -> Callable[[], None]:
        """Start to write whole stored objects; the answer waits for the end.

        Each object is written once. All-zero objects are not stored.

        Raises:
            GeometryError: the box cuts a stored object, or the array does not fit it.
            StorageError: storage failed after retries.
        """
        scale = self._spec.levels[level]
        check_whole_objects(scale, box)
        if voxels.shape != box.shape or voxels.dtype != np.dtype(self._spec.dtype):
            raise GeometryError(
                f"box {box} takes {box.shape} voxels of {self._spec.dtype}, "
                f"got {voxels.shape} of {voxels.dtype}"
            )
        doing = f"writing box {box} of level {level} of"
        if self._spec.format != "precomputed":
            return self._start_padded(box, voxels, level, doing)
        if scale.shard is not None:
            return self._start_shards(box, voxels, level, doing)
        view = self.view(level)
        return self._store.start(lambda: part_of(view, box).write(voxels), doing)

    def encoded_bytes(self, box: Box, level: int = 0) -> int:
        """Return 0: storage would have to be asked for it."""
        return 0

    def _start_padded(self, box: Box, voxels: Voxels, level: int, doing: str) -> Callable[[], None]:
        """Write zarr objects in full, as they are stored.

        Told of clipped ones, tensorstore would read each object at the end of the array back
        before writing it, and at times write it twice.
        """
        view = self.view(level)
        shape = self._spec.levels[level].object_shape
        margin = [-n % s for n, s in zip(box.shape, shape, strict=True)]
        whole = Box(box.lo, triple(b + m for b, m in zip(box.hi, margin, strict=True)))
        if any(margin):
            voxels = np.pad(voxels, [(0, m) for m in margin])
        return self._store.start(lambda: part_of(view, whole).write(voxels), doing)

    def _start_shards(self, box: Box, voxels: Voxels, level: int, doing: str) -> Callable[[], None]:
        """Write precomputed shards; black ones are deleted here, tensorstore would keep them."""
        view = self.view(level)
        black, started = [], []
        for cell in object_boxes(self._spec.levels[level], box):
            part, place = voxels[cell.slices(box.lo)], part_of(view, cell)
            if part.any():
                started.append(self._store.start(partial(place.write, part), doing))
            else:
                black.append(object_key(self._spec, level, cell))
        started.append(self._store.start_delete(black))

        def finish() -> None:
            for done in started:
                done()

        return finish

    def _array_json(self, level: LevelSpec) -> JsonObject:
        """Describe zarr arrays from the spec, up to the end of their last objects."""
        stored = array_json(self._spec, level, self._store)
        if self._spec.format == "precomputed":
            return stored
        cells = zip(level.box.shape, level.object_shape, strict=True)
        whole = replace(level, box=Box.from_shape(triple(ceil_div(n, s) * s for n, s in cells)))
        metadata = array_metadata(self._spec, whole)
        return {**stored, "metadata": metadata, "assume_metadata": True}


KEPT_BOXES = 12
"""Boxes that a target in memory keeps: blocks in flight in one worker, at three levels each."""


class MemoryTarget(TensorStoreTarget):
    """A target in this process's memory that forgets all but its last boxes: for trying out."""

    def __init__(self, spec: VolumeSpec, location: Location, access: Access) -> None:
        """Create the volume, empty; no other process and no other target sees it."""
        store = Store(location, access)
        create = _create_precomputed if spec.format == "precomputed" else _create_ome
        create(spec, store, {})
        super().__init__(spec, store, stored_axes(spec), strict=False)
        self._kept: deque[tuple[int, Box]] = deque()
        self._sizes: dict[tuple[int, Box], int] = {}
        self._keeping = threading.Lock()

    def start_write(self, box: Box, voxels: Voxels, level: int = 0) -> Callable[[], None]:
        """Write as any target does; see :meth:`TensorStoreTarget.start_write`."""
        written = super().start_write(box, voxels, level)

        def finish() -> None:
            written()
            stored = self._store.get_all(list(object_keys(self._spec, level, box)))
            with self._keeping:
                self._sizes[level, box] = sum(len(one or b"") for one in stored)
                self._kept.append((level, box))
                old = [self._kept.popleft() for _ in range(len(self._kept) - KEPT_BOXES)]
            for past, gone in old:
                self._store.delete(object_keys(self._spec, past, gone))

        return finish

    def encoded_bytes(self, box: Box, level: int = 0) -> int:
        """Return the bytes of the objects of a box, which may be forgotten by now."""
        return self._sizes.get((level, box), 0)


def stored_axes(spec: VolumeSpec) -> tuple[str, ...]:
    """Return the axes of the arrays of a volume that isochunk writes."""
    return precomputed.STORED_AXES if spec.format == "precomputed" else AXES


def array_metadata(spec: VolumeSpec, level: LevelSpec) -> JsonObject:
    """Return the zarr metadata of a level.

    Raises:
        UsageError: a level that zarr cannot hold.
    """
    build = arrays.zarr3_metadata if spec.format == "zarr3" else arrays.zarr2_metadata
    return build(level, spec.dtype, spec.encoding)


def open_target(spec: VolumeSpec, access: Access = DEFAULT) -> WritableVolume:
    """Open a created target for writing, in a worker; nothing is requested yet.

    One in memory (``memory://name``) is created here, since only this process sees it.

    Raises:
        UsageError: the target cannot be written.
    """
    location = parse_url(spec.url)
    check_writable(location)
    if location.scheme == "memory":
        return MemoryTarget(spec, location, access)
    # No cache: what is read back is what is stored.
    return TensorStoreTarget(spec, Store(location, access), stored_axes(spec), strict=False)


def check_creatable(spec: VolumeSpec) -> None:
    """Check that a volume's format can hold it and its place can be written; asks no storage.

    Raises:
        UsageError: the format cannot hold such a volume, or the URL is read only.
        GeometryError: a shard shape that precomputed cannot have.
    """
    location = parse_url(spec.url)
    check_writable(location)
    if location.scheme == "memory":
        raise UsageError(
            f"{spec.url} would be gone with the process that writes it; write to a path, s3:// or "
            "gs://"
        )
    match spec.format:
        case "precomputed":
            precomputed.info_json(spec)
        case "zarr2" | "zarr3":
            for level in spec.levels:
                array_metadata(spec, level)
        case _:
            raise UsageError(
                f"{spec.format} cannot be written; --format can be precomputed or ome-zarr"
            )


def create_volume(
    spec: VolumeSpec, access: Access = DEFAULT, attributes: JsonObject | None = None
) -> WritableVolume:
    """Create the metadata and arrays of all levels; doing it again is harmless.

    Args:
        spec: the volume to create: precomputed, zarr3 (OME-Zarr 0.5) or zarr2 (OME-Zarr 0.4).
        access: limits, retries, endpoint.
        attributes: provenance, JSON values; never credentials.

    Raises:
        UsageError: the format cannot hold such a volume.
        GeometryError: a shard shape that precomputed cannot have.
        TargetConflictError: something else is stored there.
    """
    check_creatable(spec)
    store = Store(parse_url(spec.url), access)
    if spec.format == "precomputed":
        _create_precomputed(spec, store, attributes or {})
    else:
        _create_ome(spec, store, attributes or {})
    return open_target(spec, access)


MARKERS = ("info", "zarr.json", ".zgroup", ".zattrs", ".zarray", "attributes.json")
"""Files that tell a volume of some format."""


def _existing(store: Store, own: str) -> JsonObject | None:
    """Return the target's own metadata, if it is there already.

    Raises:
        TargetConflictError: metadata of another format is there.
    """
    found = store.get_many(MARKERS)
    foreign = sorted(set(found) - {own, ".zgroup"})
    if foreign:
        raise TargetConflictError(
            f"{store.url} already holds {', '.join(foreign)} of another volume; "
            "choose another target or --overwrite"
        )
    if own not in found:
        return None
    try:
        content: JsonObject = json.loads(found[own])
    except ValueError as error:
        raise CorruptDataError(f"{store.url}/{own} is not JSON: {error}") from error
    return content


def _create_precomputed(spec: VolumeSpec, store: Store, attributes: JsonObject) -> None:
    info = precomputed.info_json(spec)
    existing = _existing(store, "info")
    if existing is not None:
        if existing != json.loads(info):
            raise _conflict(store)
        return
    if attributes:
        store.put("provenance", precomputed.provenance_json(attributes))
    store.put("info", info)


def _create_ome(spec: VolumeSpec, store: Store, attributes: JsonObject) -> None:
    metadata = [array_metadata(spec, level) for level in spec.levels]
    own = "zarr.json" if spec.format == "zarr3" else ".zattrs"
    existing = _existing(store, own)
    content = ome.group_attributes(spec, attributes)
    if existing is not None:
        inner = existing.get("attributes", {}) if spec.format == "zarr3" else existing
        kept = "ome" if spec.format == "zarr3" else "multiscales"
        if inner.get(kept) != content[kept]:
            raise _conflict(store)
    for level, meta in zip(spec.levels, metadata, strict=True):
        _create_array({**array_json(spec, level, store), "metadata": meta}, store, level)
    if existing is None:
        for key, value in ome.group_files(spec, attributes).items():
            store.put(key, value)


def _create_array(array: JsonObject, store: Store, level: LevelSpec) -> None:
    try:
        store.wait(
            lambda: ts.open(array, context=store.context, open=True, create=True),
            f"creating level {level.key!r} of",
        )
    except StorageError as error:
        if "FAILED_PRECONDITION" in str(error.__cause__):
            raise _conflict(store) from error
        if "INVALID_ARGUMENT" in str(error.__cause__):
            raise UsageError(str(error)) from error
        raise


def _conflict(store: Store) -> TargetConflictError:
    return TargetConflictError(
        f"{store.url} already holds a volume with other levels, grid or encoding; "
        "choose another target or --overwrite"
    )
