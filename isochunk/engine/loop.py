"""The one loop behind every run: what is missing goes out, what is done is recorded."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from isochunk.core.consistency import Consistency
from isochunk.core.geometry import Box, Triple, spread, triple
from isochunk.core.gpus import wrong_cudnn
from isochunk.core.limits import RECORD_S
from isochunk.engine.consistency import consistency_boxes
from isochunk.engine.events import EventLog, Notify
from isochunk.engine.ledger import Ledger
from isochunk.engine.report import Report, Seam
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import AccessError, ClusterError, DeviceError, StorageError
from isochunk.planning.block import EMPTY_REPORTS, BlockTask, Reports
from isochunk.planning.layout import blocks_over, finer_box
from isochunk.planning.plan import Plan

log = logging.getLogger(__name__)

PROGRESS_S = 10.0
"""Time between lines of progress in the event log."""

COUNTING = ("started", "workers")
"""Events that say how many workers there are."""

LOGGED_FAILURES = 1000
"""Failed blocks that the event log names; the ledger knows them all."""

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

    @property
    def device(self) -> Mapping[str, Any] | None:
        """The GPUs that blocks run on, of :func:`~isochunk.core.gpus.device_summary`, if any."""
        ...

    def map(self, tasks: Iterator[BlockTask], notify: Notify) -> Iterator[Reports]:
        """Run tasks through a sliding window; yield reports; empty ones while waiting."""
        ...

    def compare(self, boxes: list[Box]) -> Iterator[Seam]:
        """Predict stored target boxes as one tile each and compare with what is stored."""
        ...

    def check(self, boxes: list[Box]) -> Iterator[Consistency]:
        """Make sections of what is stored and compare them with source boxes."""
        ...


class Recorder:
    """Stores what happened at intervals; where storage fails, it is tried again for a while."""

    def __init__(self, ledger: Ledger, events: EventLog, timeouts: Timeouts) -> None:
        """Take the records of a target."""
        self.ledger = ledger
        self.events = events
        self.timeouts = timeouts
        self.workers = 1
        self._tried = self._stored = self._progressed = time.monotonic()
        self._failures = 0

    def event(self, name: str, details: Mapping[str, Any]) -> None:
        """Take an event; those that count workers are remembered."""
        if name in COUNTING:
            self.workers = details["workers"]
        self.events.add(name, details)

    def take(self, reports: Reports) -> None:
        """Take blocks that are finished or have failed for good."""
        self.ledger.add(reports)
        for r in reports.failed:
            if self._failures < LOGGED_FAILURES:
                self._failures += 1
                self.event("failed", {"stage": r.stage, "block": r.index, "error": r.error})

    def tick(self, report: Report) -> None:
        """Store what was taken if it is time.

        Raises:
            StorageError: storage has failed for longer than the time-outs allow.
        """
        now = time.monotonic()
        if now - self._tried < RECORD_S:
            return
        if now - self._progressed >= PROGRESS_S:
            self._progressed = now
            self.event("progress", progress_of(report))
        self._tried = now
        self.store()

    def store(self) -> None:
        """Store what was taken; see :meth:`tick`."""
        try:
            self.ledger.flush()
            if self.events.due:
                self.events.flush()
        except StorageError as error:
            refused = isinstance(error, AccessError)
            limit = self.timeouts.record_refused_s if refused else self.timeouts.record_s
            if time.monotonic() - self._stored > limit:
                raise
            log.warning("what is done could not be recorded and is tried again: %s", error)
        else:
            self._stored = time.monotonic()

    def finish(self) -> None:
        """Store everything, now; see :meth:`tick`."""
        while True:
            self.store()
            try:
                self.ledger.fold()
                self.events.flush()
            except StorageError:
                if time.monotonic() - self._stored > self.timeouts.record_s:
                    raise
                time.sleep(RECORD_S)
            else:
                return


def progress_of(report: Report) -> dict[str, Any]:
    """Return the figures of a report that the event log keeps."""
    summary = report.summary()
    names = ("blocks", "voxels", "wall_s", "bytes_read", "bytes_written", "stages_s")
    return {name: summary[name] for name in names}


def execute(
    plan: Plan,
    recorder: Recorder,
    backend: Backend,
    watch: Callable[[Report], None],
    begun: float,
) -> Report:
    """Run every block that is missing and runnable.

    Args:
        plan: what to do.
        recorder: what is done; finished blocks and events are recorded in it.
        backend: where blocks run.
        watch: called often with the report so far.
        begun: monotonic clock when the run began, before anything was opened.

    Returns:
        The report. Failed blocks are counted in it and stay missing in the ledger.

    Raises:
        StorageError: what is done cannot be recorded.
        ClusterError: the cluster went away.
        DeviceError: a GPU is lost to the only process there is.
    """
    warn_of_cudnn(plan, backend)
    started, ledger = time.monotonic(), recorder.ledger
    resumed = ledger.count()
    report = Report(
        plan.total_blocks,
        resumed=resumed,
        done=resumed,
        invented_voxels=plan.invented_voxels(),
        device=backend.device,
    )
    recorder.event(
        "started", {"blocks": report.total, "resumed": resumed, "workers": backend.workers}
    )
    try:
        for stage in range(len(plan.stages)):
            for reports, retried in run_stage(plan, stage, recorder, backend):
                report = report.after(reports, time.monotonic() - started)
                report = replace(report, retries=report.retries + retried, workers=recorder.workers)
                if report.first_block_s is None and len(reports.done):
                    report = replace(report, first_block_s=time.monotonic() - begun)
                recorder.tick(report)
                watch(report)
    except BaseException as error:
        recorder.event("stopped", {"error": f"{type(error).__name__}: {error}"})
        with suppress(StorageError):
            recorder.ledger.flush()
            recorder.events.flush()
        raise
    # Blocks that never ran because one they read failed are not done either.
    report = replace(report, failed=report.total - report.done)
    report = replace(report, seam=measure_seam(plan, ledger, backend), promised=plan.worth)
    report = replace(report, consistency=measure_consistency(plan, ledger, backend))
    if report.seam and report.promised and not report.seam.keeps(report.promised):
        log.warning(
            "across seams %.4f%% of the voxels are the same, and the largest difference is %d grey "
            "levels; look at the result closely",
            100 * report.seam.identical / report.seam.voxels,
            report.seam.max_difference,
        )
    report = report.after(EMPTY_REPORTS, time.monotonic() - started)
    recorder.event("ended", progress_of(report))
    recorder.finish()
    watch(report)
    return report


def warn_of_cudnn(plan: Plan, backend: Backend) -> None:
    """Say that a cuDNN is there which computes 3D convolutions wrongly, or refuses them."""
    wrong = wrong_cudnn(backend.device, plan.precision)
    if wrong is not None:
        log.warning(
            "cuDNN %s computes some 3D convolutions in %s wrongly, or refuses them (issues 163539, "
            "166122 and 166643 of PyTorch); install a torch with cuDNN 9.15 or later, or choose "
            "--precision tf32 or fp32",
            wrong,
            plan.precision,
        )


def run_stage(
    plan: Plan, stage: int, recorder: Recorder, backend: Backend
) -> Iterator[tuple[Reports, int]]:
    """Run the missing blocks of a stage; failures that may pass are tried again at its end.

    Yields:
        Reports that are final, recorded already, and how many blocks are now tried again.
    """
    missing, left = recorder.ledger.missing(stage), recorder.ledger.missing_count(stage)
    wanted: Iterator[int] = (i for i in missing if runnable(plan, recorder.ledger, stage, i))
    for pause_s in (*recorder.timeouts.retry_pauses_s, None):
        again: list[int] = []
        tasks = plan.tasks(stage, wanted, backend.workers, left)
        for reports in backend.map(tasks, recorder.event):
            if pause_s is not None:
                again += (r.index for r in reports.failed if r.transient)
                final = tuple(r for r in reports.failed if not r.transient)
                reports = replace(reports, failed=final)
            recorder.take(reports)
            yield reports, 0
        if pause_s is None or not again:
            return
        recorder.event("retrying", {"stage": stage, "blocks": len(again), "pause_s": pause_s})
        log.warning("%d blocks failed in a way that may pass; trying them again", len(again))
        time.sleep(pause_s * random.uniform(0.5, 1.5))
        yield EMPTY_REPORTS, len(again)
        wanted, left = iter(sorted(again)), len(again)


def measure_seam(plan: Plan, ledger: Ledger, backend: Backend) -> Seam | None:
    """Compare what is stored across seams with single tiles; None if that cannot be done."""
    boxes = seam_boxes(plan, ledger)
    if not boxes:
        return None
    try:
        return sum(backend.compare(boxes), Seam())
    except (StorageError, ClusterError, DeviceError) as error:
        log.warning("the seam could not be measured: %s", error)
        return None


def measure_consistency(plan: Plan, ledger: Ledger, backend: Backend) -> Consistency | None:
    """Compare the source with sections made of what is stored; None if that cannot be done."""
    boxes = consistency_boxes(plan, ledger)
    if not boxes:
        return None
    try:
        return sum(backend.check(boxes), Consistency())
    except (StorageError, ClusterError, DeviceError) as error:
        log.warning("consistency could not be measured: %s", error)
        return None


def runnable(plan: Plan, ledger: Ledger, stage: int, index: int) -> bool:
    """Tell whether all blocks of the stage before that a block reads are done."""
    reads = plan.stages[stage].reads
    if reads is None:
        return True
    levels = plan.target.levels
    box = finer_box(plan.block(stage, index).write, levels[reads], levels[reads + 1])
    return all(ledger.tables[stage - 1].done[i] for i in writers(plan, stage - 1, reads, box))


def writers(plan: Plan, stage: int, level: int, box: Box) -> Iterator[int]:
    """Yield the blocks of a stage that write a box of one of its levels."""
    levels, first = plan.target.levels, plan.stages[stage].writes[0]
    for number in range(level, first, -1):
        box = finer_box(box, levels[number - 1], levels[number])
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
    for number in spread(count):
        z, rest = divmod(number, len(inner[1]) * len(inner[2]))
        y, x = divmod(rest, len(inner[2]))
        yield (inner[0][z], inner[1][y], inner[2][x])
