"""A job as its user states it, from Python, from the command line or from a TOML file.

Each field is declared once: its type says how it is written and read, the docstring below it is
what ``--help`` says.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from html import escape
from typing import Any, Literal, TypeAlias, get_type_hints

from isochunk.core.codec import LATER
from isochunk.core.encodings import EncodingField
from isochunk.core.option_names import option_of
from isochunk.core.text_forms import (
    BoxField,
    BytesField,
    IndexField,
    ProjectField,
    RateField,
    SecondsField,
    ShapeField,
    ShardField,
    ShareField,
    SpacingField,
    WindowField,
    read_field,
)
from isochunk.core.window import Window
from isochunk.errors import UsageError

TargetFormat: TypeAlias = Literal["precomputed", "ome-zarr"]
VoxelType: TypeAlias = Literal["uint8", "uint16"]
Precision: TypeAlias = Literal["fp32", "tf32", "fp16", "bf16"]
Missing: TypeAlias = Literal["auto", "background", "error"]
Device: TypeAlias = Literal["auto", "cpu", "cuda"]
FoundDevice: TypeAlias = Literal["cpu", "cuda"]
AxialPlane: TypeAlias = Literal["xz", "yz", "xz+yz"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How and where a job is carried out; nothing here changes the output."""

    model: str
    """Interpolation, shipped checkpoint, checkpoint folder, ``.pt2``, package of bioimage.io or
    ``file.py:make``."""
    device: Device = "auto"
    """Where networks run."""
    memory: BytesField | None = None
    """Host memory of one worker in bytes, or as 8GiB; default: what is free, over the workers."""
    device_memory: ShareField = 0.9
    """Share of a GPU's memory that one worker may take, more than 0 and at most 1."""
    timeout_s: SecondsField = 120.0
    """Longest wait in seconds for one answer of storage, retries included."""
    requests: int = 32
    """Requests that one process has in flight, to all its volumes together."""
    slow_start: RateField | None = None
    """Reads and writes a second, each, that one process starts with; doubles in 20 minutes."""
    workers: int | None = None
    """Worker processes; default: one per GPU with ``cuda``, what a cluster file says, else 1."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, as tcp://host:8786."""
    cluster: str = "local"
    """``local``, ``cuda``, or a TOML file that describes a cluster."""
    endpoint_url: str | None = None
    """S3-compatible server; default: ``AWS_ENDPOINT_URL``."""
    requester_pays: ProjectField | None = field(default=None, metadata=LATER)
    """Google Cloud project that is billed for requests to buckets whose requester pays."""
    trust: bool = False
    """Accept a model that runs code of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(RunOptions):
    """Everything a user may say about one conversion: what to do, and how to carry it out.

    Text forms of the command line (``"0:20,0:512,0:512"``, ``"64,64,64"``, ``"8GiB"``) are accepted
    for boxes, spacings, shapes and sizes.

    Raises:
        UsageError: a field cannot be read; the message says which and how to write it.
    """

    source: str
    """URL of the anisotropic volume."""
    target: str
    """URL of the isotropic volume to write."""
    spacing: SpacingField | None = None
    """Target voxel size Z,Y,X in nm; default: the model's factor, isotropic where it takes any."""
    source_spacing: SpacingField | None = None
    """Source voxel size Z,Y,X in nm, for sources that do not say."""
    channel: IndexField | None = field(default=None, metadata=LATER)
    """Which channel of the source, counting from 0, where it has several."""
    time: IndexField | None = field(default=None, metadata=LATER)
    """Which time point of the source, counting from 0, where it has several."""
    window: WindowField | None = field(default=None, metadata=LATER)
    """Stored values LOW,HIGH of the source that become black and white, or ``auto`` to measure
    them; default: uint8 and uint16 are used as they are."""
    box: BoxField | None = None
    """Source voxels to convert, z0:z1,y0:y1,x0:x1; default: all."""
    mask: str | None = None
    """URL of a volume over the same space; blocks where it is all zero stay background."""
    block: ShapeField | None = None
    """Target voxels Z,Y,X of one unit of work; whole shards."""
    format: TargetFormat | None = None
    """Target format; default: what the URL names, else precomputed."""
    encoding: EncodingField | None = None
    """Target compression. Precomputed: ``png`` (default of uint8), ``raw`` (of uint16), ``gzip``
    (in shards), ``jpeg`` (loses). OME-Zarr: ``blosc-zstd`` (default) and ``zstd``, with a level if
    wanted, as ``zstd:9``; ``blosc``, ``gzip``, ``raw``."""
    chunk: ShapeField = (64, 64, 64)
    """Target chunk shape Z,Y,X."""
    shard: ShardField = "auto"
    """Target shard shape Z,Y,X; ``none`` stores each chunk as an object."""
    levels: int | None = None
    """Resolution levels to write, the full one included; default: until one chunk holds all."""
    dtype: VoxelType | None = None
    """Target voxel type; default: the source's, or uint8 where it is read through a window."""
    missing: Missing = "auto"
    """What an absent source object means: ``background``, ``error``, or as the format says. NaN is
    background too where this is."""
    precision: Precision = "fp32"
    """Arithmetic of a network's layers; what their answer is added to stays in single precision.
    ``tf32`` is a GPU's; a CPU then computes in ``fp32``."""
    plane: AxialPlane | None = None
    """Slices that an axial network runs on, ``xz+yz`` for the mean of both; default: its own."""
    consistent: bool = field(default=False, metadata=LATER)
    """Add back what means of the output over each section lack of the input; for whole factors."""
    allow_inexact: bool = False
    """Accept a model whose tiles do not join exactly; the report then says by how much."""
    overwrite: bool = False
    """Delete another job's output at the target first."""
    sections: str | None = field(default=None, metadata=LATER)
    """Section table of the source, from ``inspect --out``, or ``auto`` to inspect it first;
    default: sections are used as they are stored."""

    def __post_init__(self) -> None:
        """Turn text into values and check words."""
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, name, read_field(getattr(self, name), hint, name))

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

    def command(self) -> str:
        """Write the job as ``isochunk run`` takes it: what it says otherwise than by default.

        Where and how it is carried out is left out, but for a model that runs code of its own.
        """
        how = {f.name for f in fields(RunOptions)} - {"model", "trust"}
        words = ["isochunk", "run", self.source, self.target]
        for told in fields(self):
            value = getattr(self, told.name)
            default = None if told.default is MISSING else told.default
            if told.name in (*how, "source", "target") or value == default:
                continue
            name = option_of(told.name)
            words.append(name if value is True else f"{name}={_as_text(value)}")
        return shlex.join(words)

    def _repr_html_(self) -> str:
        """Show it in a notebook, as the command that it is."""
        return f"<pre>{escape(self.command())}</pre>"

    def untrusted(self, endpoint_url: str | None, requester_pays: str | None = None) -> Job:
        """Return the job as read from a target, without what would make this machine run code.

        That is a model that brings its own, and a cluster, since a client runs what a scheduler
        sends it. Nor is anybody billed who has not said so here.

        Args:
            endpoint_url: where this user, not that job, reached the target.
            requester_pays: whom this user, not that job, has billed.
        """
        return replace(
            self,
            endpoint_url=endpoint_url,
            requester_pays=requester_pays,
            trust=False,
            scheduler=None,
            cluster="local",
            workers=None,
        )


def _as_text(value: Any) -> str:
    if isinstance(value, Window):
        return f"{value.low:g},{value.high:g}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def change(job: Job, options: Mapping[str, Any]) -> Job:
    """Return a job that is carried out in another way.

    Args:
        job: what to do.
        options: fields of :class:`RunOptions`, as text or values.

    Raises:
        UsageError: a key is none of them, since the output would be another; or a bad value.
    """
    known = {f.name for f in fields(RunOptions)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise UsageError(
            f"{', '.join(unknown)} cannot be changed without changing the output; what can be is "
            f"{', '.join(sorted(known))}"
        )
    return replace(job, **options)
