"""The plan: everything that will be read, computed and written, known before any of it happens.

Pure: a plan is made of specs, and gives each block as integers. Block ``i`` of stage ``s`` is the
same box in every process that holds the plan.

Two target grids appear. The *anchored* grid has factor times the source's global coordinates; all
prediction happens there. The *stored* grid is what the target's format counts from; it differs by
the whole-voxel ``shift`` (an OME-Zarr array starts at 0 wherever it lies).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

from isochunk.core.codec import to_json
from isochunk.core.geometry import AXES, Box, Triple, factor_between, sub, target_box, triple
from isochunk.core.job import Job, Precision
from isochunk.core.spec import DTYPES, Format, Intensity, ModelSpec, VolumeSpec
from isochunk.errors import GeometryError, UsageError
from isochunk.planning.block import Block, BlockTask
from isochunk.planning.layout import Layout, Stage, block_box, block_count, lay_out

MAX_DEPTH = 4
"""Blocks in flight in one worker: reading, waiting, computing, writing."""

PROCESS_BYTES = 600 << 20
"""What a worker process holds besides blocks and tiles: libraries, and cached source chunks."""

ALLOCATOR_SLACK = 1.1
"""Resident memory over what tensors need at once, measured on 3D-SRU-Net."""

TASK_VOXELS = 1 << 26
"""Target voxels of one Dask task, at least, so that scheduling costs little."""

TASK_BLOCKS = 1024
"""Blocks of one Dask task, at most: what is redone if its worker or client dies."""

TASKS_PER_WORKER = 8
"""Tasks each worker should get, at least, so that the load evens out."""

MIN_TILE = 8
"""Smallest extent of a tile in target voxels."""

DEVICE_TILE_BYTES = 1 << 33
"""Largest working memory of a tile on a GPU: no tensor then has more than 2^31 elements, which is
as far as many CUDA kernels count."""


IDENTITY = ("source", "target", "intensity", "region", "shift", "stages", "mask", "precision")
"""Fields of a plan that decide the output's bytes; of the model, these do:"""
MODEL_IDENTITY = ("arch", "factor", "phase", "plane", "sha256")


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversion, fully resolved."""

    job: Job
    """What the user asked for; how and where to run is read from here."""
    source: VolumeSpec
    """What is read."""
    target: VolumeSpec
    """What is written, with all its levels."""
    model: ModelSpec
    """What computes, its factor resolved."""
    intensity: Intensity
    """Map between stored values and the model's, for the whole job."""
    region: Box
    """Source voxels that are converted."""
    shift: Triple
    """Stored target coordinate minus anchored target coordinate."""
    stages: tuple[Stage, ...]
    """In the order they run."""
    mask: VolumeSpec | None
    """Where this is all zero, a block stays background."""
    precision: Precision
    """Arithmetic of networks."""
    tile: Triple
    """Target voxels of one forward pass of a network."""
    depth: int
    """Blocks in flight in one worker."""

    def block(self, stage: int, index: int) -> Block:
        """Return block ``index`` of ``stage``."""
        s = self.stages[stage]
        grid = self.target.levels[s.writes[0]].box
        return Block(stage, index, block_box(grid, s.block, index))

    def block_count(self, stage: int) -> int:
        """Return the number of blocks of a stage."""
        s = self.stages[stage]
        return block_count(self.target.levels[s.writes[0]].box, s.block)

    @property
    def total_blocks(self) -> int:
        """Blocks of all stages."""
        return sum(self.block_count(s) for s in range(len(self.stages)))

    def anchored(self, stored: Box) -> Box:
        """Return where a stored box of the finest level lies on the grid of the model."""
        return stored.shift(sub((0, 0, 0), self.shift))

    def read_box(self, block: Block) -> Box:
        """Return the source box of a block of the first stage, halo included, unclipped."""
        return self.model.read_box(self.anchored(block.write))

    def tasks(self, stage: int, missing: Iterator[int], workers: int) -> Iterator[BlockTask]:
        """Group missing blocks into tasks, lazily, in order."""
        count = self.block_count(stage)
        by_size = TASK_VOXELS // math.prod(self.stages[stage].block)
        by_share = math.ceil(count / (TASKS_PER_WORKER * workers))
        size = max(1, min(by_size, by_share, TASK_BLOCKS))
        while batch := tuple(islice(missing, size)):
            run = range(batch[0], batch[-1] + 1)
            yield BlockTask(stage, run if len(run) == len(batch) else batch)

    def identity(self) -> dict[str, Any]:
        """Return what decides the output's bytes, as JSON; equal for the same job."""
        model = {name: to_json(getattr(self.model, name)) for name in MODEL_IDENTITY}
        return {**{name: to_json(getattr(self, name)) for name in IDENTITY}, "model": model}

    def summary(self) -> dict[str, Any]:
        """Return the JSON object of ``isochunk plan``."""
        read, needed = self.read_bytes()
        return {
            "source": describe(self.source),
            "target": describe(self.target),
            "model": self.model.name,
            "blocks": self.total_blocks,
            "block": list(self.stages[0].block),
            "tile": list(self.tile),
            "region": str(self.region),
            "halo": list(self.model.halo),
            "halo_overhead": round(self.halo_overhead(), 4),
            "bytes_read": read,
            "read_amplification": round(read / needed, 4),
            "bytes_written": self.bytes_written(),
            "objects_written": self.objects_written(),
            "worker_memory_bytes": self.worker_memory_bytes(),
            "exact": self.model.exact,
        }

    def block_bytes(self) -> int:
        """Return the host bytes that one block of the first stage holds while in flight."""
        write = math.prod(self.stages[0].block)
        read = math.prod(self.model.read_box(Box.from_shape(self.stages[0].block)).shape)
        return self.source.itemsize * (2 * read + math.ceil(write * 8 / 7))

    def worker_memory_bytes(self) -> int:
        """Return the peak host memory of one worker; a tile on a GPU is none of it."""
        tile = 0 if self.job.device == "cuda" else self.tile_bytes(self.tile)
        return PROCESS_BYTES + self.depth * self.block_bytes() + tile

    def tile_bytes(self, tile: Triple) -> int:
        """Return the working memory of one forward pass, as the allocator keeps it."""
        return int(math.prod(tile) * self.model.bytes_per_voxel * ALLOCATOR_SLACK)

    def bytes_written(self) -> int:
        """Return voxel bytes over all levels."""
        return sum(level.box.size for level in self.target.levels) * self.target.itemsize

    def objects_written(self) -> int:
        """Return stored objects over all levels."""
        return sum(block_count(v.box, v.object_shape) for v in self.target.levels)

    def halo_overhead(self) -> float:
        """Return source voxels read for halos, as a share of those converted."""
        read = math.prod(sum(hi - lo for lo, hi in axis) for axis in self.source_intervals())
        return read / self.region.size - 1

    def read_bytes(self) -> tuple[int, int]:
        """Return bytes of source chunks read (decoded, each block by itself) and bytes needed."""
        box, chunk = self.source.box, self.source.levels[0].chunk
        total = 1
        for axis, start, stop, c in zip(
            self.source_intervals(), box.lo, box.hi, chunk, strict=True
        ):
            spans = ((max(lo, start) - start, min(hi, stop) - start) for lo, hi in axis)
            total *= sum(min(math.ceil(hi / c) * c, stop - start) - lo // c * c for lo, hi in spans)
        return total * self.source.itemsize, self.region.size * self.source.itemsize

    def source_intervals(self) -> tuple[list[tuple[int, int]], ...]:
        """Return the source intervals that blocks read along each axis; boxes are their product."""
        grid, block = self.target.box, self.stages[0].block
        intervals = []
        for axis in range(3):
            along = []
            for lo in range(grid.lo[axis], grid.hi[axis], block[axis]):
                cut = Box(
                    triple(lo if a == axis else v for a, v in enumerate(grid.lo)),
                    triple(
                        min(lo + block[axis], v) if a == axis else v for a, v in enumerate(grid.hi)
                    ),
                )
                read = self.model.read_box(self.anchored(cut))
                along.append((read.lo[axis], read.hi[axis]))
            intervals.append(along)
        return tuple(intervals)


def describe(volume: VolumeSpec) -> dict[str, Any]:
    """Return the JSON object of ``isochunk info``; axes z, y, x."""
    finest = volume.levels[0]
    return {
        "url": volume.url,
        "format": volume.format,
        "shape": list(finest.box.shape),
        "dtype": volume.dtype,
        "spacing_nm": [float(s) for s in finest.spacing],
        "offset": list(finest.box.lo),
        "chunk": list(finest.chunk),
        "shard": list(finest.shard) if finest.shard else None,
        "encoding": volume.encoding,
        "levels": len(volume.levels),
    }


@dataclass(frozen=True, slots=True)
class Inputs:
    """What planning learned from outside before it plans."""

    source: VolumeSpec
    """The source as found."""
    model: ModelSpec
    """The model as found, its factor not yet resolved."""
    intensity: Intensity
    """As measured, or the full range."""
    target_url: str
    """Canonical URL of the target."""
    target_format: Format
    """Storage format of the target."""
    mask: VolumeSpec | None = None
    """The mask as found."""


def make_plan(job: Job, found: Inputs) -> Plan:
    """Resolve a job against what was found.

    Raises:
        UsageError: the job cannot be done; the message says what would work.
    """
    source = found.source
    if source.dtype not in DTYPES:
        raise UsageError(
            f"source {source.url} holds {source.dtype}; uint8 and uint16 are supported"
        )
    region = converted_region(job.box, source)
    spacing = job.spacing or found.model.target_spacing(source.spacing)
    factor = factor_between(source.spacing, spacing)
    model = found.model.for_factor(factor)
    if not model.exact and not job.allow_inexact:
        raise UsageError(
            f"model {model.name!r} cannot be tiled exactly; --allow-inexact accepts that, and the "
            "report then says how much tiles differ at their seams"
        )
    anchored = target_box(region, factor, source.box)
    shift, corner = placement(source, anchored, found.target_format, spacing=tuple(spacing))
    encoding = job.encoding or ("raw" if found.target_format == "precomputed" else "zstd")
    wish = Layout(
        found.target_format, job.chunk, job.shard, job.block, job.levels, lossy=encoding == "jpeg"
    )
    levels, stages = lay_out(anchored.shift(shift), spacing, wish)
    target = VolumeSpec(
        url=found.target_url,
        format=found.target_format,
        dtype=job.dtype or source.dtype,
        encoding=encoding,
        corner_nm=corner,
        levels=levels,
    )

    made = Plan(
        job=job,
        source=source,
        target=target,
        model=model,
        intensity=found.intensity,
        region=region,
        shift=shift,
        stages=stages,
        mask=found.mask,
        precision=job.precision,
        tile=stages[0].block,
        depth=MAX_DEPTH,
    )
    return fit_memory(made, job.memory)


def converted_region(box: Box | None, source: VolumeSpec) -> Box:
    """Return the source voxels to convert.

    Raises:
        GeometryError: the box reaches outside the volume.
    """
    if box is None:
        return source.box
    if box not in source.box:
        raise GeometryError(
            f"box {box} reaches outside the volume {source.box} of {source.url}; "
            f"--box {box & source.box if (box & source.box).size else source.box} works"
        )
    return box


def placement(
    source: VolumeSpec,
    anchored: Box,
    format: Format,
    spacing: tuple[Fraction, ...],
) -> tuple[Triple, tuple[Fraction, Fraction, Fraction]]:
    """Find the stored grid of the target.

    OME-Zarr arrays start at 0 and lie anywhere. A precomputed grid starts at 0 nm, so the source's
    corner must be a whole number of target voxels away; where it is not because the source's
    translation ignores the half voxel of OME's convention, the translation itself is used and the
    half voxel stays in ``corner_nm``, for the viewer to add.

    Returns:
        Shift from anchored to stored voxels, and ``corner_nm`` of the target.

    Raises:
        GeometryError: no whole voxel offset exists.
    """
    if format == "precomputed":
        centred = [c + s / 2 for c, s in zip(source.corner_nm, source.spacing, strict=True)]
        for position in (source.corner_nm, centred):
            steps = [p / s for p, s in zip(position, spacing, strict=True)]
            if all(step.denominator == 1 for step in steps):
                shift = triple(steps)
                break
        else:
            where = ", ".join(f"{a} {float(c):g}" for a, c in zip(AXES, centred, strict=True))
            raise GeometryError(
                f"the source's translation ({where} nm) is no whole number of target voxels, which "
                "precomputed cannot store; use --format ome-zarr"
            )
    else:
        shift = sub((0, 0, 0), anchored.lo)
    z, y, x = (c - h * s for c, h, s in zip(source.corner_nm, shift, spacing, strict=True))
    return shift, (z, y, x)


def fit_memory(made: Plan, memory: int) -> Plan:
    """Choose the deepest pipeline and the largest tile that fit a worker's memory.

    Args:
        made: a plan of any depth and tile.
        memory: bytes of one worker.

    Raises:
        UsageError: not even one block and one small tile fit.
    """
    tile = block_tile(made)
    for depth in range(MAX_DEPTH, 0, -1):
        plan = replace(made, depth=depth, tile=tile)
        if plan.worker_memory_bytes() <= memory:
            return plan
        if depth > 2:  # noqa: PLR2004 - reading while computing is worth more than a large tile
            continue
        small: Triple | None = tile
        while plan.worker_memory_bytes() > memory and (small := half_tile(made, plan.tile)):
            plan = replace(plan, tile=small)
        if plan.worker_memory_bytes() <= memory:
            return plan
    raise UsageError(
        f"one tile of model {made.model.name!r} and one block {made.stages[0].block} need "
        f"{plan.worker_memory_bytes() / 2**20:.0f} MiB a worker but --memory is "
        f"{memory / 2**20:.0f} MiB; raise --memory or choose a smaller --block"
    )


def device_tile(made: Plan, device_bytes: int) -> Triple:
    """Return the largest tile of a block that fits a GPU, by what the model is known to need."""
    tile = block_tile(made)
    limit = min(device_bytes, DEVICE_TILE_BYTES)
    while made.tile_bytes(tile) > limit and (small := half_tile(made, tile)):
        tile = small
    return tile


def block_tile(made: Plan) -> Triple:
    """Return the tile that covers a whole block, in whole cells of the model's alignment."""
    steps = tile_steps(made.model)
    return triple(-(-b // s) * s for b, s in zip(made.stages[0].block, steps, strict=True))


def half_tile(made: Plan, tile: Triple) -> Triple | None:
    """Halve a tile along its longest axis; None if it is as small as can be, or costs nothing."""
    steps = tile_steps(made.model)
    axis = max(range(3), key=lambda a: tile[a])
    half = -(-tile[axis] // 2 // steps[axis]) * steps[axis]
    if half < MIN_TILE or half >= tile[axis] or not made.model.bytes_per_voxel:
        return None
    return triple(half if a == axis else n for a, n in enumerate(tile))


def tile_steps(model: ModelSpec) -> Triple:
    """Return the target voxels by which a tile's extents grow."""
    strides = (g * r for g, r in zip(model.alignment, model.resolved_factor, strict=True))
    return triple(s if s.denominator == 1 else 1 for s in strides)
