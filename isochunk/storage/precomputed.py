"""Neuroglancer precomputed ``info`` files, read and written. Pure.

Format: neuroglancer, datasource/precomputed/volume.md and sharded.md. x,y,z only in here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction

from isochunk.core.codec import JsonObject
from isochunk.core.geometry import Box, Spacing, Triple, exact_nm, triple
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.errors import CorruptDataError, UsageError
from isochunk.storage.axes import Pick, pick_from
from isochunk.storage.keys import precomputed_sharding, shard_shape

ENCODINGS = {
    "raw": ("uint8", "uint16"),
    "jpeg": ("uint8",),
    "png": ("uint8", "uint16"),
    "gzip": ("uint8", "uint16"),
}
"""Encodings that can be written, and the voxel types each can hold. ``gzip`` is raw chunks, packed
within shards."""

READABLE = ("raw", "gzip", "jpeg", "png", "compressed_segmentation")
"""Encodings that tensorstore decodes; cloud-volume reads the others."""

NO_PICK = Pick()

STORED_AXES = ("x", "y", "z", "channel")
"""Axes as tensorstore names them."""

MARK = "isochunk"
"""Member of ``info`` that says this volume leaves out objects that are all zero, and where its
first corner lies: precomputed itself can say so only in whole voxels."""


def volume_spec(url: str, info: JsonObject, asked: Pick = NO_PICK) -> VolumeSpec:
    """Read an ``info`` file.

    Args:
        url: of the volume.
        info: what the file holds.
        asked: the channel to read, where there are several.

    Raises:
        UsageError: several channels, of which none or one that is not there was chosen.
        CorruptDataError: a member is missing or has the wrong type.
    """
    try:
        channels = int(info.get("num_channels", 1))
        levels = tuple(sorted((_level(s) for s in info["scales"]), key=_voxel_volume))
        encoding = _encoding(info["scales"][0])
        dtype = str(info["data_type"]).lower()
        z, y, x = info.get(MARK, {}).get("corner_nm", ("0", "0", "0"))
        corner = (Fraction(z), Fraction(y), Fraction(x))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CorruptDataError(
            f"{url}/info is not a precomputed volume: {type(error).__name__}: {error}"
        ) from error
    if not levels:
        raise CorruptDataError(f"{url}/info lists no scales")
    pick = pick_from(url, STORED_AXES, (*reversed(levels[0].box.shape), channels), asked)
    return VolumeSpec(url, "precomputed", dtype, encoding, corner, levels, pick.channel)


def _encoding(scale: JsonObject) -> str:
    encoding = str(scale.get("encoding", "raw"))
    packed = (scale.get("sharding") or {}).get("data_encoding") == "gzip"
    return "gzip" if encoding == "raw" and packed else encoding


def _voxel_volume(level: LevelSpec) -> Fraction:
    return level.spacing.z * level.spacing.y * level.spacing.x


def _reversed(values: Sequence[int]) -> Triple:
    return triple(reversed(values))


def _level(scale: JsonObject) -> LevelSpec:
    box = Box.from_shape(_reversed(scale["size"]), _reversed(scale.get("voxel_offset", (0, 0, 0))))
    spacing = Spacing(*(exact_nm(s) for s in reversed(scale["resolution"])))
    level = LevelSpec(str(scale["key"]), box, spacing, _reversed(scale["chunk_sizes"][0]), None)
    sharding = scale.get("sharding")
    if not sharding:
        return level
    bits = int(sharding["preshift_bits"]) + int(sharding["minishard_bits"])
    hashed = sharding.get("hash", "identity") != "identity"
    # Hashed shards are scattered over the volume: no box of voxels belongs to one.
    shard = level.chunk if hashed else shard_shape(level, bits)
    return LevelSpec(level.key, box, spacing, level.chunk, shard)


def info_json(spec: VolumeSpec) -> bytes:
    """Return the ``info`` file of a new volume.

    Raises:
        UsageError: encoding and voxel type, or encoding and objects, do not go together, or keys
            repeat.
        GeometryError: a shard shape that precomputed cannot have.
    """
    dtypes = ENCODINGS.get(spec.encoding, ())
    if spec.dtype not in dtypes:
        options = "; ".join(f"{name}: {', '.join(types)}" for name, types in ENCODINGS.items())
        raise UsageError(
            f"precomputed cannot be written as {spec.dtype} with encoding {spec.encoding!r}; "
            f"--encoding can be {options}"
        )
    if spec.encoding == "gzip" and spec.levels[0].shard is None:
        raise UsageError(
            "precomputed has gzip within shards only, and level 0 would have none; use "
            "--encoding png, or shards"
        )
    keys = [level.key for level in spec.levels]
    if len(set(keys)) != len(keys) or not all(keys):
        raise UsageError(f"the keys of the levels must differ and not be empty: {keys}")
    info = {
        "@type": "neuroglancer_multiscale_volume",
        "type": "image",
        "data_type": spec.dtype,
        "num_channels": 1,
        "scales": [_scale(level, spec.encoding) for level in spec.levels],
        MARK: {"missing": "background", "corner_nm": [str(c) for c in spec.corner_nm]},
    }
    return json.dumps(info, indent=1).encode()


def _scale(level: LevelSpec, encoding: str) -> JsonObject:
    scale: JsonObject = {
        "key": level.key,
        "size": list(reversed(level.box.shape)),
        "voxel_offset": list(reversed(level.box.lo)),
        "resolution": [json_number(s) for s in reversed(tuple(level.spacing))],
        "chunk_sizes": [list(reversed(level.chunk))],
        "encoding": "raw" if encoding == "gzip" else encoding,
    }
    if level.shard is not None:
        packed = "gzip" if encoding == "gzip" else "raw"
        scale["sharding"] = {**precomputed_sharding(level).as_json(), "data_encoding": packed}
    return scale


def json_number(value: Fraction) -> int | float:
    """Return the JSON number that reads back as the same decimal: 46, 4.6."""
    return value.numerator if value.denominator == 1 else float(value)


def provenance_json(attributes: JsonObject) -> bytes:
    """Return a ``provenance`` file in the form that cloud-volume and igneous read."""
    record = {
        "description": "Made isotropic by isochunk.",
        "owners": [],
        "processing": [{"by": "isochunk", "method": attributes}],
        "sources": [str(attributes["source"])] if "source" in attributes else [],
    }
    return json.dumps(record, indent=1).encode()
