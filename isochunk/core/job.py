"""A job as its user states it, from Python, from the command line or from a TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeAlias

from isochunk.core.geometry import Box, Spacing, Triple, exact_nm
from isochunk.core.spec import Plane
from isochunk.errors import UsageError

TargetFormat: TypeAlias = Literal["precomputed", "ome-zarr"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
Missing: TypeAlias = Literal["auto", "background", "error"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]

CHOICES: Mapping[str, tuple[str, ...]] = {
    "format": ("precomputed", "ome-zarr"),
    "encoding": ("raw", "jpeg", "png", "zstd", "blosc", "gzip"),
    "dtype": ("uint8", "uint16"),
    "missing": ("auto", "background", "error"),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("fp32", "bf16", "fp16"),
    "plane": ("xz", "yz", "xz+yz"),
}
"""Values allowed for the fields that take one of a few words."""

TEXT = ("source", "target", "model", "mask", "scheduler", "cluster", "endpoint_url", *CHOICES)
WHOLE = ("workers", "levels", "requests")
FLAGS = ("allow_inexact", "trust", "overwrite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything a user may say about one conversion.

    Text forms of the command line (``"0:20,0:512,0:512"``, ``"64,64,64"``, ``"8GiB"``) are accepted
    for boxes, spacings, shapes and sizes.

    Raises:
        UsageError: a field cannot be read; the message says which and how to write it.
    """

    source: str
    """URL of the anisotropic volume."""
    target: str
    """URL of the isotropic volume to write."""
    model: str
    """Interpolation, shipped checkpoint, checkpoint folder, ``.pt2`` or ``file.py:make``."""
    spacing: Spacing | None = None
    """Target voxel size in nm; default: the model's factor, isotropic where it takes any."""
    source_spacing: Spacing | None = None
    """Source voxel size in nm, for sources that do not say."""
    box: Box | None = None
    """Source voxels to convert; default: all."""
    mask: str | None = None
    """URL of a volume over the same space; blocks where it is all zero stay background."""
    block: Triple | None = None
    """Target voxels of one unit of work; whole shards."""
    format: TargetFormat | None = None
    """Target format; default: what the URL names, else precomputed."""
    encoding: str | None = None
    """Target compression; default: raw for precomputed, zstd for OME-Zarr."""
    chunk: Triple = (64, 64, 64)
    """Target chunk shape."""
    shard: Triple | Literal["auto", "none"] = "auto"
    """Target shard shape; ``none`` stores each chunk as an object."""
    levels: int | None = None
    """Resolution levels to write, the full one included; default: until one chunk holds all."""
    dtype: str | None = None
    """Target voxel type; default: the source's."""
    missing: Missing = "auto"
    """What an absent source object means: ``background``, ``error``, or as the format says."""
    device: Device = "auto"
    """Where networks run."""
    precision: Precision = "fp32"
    """Arithmetic of networks."""
    plane: Plane | None = None
    """Slices that an axial network runs on, ``xz+yz`` for the mean of both; default: its own."""
    memory: int = 4 << 30
    """Host memory of one worker in bytes."""
    device_memory: float = 0.9
    """Share of a GPU's memory that one worker may take, more than 0 and at most 1."""
    timeout_s: float = 120.0
    """Longest wait for one answer of storage, retries included."""
    requests: int = 32
    """Requests that one process has in flight, to all its volumes together."""
    slow_start: float | None = None
    """Reads and writes a second, each, that one process starts with; doubles in 20 minutes."""
    workers: int | None = None
    """Worker processes; default: one per GPU with ``cuda``, what a cluster file says, else 1."""
    scheduler: str | None = None
    """Address of a running Dask scheduler."""
    cluster: str = "local"
    """``local``, ``cuda``, or a TOML file that describes a cluster."""
    endpoint_url: str | None = None
    """S3-compatible server; default: ``AWS_ENDPOINT_URL``."""
    allow_inexact: bool = False
    """Accept a model whose tiles do not join exactly; the report then says by how much."""
    trust: bool = False
    """Accept a model that runs code of its own."""
    overwrite: bool = False
    """Delete another job's output at the target first."""

    def __post_init__(self) -> None:
        """Turn text into values and check words."""
        readers = {
            "spacing": read_spacing,
            "source_spacing": read_spacing,
            "box": read_box,
            "block": read_shape,
            "chunk": read_shape,
            "shard": read_shard,
            "memory": read_bytes,
            "timeout_s": read_seconds,
            "device_memory": read_share,
            "slow_start": read_rate,
        }
        check_kinds({name: getattr(self, name) for name in (*TEXT, *WHOLE, *FLAGS)})
        for name, reader in readers.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, reader(value, name))
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise UsageError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
        for name in WHOLE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Job:
        """Make a job of a mapping, as parsed from TOML or a command line.

        Raises:
            UsageError: a key is not a field, or source, target or model is missing.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(f"unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        missing = [name for name in ("source", "target", "model") if not values.get(name)]
        if missing:
            raise UsageError(f"{', '.join(missing)} must be given")
        return cls(**values)


def read_toml(path: str) -> dict[str, Any]:
    """Read a TOML file whose keys are fields of :class:`Job`.

    Raises:
        UsageError: the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise UsageError(f"config {path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"config {path} is not TOML: {error}") from error


def check_kinds(values: Mapping[str, Any]) -> None:
    """Check the fields that are text, whole numbers or flags; TOML may hold anything.

    Raises:
        UsageError: a value is of another kind.
    """
    for names, kind, words in (
        (TEXT, str, "text"),
        (WHOLE, int, "a whole number"),
        (FLAGS, bool, "true or false"),
    ):
        for name in names:
            value = values[name]
            wrong = isinstance(value, bool) and kind is int
            if value is not None and (wrong or not isinstance(value, kind)):
                raise UsageError(f"{name} is {value!r}; it must be {words}")


def read_shape(value: str | Sequence[int], name: str) -> Triple:
    """Read ``Z,Y,X`` voxels, each at least 1."""
    try:
        z, y, x = (int(v) for v in (value.split(",") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; write Z,Y,X in voxels, as 64,64,64") from None
    if min(z, y, x) < 1:
        raise UsageError(f"{name} is {value!r}; every axis must be at least 1")
    return (z, y, x)


def read_shard(value: str | Sequence[int], name: str) -> Triple | Literal["auto", "none"]:
    """Read a shard shape, ``auto`` or ``none``."""
    if value in ("auto", "none"):
        return value  # type: ignore[return-value]
    return read_shape(value, name)


def read_box(value: str | Box, name: str) -> Box:
    """Read ``z0:z1,y0:y1,x0:x1``; an empty box is refused."""
    if not isinstance(value, (str, Box)):
        raise UsageError(f"{name} is {value!r}; write z0:z1,y0:y1,x0:x1 in source voxels")
    box = value if isinstance(value, Box) else Box.parse(value)
    if box.size == 0:
        raise UsageError(f"{name} {box} is empty; each stop must be greater than its start")
    return box


def read_spacing(value: str | Spacing | Sequence[float | str], name: str) -> Spacing:
    """Read ``Z,Y,X`` in nm."""
    if isinstance(value, Spacing):
        return value
    if isinstance(value, str):
        return Spacing.parse(value)
    if not isinstance(value, Sequence) or len(value) != 3:  # noqa: PLR2004
        raise UsageError(f"{name} is {value!r}; write Z,Y,X in nm, as 8,8,8")
    return Spacing(*(exact_nm(v) for v in value))


def read_bytes(value: str | int, name: str) -> int:
    """Read a size such as ``8GiB``, ``500MB`` or a number of bytes."""
    text = str(value) if isinstance(value, (int, str)) else ""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kMGT]?)(i?)B?\s*", text)
    if match is None:
        raise UsageError(f"{name} is {value!r}; write a size as 8GiB, 500MB or bytes")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    size = int(float(number) * base ** " kMGT".index(prefix or " "))
    if size < 1:
        raise UsageError(f"{name} is {value!r}; it must be at least 1 byte")
    return size


def read_seconds(value: str | float, name: str) -> float:
    """Read a number of seconds, more than 0."""
    return read_positive(value, name, "seconds, as 120")


def read_rate(value: str | float, name: str) -> float:
    """Read a number of requests a second, more than 0."""
    return read_positive(value, name, "requests a second, as 50")


def read_positive(value: str | float, name: str, example: str) -> float:
    """Read a number that is more than 0 and finite."""
    number = read_number(value, name, example)
    if not 0 < number < float("inf"):
        raise UsageError(f"{name} is {value}; it must be more than 0, and finite")
    return number


def read_share(value: str | float, name: str) -> float:
    """Read a share, more than 0 and at most 1."""
    share = read_number(value, name, "a share, as 0.9")
    if not 0 < share <= 1:
        raise UsageError(f"{name} is {value}; it must be more than 0 and at most 1")
    return share


def read_ratio(value: str, name: str) -> Fraction:
    """Read a rational number of at least 1, such as 4, 2.5 or 225/23, exactly."""
    try:
        ratio = Fraction(value)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{name} is {value!r}; write a number as 4, 2.5 or 225/23") from None
    if ratio < 1:
        raise UsageError(f"{name} is {value}; it must be at least 1")
    return ratio


def read_number(value: str | float, name: str, example: str) -> float:
    """Read a number; ``example`` says how it is written."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; write {example}") from None
