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
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isochunk.core.codec import LATER, to_json
from isochunk.core.encodings import encoded_share
from isochunk.core.geometry import Box, Triple, sub, triple
from isochunk.core.job import Device, FoundDevice, Job, Precision
from isochunk.core.limits import (
    ALLOCATOR_SLACK,
    DEVICE_PAGE,
    DEVICE_PIXELS_AT_ONCE,
    DEVICE_SLACK,
    PROCESS_BYTES,
    TASK_BLOCKS,
    TASK_VOXELS,
    TASKS_PER_WORKER,
    TRACER_BYTES,
    WORKSPACE,
)
from isochunk.core.mending import Mending
from isochunk.core.precisions import INTERPOLATED, WORTH, Worth
from isochunk.core.sections import SectionTable
from isochunk.core.sentence import as_html
from isochunk.core.spec import Intensity, ModelSpec, VolumeSpec
from isochunk.core.tile_costs import TileCost, TileCosts
from isochunk.core.window import Window
from isochunk.models.interpolation import INTERPOLATIONS
from isochunk.planning.block import Block, BlockTask
from isochunk.planning.layout import Stage, block_box, block_count
from isochunk.planning.sentences import planned, to_mind

IDEAL_CELLS = 1000
"""Tiles in a row, in each direction, whose halo is nothing beside them."""

GREY_BYTES = 4
"""Bytes of a voxel whose grey level is not rounded, by a window or by mending: float32."""

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
    costs: TileCosts | None = field(
        default=None, compare=False, repr=False, metadata={"stored_as": None}
    )
    """What tiles of the model cost; None for interpolations, and a plan read from its record."""
    with_twice_the_memory: tuple[Triple, Triple, float] | None = field(
        default=None, compare=False, repr=False, metadata={"stored_as": None}
    )
    """Block, tile and compute overhead if workers had twice the memory; None where not known."""

    window: Window | None = field(default=None, metadata=LATER)
    """Which stored values become black and white; None where they are used as they are."""
    sections: SectionTable | None = field(default=None, metadata=LATER)
    """Which source sections are not used as they are stored; None where all are."""
    mending: Mending | None = field(
        init=False, compare=False, repr=False, metadata={"stored_as": None}
    )
    """How source sections are used that are not used as they are stored; None if none is. Derived
    once, since what a block takes is asked again and again."""
    examined_by: str = field(default="", compare=False, repr=False, metadata={"stored_as": None})
    """Version of the torch that examined the model when this was planned; empty for a plan read
    from its record, whose model is examined again."""
    found_device: FoundDevice | None = field(
        default=None, compare=False, repr=False, metadata={"stored_as": None}
    )
    """What workers were found to have, for a job that leaves it open; None where they have not been
    asked. Never stored: whoever takes the job up may have other machines."""

    def __post_init__(self) -> None:
        """Derive how sections are mended.

        Raises:
            UsageError: the section table is not one of the source.
        """
        found = None
        if self.sections is not None:
            made = Mending.of(self.sections, self.source.box.lo[0], self.source.box.hi[0])
            found = made if made.changes else None
        object.__setattr__(self, "mending", found)

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

    def tasks(
        self, stage: int, missing: Iterator[int], workers: int, left: int | None = None
    ) -> Iterator[BlockTask]:
        """Group missing blocks into tasks, lazily, in order.

        Tasks shrink with what is left (guided self-scheduling, Polychronopoulos and Kuck 1987), so
        that at the end no worker has much to do while others have nothing.

        Args:
            stage: whose blocks.
            missing: their numbers.
            workers: worker processes that share them.
            left: how many blocks are missing, about; None for all of the stage.
        """
        left = self.block_count(stage) if left is None else left
        by_size = TASK_VOXELS // math.prod(self.stages[stage].block)

        def size() -> int:
            return max(1, min(by_size, math.ceil(left / (TASKS_PER_WORKER * workers)), TASK_BLOCKS))

        while batch := tuple(islice(missing, size())):
            left -= len(batch)
            run = range(batch[0], batch[-1] + 1)
            yield BlockTask(stage, run if len(run) == len(batch) else batch)

    def identity(self) -> dict[str, Any]:
        """Return what decides the output's bytes, as JSON; equal for the same job."""
        model = {name: to_json(getattr(self.model, name)) for name in MODEL_IDENTITY}
        found = {**{name: to_json(getattr(self, name)) for name in IDENTITY}, "model": model}
        for read in filter(None, (found["source"], found["mask"])):
            del read["encoding"]  # voxels are what they are, and its name here has changed
        if self.window is not None:
            found["window"] = self.window.summary()
        if self.sections is not None and self.mending is not None:
            found["sections"] = {**self.sections.effects(), "digest": self.sections.digest}
        if self.job.consistent:
            found["consistent"] = True
        return found

    def summary(self) -> dict[str, Any]:
        """Return the JSON object of ``isochunk plan``."""
        read, needed = self.read_bytes()
        return {
            "source": self.source.summary(),
            "target": self.target.summary(),
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
            "bytes_stored": self.bytes_stored(),
            "objects_written": self.objects_written(),
            "compute_overhead": round(self.compute_overhead(), 4),
            "with_twice_the_memory": self._alternative(),
            "padded_because": self.model.padded_because,
            "worker_memory_bytes": self.worker_memory_bytes(),
            "exact": self.model.exact,
            "identical_to_fp32": self._identical(),
            "window": None if self.window is None else self.window.summary(),
            "sections": self.sections_summary(),
            "invented_voxels": self.invented_voxels(),
        }

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        found = self.summary()
        return as_html("plan", (*planned(found), *to_mind(found)))

    @property
    def grey_dtype(self) -> str:
        """Type whose range the model's grey levels have: stored ones, or those of the window."""
        return self.source.dtype if self.window is None else self.target.dtype

    def invented_voxels(self) -> int:
        """Return the target voxels of full resolution that lie in sections filled from others."""
        grid, mending = self.anchored(self.target.box), self.mending
        if mending is None:
            return 0
        planes = mending.filled_planes(grid.lo[0], grid.hi[0], self.model.resolved_factor[0])
        return planes * math.prod(grid.shape[1:])

    def sections_summary(self) -> dict[str, Any] | None:
        """Return as JSON which sections are mended; None where none is."""
        if self.sections is None:
            return None
        lost = [s.z for s in self.sections.sections if s.lost]
        return {
            "digest": self.sections.digest,
            "lost": lost,
            "corrected": len(self.sections.effects()) - len(lost),
        }

    def _identical(self) -> float | None:
        """Return the share of voxels expected as in fp32; None where that is not known."""
        known = self.precision == "fp32" or self.model.residual
        return self.worth.identical_to_fp32 if known and self.worth else None

    @property
    def worth(self) -> Worth | None:
        """What the arithmetic is worth; None for a model that is not tiled exactly."""
        if not self.model.exact:
            return None
        return WORTH[self.precision] if self.is_network else INTERPOLATED

    def _alternative(self) -> dict[str, Any] | None:
        if self.with_twice_the_memory is None:
            return None
        block, tile, overhead = self.with_twice_the_memory
        return {"block": list(block), "tile": list(tile), "compute_overhead": round(overhead, 4)}

    def block_bytes(self) -> int:
        """Return the host bytes that one block of the first stage holds while in flight."""
        (read, write), size = self._block_voxels(), np.dtype(self.grey_dtype).itemsize
        held, stored = 2 * self._read_itemsize * read, read
        if self.mending is not None:
            stored = self._block_read().grow((self.mending.longest, 0, 0)).size
            held += (size if self.window is None else GREY_BYTES) * stored
        if self.window is not None:
            held += self.source.itemsize * stored
        pinned = 0
        if self.on_gpu:
            # Pinned memory, by which a block gets to a GPU and back, is kept in powers of two.
            pinned = power_of_two(self._read_itemsize * read) + power_of_two(size * write)
        return held + size * math.ceil(write * 8 / 7) + pinned

    def block_device_bytes(self) -> int:
        """Return the bytes of a GPU that one block of the first stage holds while in flight."""
        sizes = (self._read_itemsize, np.dtype(self.grey_dtype).itemsize)
        return sum(
            math.ceil(size * voxels / DEVICE_PAGE) * DEVICE_PAGE
            for size, voxels in zip(sizes, self._block_voxels(), strict=True)
        )

    def _block_voxels(self) -> tuple[int, int]:
        """Return the source voxels that a block of the first stage needs, and those it makes."""
        return self._block_read().size, math.prod(self.stages[0].block)

    def _block_read(self) -> Box:
        """Return the shape of what a block of the first stage needs, as a box."""
        return self.model.read_box(Box.from_shape(self.stages[0].block))

    @property
    def _read_itemsize(self) -> int:
        """Bytes of a voxel on its way to the model."""
        rounded = self.mending is None and self.window is None
        return self.source.itemsize if rounded else GREY_BYTES

    @property
    def is_network(self) -> bool:
        """Whether a network computes; interpolations need neither torch nor a device."""
        return self.model.arch not in INTERPOLATIONS

    @property
    def device(self) -> Device:
        """Where the network runs; ``auto`` where that is not known yet."""
        return self.found_device or "auto" if self.job.device == "auto" else self.job.device

    @property
    def on_gpu(self) -> bool:
        """Whether a network is known to run on a GPU."""
        return self.is_network and self.device == "cuda"

    def worker_memory_bytes(self, tile_bytes: int | None = None) -> int:
        """Return the peak host memory of one worker; a tile on a GPU is none of it.

        Args:
            tile_bytes: what a tile takes; None for what the plan's own does.
        """
        if tile_bytes is None:
            tile_bytes = 0 if self.on_gpu else self.tile_bytes(self.tile)
        process = PROCESS_BYTES + TRACER_BYTES * (self.model.arch == "module")
        return process + self.depth * self.block_bytes() + tile_bytes

    def tile_bytes(self, tile: Triple) -> int:
        """Return the working memory of one forward pass, as the allocator keeps it."""
        return int(self.tile_costs(np.array([tile]))[1][0])

    def tile_cost(self, tile: Triple) -> TileCost:
        """Return what one forward pass costs, its memory as the allocator keeps it."""
        return TileCost(*(float(values[0]) for values in self.tile_costs(np.array([tile]))))

    def tile_costs(self, tiles: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
        """Return what many tiles cost; roughly, for a plan read from its record.

        Args:
            tiles: (n, 3) shapes in target voxels.

        Returns:
            Multiply-adds, bytes as the allocator keeps them, and elements of the largest tensor,
            (n,) each.
        """
        if self.costs is not None:
            costs, slack = self.costs, ALLOCATOR_SLACK
            if self.on_gpu:
                costs, slack = costs.with_pixels(DEVICE_PIXELS_AT_ONCE), DEVICE_SLACK
            macs, size, elements = costs.of_many(tiles)
            # Whole bytes, so that what is planned fits what was planned with to the last one.
            return macs, np.ceil(np.rint(size) * slack), elements
        voxels = np.prod(tiles, axis=1).astype(np.float64)
        size = voxels * self.model.bytes_per_voxel / WORKSPACE
        return voxels * self.model.macs_per_voxel, np.ceil(size * ALLOCATOR_SLACK), size / 4

    def compute_overhead(self) -> float:
        """Return the multiply-adds done for halos, as a share of those without any."""
        if self.costs is None or not self.model.bytes_per_voxel:
            return 0.0
        large = triple(IDEAL_CELLS * n for n in self.tile)
        ideal = self.costs.of(large).macs / math.prod(large)
        return self.costs.of(self.tile).macs / math.prod(self.tile) / ideal - 1 if ideal else 0.0

    def bytes_written(self) -> int:
        """Return voxel bytes over all levels."""
        return sum(level.box.size for level in self.target.levels) * self.target.itemsize

    @property
    def encoded_share(self) -> float:
        """Bytes stored over voxel bytes, as measured of EM that networks restored."""
        return encoded_share(self.target.encoding, self.target.dtype)

    def bytes_stored(self) -> int:
        """Return bytes stored over all levels, about."""
        return round(self.bytes_written() * self.encoded_share)

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
        grid, block, mending = self.target.box, self.stages[0].block, self.mending
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
                lo, hi = read.lo[axis], read.hi[axis]
                if axis == 0 and mending is not None:  # so that lost sections can be filled
                    first, end = mending.needs(lo, hi)
                    lo, hi = min(lo, first), max(hi, end)
                along.append((lo, hi))
            intervals.append(along)
        return tuple(intervals)


def power_of_two(number: int) -> int:
    """Return the least power of two that is no less than a number."""
    return 1 << max(0, number - 1).bit_length()
