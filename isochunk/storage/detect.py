"""What is stored at a URL: read the small metadata files and tell the format."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePath
from typing import Any

from isochunk.core.codec import JsonObject
from isochunk.core.geometry import AXES, Spacing, exact_nm
from isochunk.core.spec import VolumeSpec
from isochunk.errors import CorruptDataError, NotFoundError, UsageError
from isochunk.storage import arrays, ome, precomputed
from isochunk.storage.arrays import ArrayMeta
from isochunk.storage.axes import pick_from
from isochunk.storage.files.kinds import FILES_ONLY, SUFFIXES
from isochunk.storage.objects import Store

_FILES = {
    "precomputed": ("info",),
    "zarr3": ("zarr.json",),
    "zarr2": (".zattrs", ".zarray", ".zgroup"),
    "zarr": ("zarr.json", ".zattrs", ".zarray", ".zgroup"),
    "n5": ("attributes.json",),
    None: ("info", "zarr.json", ".zattrs", ".zarray", ".zgroup", "attributes.json"),
}
"""Metadata files of each format; None where the format is to be recognised."""


@dataclass(frozen=True, slots=True)
class DetectedVolume:
    """A volume found at a URL."""

    spec: VolumeSpec
    """What it is."""
    axes: tuple[str, ...]
    """Names of the stored arrays' axes."""
    sparse: bool
    """Whether its metadata says that absent objects are background."""


def detect_volume(store: Store) -> DetectedVolume:
    """Read the metadata at a URL.

    Raises:
        NotFoundError: there is none.
        UsageError: a volume that is not supported.
    """
    named = store.location.format
    files = _FILES[named if named in _FILES else None]
    found = store.get_many(files)
    if "info" in found:
        info = _json(store, "info", found["info"])
        spec = precomputed.volume_spec(store.url, info, store.access.pick)
        return DetectedVolume(spec, precomputed.STORED_AXES, precomputed.MARK in info)
    if "zarr.json" in found:
        return _zarr3(store, _json(store, "zarr.json", found["zarr.json"]))
    if ".zarray" in found:
        meta = _json(store, ".zarray", found[".zarray"])
        attributes = _json(store, ".zattrs", found.get(".zattrs", b"{}"))
        return _single(store, arrays.read_zarr2(store.url, meta, attributes))
    if ".zattrs" in found or ".zgroup" in found:
        return _zarr2_group(store, _json(store, ".zattrs", found.get(".zattrs", b"{}")))
    if "attributes.json" in found:
        return _n5(store, _json(store, "attributes.json", found["attributes.json"]))
    wanted = named or "precomputed, zarr, OME-Zarr or N5"
    hint = FILES_ONLY if PurePath(store.location.path).suffix in SUFFIXES else "check the URL"
    raise NotFoundError(
        f"no {wanted} volume at {store.url}: none of {', '.join(files)} is there; {hint}"
    )


def _json(store: Store, key: str, content: bytes) -> JsonObject:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise CorruptDataError(f"{store.url}/{key} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptDataError(f"{store.url}/{key} is not a JSON object")
    return value


def _zarr3(store: Store, meta: JsonObject) -> DetectedVolume:
    if meta.get("node_type") == "array":
        return _single(store, arrays.read_zarr3(store.url, meta))
    multiscale = ome.multiscale_of(meta.get("attributes", {}))
    if multiscale is None:
        raise _not_multiscale(store)
    return _multiscale(
        store, multiscale, "zarr.json", lambda url, meta, _: arrays.read_zarr3(url, meta)
    )


def _zarr2_group(store: Store, attributes: JsonObject) -> DetectedVolume:
    multiscale = ome.multiscale_of(attributes)
    if multiscale is None:
        raise _not_multiscale(store)
    return _multiscale(store, multiscale, ".zarray", arrays.read_zarr2)


def _not_multiscale(store: Store) -> UsageError:
    return UsageError(
        f"{store.url} is a zarr group without multiscales metadata; give the URL of an OME-Zarr "
        f"group, or of one array and {ome.SPACING_HELP}"
    )


def _multiscale(
    store: Store,
    multiscale: JsonObject,
    name: str,
    read: Callable[[str, JsonObject, JsonObject], ArrayMeta],
) -> DetectedVolume:
    try:
        keys = {path: f"{path}/{name}" for path in ome.dataset_paths(multiscale)}
    except (KeyError, TypeError) as error:
        raise CorruptDataError(f"{store.url} has unreadable multiscales: {error}") from error
    found = store.get_many(list(keys.values()))
    metas = {}
    for path, key in keys.items():
        if key not in found:
            raise NotFoundError(
                f"{store.url} lists a level {path!r} but {key} is missing; the volume is damaged"
            )
        metas[path] = read(f"{store.url}/{path}", _json(store, key, found[key]), {})
    access = store.access
    spec, names = ome.volume_spec(store.url, multiscale, metas, access.spacing, access.pick)
    return DetectedVolume(spec, names, sparse=True)


def _single(store: Store, array: ArrayMeta) -> DetectedVolume:
    """Describe an array that stands alone; its first corner is at 0."""
    names = arrays.axis_names(store.url, array)
    pick = pick_from(store.url, names, array.shape, store.access.pick)
    spacing = store.access.spacing or _n5_spacing(array.attributes, names)
    if spacing is None:
        raise UsageError(f"the voxel size of {store.url} is not known; {ome.SPACING_HELP}")
    level = ome.level_spec("", array, names, spacing)
    zero = Fraction(0)
    spec = VolumeSpec(
        store.url,
        array.format,
        array.dtype,
        array.encoding,
        (zero, zero, zero),
        (level,),
        pick.channel,
        pick.time,
    )
    return DetectedVolume(spec, names, sparse=True)


def _n5(store: Store, attributes: JsonObject) -> DetectedVolume:
    if "dimensions" in attributes:
        return _single(store, arrays.read_n5(store.url, attributes))
    multiscale = ome.multiscale_of(attributes)
    if multiscale is None:
        raise UsageError(
            f"{store.url} is an N5 group without multiscales metadata; give the URL of one of its "
            "arrays, such as s0"
        )
    return _cosem(store, multiscale)


def _cosem(store: Store, multiscale: JsonObject) -> DetectedVolume:
    """Read an N5 group with the ``multiscales`` attribute of the COSEM data sets.

    Its transforms name z, y, x; the arrays themselves are stored x, y, z.
    """
    try:
        datasets = [
            {
                "path": d["path"],
                "coordinateTransformations": [
                    {"type": "scale", "scale": d["transform"]["scale"][::-1]},
                    {"type": "translation", "translation": d["transform"]["translate"][::-1]},
                ],
            }
            for d in multiscale["datasets"]
        ]
        first = multiscale["datasets"][0]["transform"]
        axes = [
            {"name": name, "unit": unit}
            for name, unit in zip(first["axes"][::-1], first["units"][::-1], strict=True)
        ]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise CorruptDataError(
            f"{store.url} has unreadable multiscales: {type(error).__name__}: {error}"
        ) from error
    return _multiscale(
        store,
        {"axes": axes, "datasets": datasets},
        "attributes.json",
        lambda url, meta, _: arrays.read_n5(url, meta),
    )


def _n5_spacing(attributes: JsonObject, names: tuple[str, ...]) -> Spacing | None:
    """Read ``pixelResolution`` (n5-viewer) or ``resolution`` (others), given in stored order."""
    value: Any = attributes.get("pixelResolution", attributes.get("resolution"))
    unit: Any = attributes.get("unit", "nm")
    if isinstance(value, dict):
        value, unit = value.get("dimensions"), value.get("unit", unit)
    if not isinstance(value, list) or len(value) != len(names) or unit not in ome.UNITS_NM:
        return None
    sizes = {name: ome.exact(v) * ome.UNITS_NM[unit] for name, v in zip(names, value, strict=True)}
    return Spacing(*(exact_nm(str(sizes[axis])) for axis in AXES))
