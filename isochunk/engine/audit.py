"""Proof that a target is complete: every object is read again and compared with the record.

The ledger holds one checksum a block, of its finest level. Coarser levels of a block need none:
they must equal the pooled finer level that was just verified.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from isochunk.core.geometry import Box
from isochunk.core.voxels import Voxels, checksum
from isochunk.engine.ledger import Ledger
from isochunk.engine.pipeline import block_levels, pyramid
from isochunk.errors import NotFoundError, StorageError
from isochunk.planning.block import Block
from isochunk.planning.plan import Plan
from isochunk.storage.keys import object_boxes, object_key
from isochunk.storage.volume import ObjectStore, WritableVolume

READERS = 4
"""Blocks read at the same time."""


@dataclass(frozen=True, slots=True)
class Hole:
    """A stored object that is not what it should be."""

    stage: int
    """Stage of the block it belongs to."""
    block: int
    """Number of that block."""
    level: int
    """Level the object belongs to."""
    box: Box
    """Voxels of the object on that level's grid."""
    object: str
    """Key below the target's URL."""
    kind: str
    """``missing`` or ``corrupt``."""
    reason: str
    """What was found."""

    def summary(self) -> dict[str, Any]:
        """Return the hole as JSON."""
        return {
            "object": self.object,
            "level": self.level,
            "box": str(self.box),
            "stage": self.stage,
            "block": self.block,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found."""

    expected: int
    """Objects that cover the target; those of background alone are known to be absent."""
    holes: tuple[Hole, ...]
    """Objects that are missing or corrupt."""

    @property
    def complete(self) -> bool:
        """Whether every object decodes to the recorded voxels."""
        return not self.holes

    def summary(self) -> dict[str, Any]:
        """Return the JSON object of ``isochunk audit``."""
        return {
            "complete": self.complete,
            "expected": self.expected,
            "missing": [h.summary() for h in self.holes if h.kind == "missing"],
            "corrupt": [h.summary() for h in self.holes if h.kind == "corrupt"],
        }


def audit_target(auditor: Auditor, watch: Callable[[int], None] = lambda _: None) -> AuditReport:
    """Read every block of every level and compare.

    Args:
        auditor: the target and its record.
        watch: called with the number of blocks read so far.
    """
    plan = auditor.plan
    expected, holes, read = 0, [], 0
    blocks = (
        plan.block(stage, index)
        for stage in range(len(plan.stages))
        for index in range(plan.block_count(stage))
    )
    with ThreadPoolExecutor(READERS, "isochunk-audit") as pool:
        in_flight: deque[Future[list[Hole]]] = deque()
        for block in blocks:
            expected += sum(
                1
                for level, box in block_levels(plan, block)
                for _ in object_boxes(plan.target.levels[level], box)
            )
            in_flight.append(pool.submit(lambda b: list(auditor.block(b)), block))
            if len(in_flight) > READERS:
                holes += in_flight.popleft().result()
                read += 1
                watch(read)
        for future in in_flight:
            holes += future.result()
            read += 1
            watch(read)
    return AuditReport(expected, tuple(holes))


@dataclass(frozen=True, slots=True)
class Auditor:
    """Compares blocks with the record."""

    plan: Plan
    """What the target should hold."""
    ledger: Ledger
    """The recorded checksums."""
    target: WritableVolume
    """The voxels."""
    store: ObjectStore
    """The objects that hold them."""

    def block(self, block: Block) -> Iterator[Hole]:
        """Yield every hole in what a block wrote."""
        (first, box), *coarser = block_levels(self.plan, block)
        table = self.ledger.tables[block.stage]
        if not table.done[block.index]:
            for level, part in ((first, box), *coarser):
                yield from self._all(block, level, part, "missing", "its block was never finished")
            return
        finest = self._read(box, first)
        if finest is None or checksum(finest) != int(table.checksum[block.index]):
            yield from self._search(block, first, box)
            for level, part in coarser:  # nothing to compare them with, but they must decode
                yield from self._unreadable(block, level, part)
            return
        wanted = pyramid(self.plan, block, finest)[1:]
        for (level, part), voxels in zip(coarser, wanted, strict=True):
            stored = self._read(part, level)
            if stored is None:
                yield from self._search(block, level, part)
            elif not np.array_equal(stored, voxels):
                yield from self._differing(block, level, part, stored != voxels)

    def _read(self, box: Box, level: int) -> Voxels | None:
        """Read a box; None if any of its objects does not decode."""
        try:
            return self.target.read(box, level)
        except StorageError:
            return None

    def _search(self, block: Block, level: int, box: Box) -> Iterator[Hole]:
        """Name the objects to blame for a box that reads wrong.

        Where all are there and decode, one checksum cannot tell them apart, and all are named.
        """
        blamed = list(self._unreadable(block, level, box))
        if not blamed:
            reason = "the voxels differ from the recorded checksum"
            blamed = list(self._all(block, level, box, "corrupt", reason))
        yield from blamed

    def _unreadable(self, block: Block, level: int, box: Box) -> Iterator[Hole]:
        """Name the objects of a box that are absent or do not decode."""
        for cell in object_boxes(self.plan.target.levels[level], box):
            try:
                voxels = self.target.read(cell, level)
            except NotFoundError as error:
                yield self._hole(block, level, cell, "missing", str(error))
            except StorageError as error:
                yield self._hole(block, level, cell, "corrupt", str(error))
            else:
                if not voxels.any() and not self._exists(level, cell):
                    yield self._hole(block, level, cell, "missing", "the object is absent")

    def _differing(
        self, block: Block, level: int, box: Box, wrong: np.ndarray[Any, np.dtype[np.bool_]]
    ) -> Iterator[Hole]:
        """Name the objects of a coarse level that differ from the pooled finer level."""
        for cell in object_boxes(self.plan.target.levels[level], box):
            if wrong[cell.slices(box.lo)].any():
                if self._exists(level, cell):
                    reason = "the voxels differ from those of the finer level"
                    yield self._hole(block, level, cell, "corrupt", reason)
                else:
                    yield self._hole(block, level, cell, "missing", "the object is absent")

    def _exists(self, level: int, cell: Box) -> bool:
        return self.store.exists(object_key(self.plan.target, level, cell))

    def _all(self, block: Block, level: int, box: Box, kind: str, reason: str) -> Iterator[Hole]:
        for cell in object_boxes(self.plan.target.levels[level], box):
            yield self._hole(block, level, cell, kind, reason)

    def _hole(self, block: Block, level: int, cell: Box, kind: str, reason: str) -> Hole:
        key = object_key(self.plan.target, level, cell)
        return Hole(block.stage, block.index, level, cell, key, kind, reason)
