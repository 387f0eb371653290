"""Volumes in files, S3, GCS and http(s), through tensorstore.

A volume shares one tensorstore context: one chunk cache, one limit on requests, one policy of
retries. Every operation has a time-out. tensorstore must not be forked: start workers by spawn.
"""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import numpy as np
import tensorstore as ts

from isochunk.errors import (
    CorruptDataError,
    GeometryError,
    NotFoundError,
    TargetConflictError,
    UsageError,
)
from isochunk.geometry import AXES, Box
from isochunk.predict import Voxels
from isochunk.spec import DTYPES, LevelSpec, VolumeSpec
from isochunk.storage import arrays, ome, precomputed
from isochunk.storage.access import Access, JsonObject
from isochunk.storage.keys import check_whole_objects, object_boxes, object_key
from isochunk.storage.objects import Store, check_writable, open_store
from isochunk.storage.recognise import Recognised, recognise
from isochunk.storage.url import parse_url
from isochunk.storage.volume import Volume, WritableVolume

__all__ = [
    "Access",
    "check_supported",
    "create_volume",
    "open_store",
    "open_target",
    "open_volume",
]

log = logging.getLogger(__name__)

DEFAULT = Access()

_DRIVERS = {"zarr2": "zarr", "zarr3": "zarr3", "n5": "n5"}
_PRECOMPUTED_AXES = ("x", "y", "z", "channel")


class TensorStoreVolume:
    """A volume that tensorstore reads and, for targets, writes."""

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
        scale = self._spec.levels[level]
        if box not in scale.box:
            raise GeometryError(f"box {box} is outside level {level} of {self._spec.url}, "
                                f"{scale.box}")  # fmt: skip
        view = self._view(level)
        doing = f"reading box {box} of level {level} of"
        voxels: Voxels = self._store.wait(lambda: _sub(view, box).read(order="C"), doing)
        if self._strict:
            self._check_present(box, level, voxels)
        return voxels

    def _check_present(self, box: Box, level: int, voxels: Voxels) -> None:
        """Tell an absent object from a black one; only where all voxels are zero is it asked."""
        for cell in object_boxes(self._spec.levels[level], box):
            if voxels[(cell & box).slices(box.lo)].any():
                continue
            key = object_key(self._spec, level, cell)
            if not self._store.exists(key):
                raise NotFoundError(
                    f"reading box {box} of {self._spec.url}: object {key} is missing though the "
                    "volume covers it; restore it, or say that absent objects are background "
                    "(Access(missing='background'))"
                )

    def write(self, box: Box, voxels: Voxels, level: int = 0) -> None:
        """Write whole stored objects; each object is written once. All-zero objects are not stored.

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
        if self._spec.format == "precomputed" and scale.shard is not None:
            self._write_shards(box, voxels, level, doing)
        else:
            view = self._view(level)
            self._store.wait(lambda: _sub(view, box).write(voxels), doing)

    def _write_shards(self, box: Box, voxels: Voxels, level: int, doing: str) -> None:
        """Write precomputed shards; black ones are deleted here, tensorstore would keep them."""
        view = self._view(level)
        black, writes = [], []
        for cell in object_boxes(self._spec.levels[level], box):
            part = voxels[cell.slices(box.lo)]
            if part.any():
                writes.append(_sub(view, cell).write(part))
            else:
                black.append(object_key(self._spec, level, cell))
        for write in writes:
            self._store.wait(lambda write=write: write, doing)  # type: ignore[misc]
        self._store.delete(black)

    def _view(self, level: int) -> Any:  # noqa: ANN401
        """Return the level's array as z, y, x, in global voxels."""
        with self._lock:
            if level not in self._views:
                spec = array_json(self._spec, self._spec.levels[level], self._store)
                doing = f"opening level {level} of"
                array = self._store.wait(
                    lambda: ts.open(spec, context=self._store.context, open=True), doing
                )
                self._views[level] = _zyx(array, self._axes)
            return self._views[level]


def _sub(view: Any, box: Box) -> Any:  # noqa: ANN401
    return view[tuple(slice(a, b) for a, b in zip(box.lo, box.hi, strict=True))]


def _zyx(array: Any, axes: tuple[str, ...]) -> Any:  # noqa: ANN401
    for position in reversed(range(len(axes))):
        if axes[position] not in AXES:
            first = array.domain[position].inclusive_min
            array = array[ts.d[position][first]]
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


def open_volume(url: str, access: Access = DEFAULT) -> Volume:
    """Open a volume for reading.

    Args:
        url: a path or URL; the format is recognised where it is not named.
        access: limits, retries, endpoint.

    Raises:
        NotFoundError: nothing is stored there, or nothing that is a volume.
        AccessError: storage refused.
        UsageError: a volume that is not supported; the message says what is.
    """
    location = parse_url(url)
    if location.format == "graphene":
        from isochunk.storage.cloudvolume import open_cloudvolume

        return open_cloudvolume(location, access)
    store = Store(location, access, access.cache_bytes)
    found = recognise(store)
    if found.spec.format == "precomputed" and found.spec.encoding not in precomputed.READABLE:
        from isochunk.storage.cloudvolume import open_cloudvolume

        log.info("%s: encoding %s, read by cloud-volume", found.spec.url, found.spec.encoding)
        return open_cloudvolume(location, access)
    return TensorStoreVolume(found.spec, store, found.axes, strict=_strict(found, access))


def _strict(found: Recognised, access: Access) -> bool:
    if access.missing != "auto":
        return access.missing == "error"
    return found.spec.format == "precomputed" and not found.sparse


def check_supported(spec: VolumeSpec) -> None:
    """Check that a source can be made isotropic.

    Raises:
        UsageError: a voxel type other than uint8 and uint16.
    """
    if spec.dtype not in DTYPES:
        raise UsageError(
            f"{spec.url} holds {spec.dtype}; {' and '.join(DTYPES)} of one channel are supported; "
            "convert it first"
        )


def open_target(spec: VolumeSpec, access: Access = DEFAULT) -> WritableVolume:
    """Open a created target for writing, in a worker; nothing is requested yet.

    Raises:
        UsageError: the target cannot be written.
    """
    location = parse_url(spec.url)
    check_writable(location)
    axes = _PRECOMPUTED_AXES if spec.format == "precomputed" else AXES
    # No cache: what is read back is what is stored.
    return TensorStoreVolume(spec, Store(location, access), axes, strict=False)


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
    location = parse_url(spec.url)
    check_writable(location)
    store = Store(location, access)
    match spec.format:
        case "precomputed":
            _create_precomputed(spec, store, attributes or {})
        case "zarr2" | "zarr3":
            _create_ome(spec, store, attributes or {})
        case _:
            raise UsageError(
                f"{spec.format} cannot be written; --format can be precomputed or ome-zarr"
            )
    return open_target(spec, access)


_MARKERS = ("info", "zarr.json", ".zgroup", ".zattrs", ".zarray", "attributes.json")


def _existing(store: Store, own: str) -> JsonObject | None:
    """Return the target's own metadata, if it is there already.

    Raises:
        TargetConflictError: metadata of another format is there.
    """
    found = store.get_many(_MARKERS)
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
    build = arrays.zarr3_metadata if spec.format == "zarr3" else arrays.zarr2_metadata
    metadata = [build(level, spec.dtype, spec.encoding) for level in spec.levels]
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
    except CorruptDataError as error:
        raise UsageError(str(error)) from error
    except Exception as error:
        if "FAILED_PRECONDITION" in str(error.__cause__):
            raise _conflict(store) from error
        raise


def _conflict(store: Store) -> TargetConflictError:
    return TargetConflictError(
        f"{store.url} already holds a volume with other levels, grid or encoding; "
        "choose another target or --overwrite"
    )
