"""Stored blocks compared with what is recorded of them, several at a time in one process.

The ledger holds one checksum a block, of its finest level. Coarser levels of a block need none:
they must equal the pooled finer level that was just verified. So every object is read once, and
what must be known of a block beforehand fits into five bytes.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from isochunk.core.geometry import Box, Triple
from isochunk.core.limits import PROCESS_BYTES, WHOLE_OBJECTS_BYTES
from isochunk.core.voxels import Voxels, checksum
from isochunk.engine.holes import ABSENT, Finding, Hole, all_holes, hole_of, holes_in
from isochunk.engine.ledger import EMPTY, LOST, RECORDED, STORED
from isochunk.engine.pipeline import block_levels, pyramid
from isochunk.errors import StorageError
from isochunk.planning.block import Block
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access
from isochunk.storage.keys import object_boxes, object_key
from isochunk.storage.open import open_store, open_target
from isochunk.storage.volume import ObjectStore, WritableVolume

READERS = 4
"""Blocks that one process reads at the same time, where its memory is enough for them."""

BLOCK_COPIES = 2
"""Memory of a block that is read, relative to its finest level: that, what is stored of the coarser
levels and what it should be, and an object that is looked at by itself."""

NOT_FINISHED = Finding("missing", "its block was never finished")
DIFFERS = Finding("corrupt", "the voxels differ from the recorded checksum")
NOT_BACKGROUND = Finding("corrupt", "the record says background, and the object holds more")
DIFFERS_FROM_FINER = Finding("corrupt", "the voxels differ from those of the finer level")


@dataclass(frozen=True, slots=True)
class AuditTask:
    """Some blocks of one stage and what is recorded of them: all that a Dask task carries."""

    stage: int
    """Stage of all blocks."""
    blocks: Sequence[int]
    """Numbers of the blocks."""
    recorded: bytes
    """A row of :data:`~isochunk.engine.ledger.RECORDED` for each."""


@dataclass(frozen=True, slots=True)
class Audited:
    """What was found of some blocks of a stage: all that comes back of them."""

    blocks: int = 0
    """Blocks that were looked at."""
    stored: int = 0
    """Those of them that are recorded as stored, and so were read; the others take little time."""
    holes: tuple[Hole, ...] = ()
    """Objects that are not what they should be."""

    def without(self, blocks: set[int]) -> Audited:
        """Leave out blocks that will be looked at again."""
        holes = tuple(hole for hole in self.holes if hole.block not in blocks)
        return replace(self, blocks=self.blocks - len(blocks), holes=holes)


NOTHING_AUDITED = Audited()
"""Said while waiting."""


class Auditor:
    """Compares single blocks with the record; any thread may ask it to."""

    def __init__(self, plan: Plan, target: WritableVolume, store: ObjectStore) -> None:
        """Take what the target should hold, its voxels, and the objects that hold them."""
        self.plan = plan
        self.target = target
        self.store = store
        self._zeros: dict[Triple, int] = {}

    def block(self, block: Block, recorded: NDArray[np.void]) -> list[Hole]:
        """Return every hole in what a block wrote.

        Args:
            block: the block.
            recorded: its row of :data:`~isochunk.engine.ledger.RECORDED`.
        """
        try:
            return list(self._compare(block, int(recorded["state"]), int(recorded["checksum"])))
        except (StorageError, MemoryError) as error:
            return list(all_holes(self.plan, block, Finding.of(error)))

    def _compare(self, block: Block, state: int, recorded: int) -> Iterator[Hole]:
        (first, box), *coarser = block_levels(self.plan, block)
        if state == LOST:
            yield from all_holes(self.plan, block, NOT_FINISHED)
            return
        if state == EMPTY and recorded == self._zeros_checksum(box.shape):
            if not self._bare(block):
                yield from self._not_background(block)
            return
        finest = self._read(box, first)
        if isinstance(finest, StorageError) or checksum(finest) != recorded:
            yield from self._search(block, first, box, finest)
            for level, part in coarser:  # nothing to compare them with, but they must decode
                yield from self._unreadable(block, level, part)
            return
        wanted = pyramid(self.plan, block, finest)[1:]
        for (level, part), voxels in zip(coarser, wanted, strict=True):
            stored = self._read(part, level)
            if isinstance(stored, StorageError):
                yield from self._search(block, level, part, stored)
            elif not np.array_equal(stored, voxels):
                yield from self._differing(block, level, part, stored != voxels)

    def _zeros_checksum(self, shape: Triple) -> int:
        """Return the checksum of a block of background; blocks have few shapes."""
        if shape not in self._zeros:
            self._zeros[shape] = checksum(np.zeros(shape, self.plan.target.dtype))
        return self._zeros[shape]

    def _bare(self, block: Block) -> bool:
        """Tell whether none of a block's objects exists: it then reads as background.

        One that exists all the same is transferred, so only few are asked for at a time.
        """
        for level, part in block_levels(self.plan, block):
            scale = self.plan.target.levels[level]
            size = math.prod(scale.object_shape) * self.plan.target.itemsize
            cells = object_boxes(scale, part)
            while some := list(islice(cells, max(1, WHOLE_OBJECTS_BYTES // size))):
                keys = [object_key(self.plan.target, level, cell) for cell in some]
                if any(content is not None for content in self.store.get_all(keys)):
                    return False
        return True

    def _not_background(self, block: Block) -> Iterator[Hole]:
        """Name the objects of a block of background that hold anything else, or cannot be read."""
        for level, part in block_levels(self.plan, block):
            for cell in object_boxes(self.plan.target.levels[level], part):
                found = self._read(cell, level)
                if isinstance(found, StorageError):
                    yield hole_of(self.plan, block, level, cell, Finding.of(found))
                elif found.any():
                    yield hole_of(self.plan, block, level, cell, NOT_BACKGROUND)

    def _read(self, box: Box, level: int) -> Voxels | StorageError:
        """Read a box, or return why it cannot be read."""
        try:
            return self.target.read(box, level)
        except StorageError as error:
            return error

    def _search(
        self, block: Block, level: int, box: Box, found: Voxels | StorageError
    ) -> Iterator[Hole]:
        """Name the objects to blame for a box that reads wrong or not at all.

        Where all are there and decode, one checksum cannot tell them apart, and all are named.
        """
        blamed = list(self._unreadable(block, level, box))
        if blamed:
            yield from blamed
        elif isinstance(found, StorageError):  # it can be read by now
            finding = Finding("unread", str(found), transient=True)
            yield from holes_in(self.plan, block, level, box, finding)
        else:
            yield from holes_in(self.plan, block, level, box, DIFFERS)

    def _unreadable(self, block: Block, level: int, box: Box) -> Iterator[Hole]:
        """Name the objects of a box that are absent, or cannot be read."""
        for cell in object_boxes(self.plan.target.levels[level], box):
            found = self._read(cell, level)
            if isinstance(found, StorageError):
                yield hole_of(self.plan, block, level, cell, Finding.of(found))
            elif not found.any() and not self._exists(level, cell):
                yield hole_of(self.plan, block, level, cell, ABSENT)

    def _differing(
        self, block: Block, level: int, box: Box, wrong: NDArray[np.bool_]
    ) -> Iterator[Hole]:
        """Name the objects of a coarse level that differ from the pooled finer level."""
        for cell in object_boxes(self.plan.target.levels[level], box):
            if wrong[cell.slices(box.lo)].any():
                there = self._exists(level, cell)
                yield hole_of(
                    self.plan, block, level, cell, DIFFERS_FROM_FINER if there else ABSENT
                )

    def _exists(self, level: int, cell: Box) -> bool:
        return self.store.exists(object_key(self.plan.target, level, cell))


def open_auditor(plan: Plan, url: str, access: Access) -> Auditor:
    """Open what compares the blocks of a plan's target, whose objects are below a URL."""
    return Auditor(plan, open_target(plan.target, access), open_store(url, access))


def readers(plan: Plan, memory_bytes: int | None) -> int:
    """Return how many blocks may be read at the same time.

    Args:
        plan: what is read.
        memory_bytes: what the process may use; None where that is not known.
    """
    if memory_bytes is None:
        return READERS
    largest = max(math.prod(stage.block) for stage in plan.stages) * plan.target.itemsize
    return max(1, min(READERS, (memory_bytes - PROCESS_BYTES) // (BLOCK_COPIES * largest)))


class AuditPool:
    """Compares blocks in threads of this process. Use it as a context manager."""

    def __init__(self, auditor: Auditor, readers: int) -> None:
        """Take what compares, and how many blocks it may read at the same time."""
        self.auditor = auditor
        self.readers = readers
        self._threads = ThreadPoolExecutor(readers, "isochunk-audit")
        self.task_slots = threading.Semaphore(2)
        """Held by a task while it runs here; the second keeps the threads busy between tasks."""

    def __enter__(self) -> AuditPool:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what has not started and wait for what has."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def abandon(self) -> None:
        """Drop what has not started and let the rest end by itself: it may hang."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def run(self, task: AuditTask) -> Audited:
        """Compare the blocks of a task."""
        started = list(self.start(task))
        found = [future.result() for future in started]
        stored = np.frombuffer(task.recorded, RECORDED)["state"] == STORED
        return Audited(len(found), int(stored.sum()), tuple(chain.from_iterable(found)))

    def start(self, task: AuditTask) -> Iterator[Future[list[Hole]]]:
        """Start the blocks of a task, each as it is asked for."""
        for index, row in zip(task.blocks, np.frombuffer(task.recorded, RECORDED), strict=True):
            block = self.auditor.plan.block(task.stage, index)
            yield self._threads.submit(self.auditor.block, block, row)
