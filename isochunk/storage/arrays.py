"""Metadata of single arrays: zarr v2, zarr v3 and N5, read and written. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isochunk.core.codec import JsonObject
from isochunk.core.encodings import USUAL_LEVELS, word_and_level
from isochunk.core.geometry import Triple
from isochunk.core.spec import Format, LevelSpec
from isochunk.errors import CorruptDataError, UsageError

ENCODINGS = ("raw", "zstd", "blosc", "gzip", "blosc-zstd")
"""Compressions that can be written."""

# Levels are put in; docs/cost.md has what they make of EM.
_ZARR3_CODECS: dict[str, JsonObject] = {
    "zstd": {"name": "zstd", "configuration": {"checksum": False}},
    "gzip": {"name": "gzip", "configuration": {"level": 1}},
    "blosc": {
        "name": "blosc",
        "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0},
    },
    "blosc-zstd": {
        "name": "blosc",
        "configuration": {"cname": "zstd", "shuffle": "bitshuffle", "blocksize": 0},
    },
}
_ZARR2_COMPRESSORS: dict[str, JsonObject] = {
    "zstd": {"id": "zstd"},
    "gzip": {"id": "gzip", "level": 1},
    "blosc": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 2, "blocksize": 0},
    "blosc-zstd": {"id": "blosc", "cname": "zstd", "shuffle": 2, "blocksize": 0},
}


@dataclass(frozen=True, slots=True)
class ArrayMeta:
    """What an array's metadata says, in stored axis order."""

    format: Format
    """zarr2, zarr3 or n5."""
    shape: tuple[int, ...]
    """Voxels along each axis."""
    dtype: str
    """numpy name of the voxel type."""
    chunk: tuple[int, ...]
    """Smallest unit that decodes by itself."""
    shard: tuple[int, ...] | None
    """Stored object holding many chunks."""
    encoding: str
    """Compression."""
    names: tuple[str, ...] | None
    """Names of the axes where the metadata has them."""
    attributes: JsonObject
    """User attributes of the array."""


def read_zarr3(url: str, meta: JsonObject) -> ArrayMeta:
    """Read the ``zarr.json`` of an array.

    Raises:
        CorruptDataError: a member is missing or has the wrong type.
    """
    try:
        outer = tuple(int(n) for n in meta["chunk_grid"]["configuration"]["chunk_shape"])
        codecs = meta["codecs"]
        chunk, shard = outer, None
        if codecs[0]["name"] == "sharding_indexed":
            inner = codecs[0]["configuration"]
            chunk, shard, codecs = tuple(inner["chunk_shape"]), outer, inner["codecs"]
        packed = [c for c in codecs if c["name"] not in ("bytes", "crc32c", "transpose")]
        how = packed[-1].get("configuration", {}) if packed else {}
        names = meta.get("dimension_names")
        named = tuple(str(n).lower() for n in names) if names and all(names) else None
        return ArrayMeta(
            "zarr3",
            tuple(meta["shape"]),
            str(meta["data_type"]),
            chunk,
            shard,
            _word(packed[-1]["name"], how) if packed else "raw",
            named,
            meta.get("attributes", {}),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _unreadable(url, "zarr v3", error) from error


def read_zarr2(url: str, meta: JsonObject, attributes: JsonObject) -> ArrayMeta:
    """Read the ``.zarray`` and ``.zattrs`` of an array.

    Raises:
        CorruptDataError: a member is missing or has the wrong type.
    """
    try:
        compressor = meta.get("compressor")
        names = attributes.get("_ARRAY_DIMENSIONS")  # as xarray writes it
        return ArrayMeta(
            "zarr2",
            tuple(meta["shape"]),
            np.dtype(meta["dtype"]).name,
            tuple(meta["chunks"]),
            None,
            _word(compressor["id"], compressor) if compressor else "raw",
            tuple(str(n).lower() for n in names) if names else None,
            attributes,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(url, "zarr v2", error) from error


def read_n5(url: str, meta: JsonObject) -> ArrayMeta:
    """Read the ``attributes.json`` of an N5 array; its axes are x, y, z where it names none.

    Raises:
        CorruptDataError: a member is missing or has the wrong type.
    """
    try:
        compression = meta.get("compression", {}).get("type", meta.get("compressionType", "raw"))
        shape = tuple(int(n) for n in meta["dimensions"])
        return ArrayMeta(
            "n5",
            shape,
            str(meta["dataType"]),
            tuple(meta["blockSize"]),
            None,
            str(compression),
            _n5_names(meta.get("axes"), len(shape)),
            meta,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(url, "N5", error) from error


def _n5_names(axes: object, rank: int) -> tuple[str, ...] | None:
    """Return the names of N5 axes, as tensorstore and n5-viewer write them, if each has one."""
    if not isinstance(axes, list) or len(axes) != rank or not all(axes):
        return None
    return tuple(str(name).lower() for name in axes)


def _unreadable(url: str, what: str, error: Exception) -> CorruptDataError:
    return CorruptDataError(
        f"{url} has unreadable {what} metadata: {type(error).__name__}: {error}"
    )


def axis_names(url: str, array: ArrayMeta) -> tuple[str, ...]:
    """Return the axes of an array that stands alone.

    Raises:
        UsageError: a rank that is no volume.
    """
    if array.names and {"z", "y", "x"} <= set(array.names):
        return array.names
    rank = len(array.shape)
    order = ("z", "y", "x") if array.format != "n5" else ("x", "y", "z")
    extra = tuple(f"axis {i}" for i in range(rank - len(order)))
    if rank < len(order):
        raise UsageError(f"{url} has {rank} axes; one z, y, x volume is supported")
    return order + extra if array.format == "n5" else extra + order


def _word(codec: str, how: JsonObject) -> str:
    """Return the word for an array's compression; blosc is a frame for several."""
    return "blosc-zstd" if codec == "blosc" and how.get("cname") == "zstd" else codec


def _level(encoding: str) -> JsonObject:
    """Return the level of an encoding as its codec has it, for those whose level may be chosen."""
    word, level = word_and_level(encoding)
    if word not in USUAL_LEVELS:
        return {}
    return {"clevel" if word == "blosc-zstd" else "level": level or USUAL_LEVELS[word]}


def _check(level: LevelSpec, dtype: str, encoding: str) -> None:
    if word_and_level(encoding)[0] not in ENCODINGS:
        raise UsageError(
            f"zarr cannot be written with encoding {encoding!r}; choose {', '.join(ENCODINGS)}"
        )
    if dtype not in ("uint8", "uint16"):
        raise UsageError(f"dtype {dtype} cannot be written; uint8 and uint16 are supported")
    if level.box.lo != (0, 0, 0):
        raise UsageError(
            f"level {level.key!r} starts at {level.box.lo}; zarr arrays start at 0, "
            "the position goes into the translation"
        )
    if not level.key:
        raise UsageError("a level of an OME-Zarr target needs a key such as s0")


def zarr3_metadata(level: LevelSpec, dtype: str, encoding: str) -> JsonObject:
    """Return the metadata that makes tensorstore create a zarr v3 array.

    Raises:
        UsageError: encoding, dtype or origin that zarr cannot have; a shard that cuts chunks.
    """
    _check(level, dtype, encoding)
    codecs: list[JsonObject] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if encoding != "raw":
        codec = _ZARR3_CODECS[word_and_level(encoding)[0]]
        how = {**codec["configuration"], **_level(encoding)}
        if codec["name"] == "blosc":
            how["typesize"] = np.dtype(dtype).itemsize
        codecs.append({**codec, "configuration": how})
    if level.shard is not None:
        _check_shard(level.shard, level.chunk)
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        inner = {"chunk_shape": list(level.chunk), "codecs": codecs, "index_codecs": index}
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
    return {
        "shape": list(level.box.shape),
        "data_type": dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(level.object_shape)},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": codecs,
        "fill_value": 0,
        "dimension_names": ["z", "y", "x"],
    }


def _check_shard(shard: Triple, chunk: Triple) -> None:
    if any(s % c for s, c in zip(shard, chunk, strict=True)):
        raise UsageError(f"shard {shard} is no multiple of chunk {chunk} (z, y, x)")


def zarr2_metadata(level: LevelSpec, dtype: str, encoding: str) -> JsonObject:
    """Return the metadata that makes tensorstore create a zarr v2 array.

    Raises:
        UsageError: encoding, dtype or origin that zarr cannot have; shards.
    """
    _check(level, dtype, encoding)
    if level.shard is not None:
        raise UsageError(
            f"zarr v2 has no shards, {level.shard} was asked for; write OME-Zarr 0.5 or no shards"
        )
    compressor = None
    if encoding != "raw":
        compressor = {**_ZARR2_COMPRESSORS[word_and_level(encoding)[0]], **_level(encoding)}
    return {
        "shape": list(level.box.shape),
        "chunks": list(level.chunk),
        "dtype": np.dtype(dtype).newbyteorder("<").str,
        "compressor": compressor,
        "fill_value": 0,
        "filters": None,
        "order": "C",
        "dimension_separator": "/",
    }
