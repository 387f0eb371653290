"""The one loop behind every run: what is missing goes out, what is done is recorded."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from isochunk.block import BlockReport, BlockTask
from isochunk.engine.report import Report, Seam
from isochunk.errors import StorageError
from isochunk.geometry import Box, Triple, triple
from isochunk.layout import blocks_over
from isochunk.planning import Plan
from isochunk.process import finer
from isochunk.storage.ledger import Ledger

log = logging.getLogger(__name__)

FLUSH_S = 0.5
"""Finished blocks are recorded at least this often: what a killed client may have to redo."""

SEAM_EXTENT = 32
"""Extent of the boxes compared across seams, in target voxels."""

SEAM_BOXES = 4
"""Boxes compared in a large job; one per 32 blocks in a small one."""


class Backend(Protocol):
    """Somewhere that blocks run."""

    @property
    def workers(self) -> int:
        """Worker processes now."""
        ...

    def map(self, tasks: Iterator[BlockTask]) -> Iterator[list[BlockReport]]:
        """Run tasks through a sliding window; yield reports as they come, and [] while waiting."""
        ...

    def compare(self, boxes: list[Box]) -> Iterator[Seam]:
        """Predict stored target boxes as one tile each and compare with what is stored."""
        ...


def execute(
    plan: Plan, ledger: Ledger, backend: Backend, watch: Callable[[Report], None]
) -> Report:
    """Run every block that is missing and runnable.

    Args:
        plan: what to do.
        ledger: what is done; finished blocks are recorded in it.
        backend: where blocks run.
        watch: called often with the report so far.

    Returns:
        The report. Failed blocks are counted in it and stay missing in the ledger.
    """
    resumed = ledger.count()
    report = Report(total=plan.total_blocks, resumed=resumed, done=resumed)
    flushed = time.monotonic()
    for stage in range(len(plan.stages)):
        ready = (i for i in ledger.missing(stage) if runnable(plan, ledger, stage, i))
        for reports in backend.map(plan.tasks(stage, ready, backend.workers)):
            ledger.add(r for r in reports if r.error is None)
            report += reports
            if time.monotonic() - flushed >= FLUSH_S:
                ledger.flush()
                flushed = time.monotonic()
            watch(report)
    ledger.fold()
    # Blocks that never ran because one they read failed are not done either.
    report = replace(report, failed=report.total - report.done)
    report = replace(report, seam=measure_seam(plan, ledger, backend))
    report += []
    watch(report)
    return report


def measure_seam(plan: Plan, ledger: Ledger, backend: Backend) -> Seam | None:
    """Compare what is stored across seams with single tiles; None if that cannot be done."""
    boxes = seam_boxes(plan, ledger)
    if not boxes:
        return None
    try:
        return sum(backend.compare(boxes), Seam())
    except StorageError as error:
        log.warning("the seam could not be measured: %s", error)
        return None


def runnable(plan: Plan, ledger: Ledger, stage: int, index: int) -> bool:
    """Tell whether all blocks of the stage before that a block reads are done."""
    reads = plan.stages[stage].reads
    if reads is None:
        return True
    levels = plan.target.levels
    box = finer(plan.block(stage, index).write, levels[reads], levels[reads + 1])[0]
    return all(ledger.tables[stage - 1].done[i] for i in writers(plan, stage - 1, reads, box))


def writers(plan: Plan, stage: int, level: int, box: Box) -> Iterator[int]:
    """Yield the blocks of a stage that write a box of one of its levels."""
    levels, first = plan.target.levels, plan.stages[stage].writes[0]
    for number in range(level, first, -1):
        box = finer(box, levels[number - 1], levels[number])[0]
    return blocks_over(levels[first].box, plan.stages[stage].block, box)


def seam_boxes(plan: Plan, ledger: Ledger) -> list[Box]:
    """Choose boxes centred where blocks meet, among blocks that are stored and not background."""
    if plan.target.lossy:
        return []  # a difference would be the codec's, not a seam
    wanted = min(SEAM_BOXES, 1 + plan.block_count(0) // 32)
    table, grid, block = ledger.tables[0], plan.target.box, plan.stages[0].block
    chosen = []
    for corner in itertools.islice(corners(grid, block), 64):
        half = triple(min(SEAM_EXTENT // 2, n) for n in grid.shape)
        box = Box(corner, corner).grow(half) & grid
        over = list(blocks_over(grid, block, box))
        if len(over) > 1 and all(table.done[i] and not table.empty[i] for i in over):
            chosen.append(box)
        if len(chosen) == wanted:
            break
    return chosen


def corners(grid: Box, block: Triple) -> Iterator[Triple]:
    """Yield points where blocks meet, spread over the grid by a fixed stride."""
    inner = [
        range(lo + b, hi, b) or ((lo + hi) // 2,)
        for lo, hi, b in zip(grid.lo, grid.hi, block, strict=True)
    ]
    count = len(inner[0]) * len(inner[1]) * len(inner[2])
    stride = next(s for s in (7919, 104729, 1299709) if count % s)
    for i in range(count):
        z, rest = divmod(i * stride % count, len(inner[1]) * len(inner[2]))
        y, x = divmod(rest, len(inner[2]))
        yield (inner[0][z], inner[1][y], inner[2][x])
