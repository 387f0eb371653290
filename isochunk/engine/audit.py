"""Proof that a target is complete: every object is read again and compared with the record.

The same loop whether blocks are compared in this process or by the workers of a cluster. It keeps
what is wrong and a count, and nothing of what is right.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from isochunk.core.limits import AUDIT_VOXELS, TASK_BLOCKS, TASKS_PER_WORKER
from isochunk.core.sentence import as_html
from isochunk.engine import sentences
from isochunk.engine.auditor import Audited, AuditPool, AuditTask
from isochunk.engine.holes import Hole
from isochunk.engine.ledger import Ledger, Table
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import ClusterError
from isochunk.planning.block import BlockTask
from isochunk.planning.plan import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found."""

    expected: int
    """Objects that cover the target; those of background alone are known to be absent."""
    holes: tuple[Hole, ...]
    """Objects that are missing or corrupt, or that could not be read."""

    @property
    def complete(self) -> bool:
        """Whether every object decodes to the recorded voxels."""
        return not self.holes

    def summary(self) -> dict[str, Any]:
        """Return the JSON object of ``isochunk audit``; what was not read counts as corrupt."""
        return {
            "complete": self.complete,
            "expected": self.expected,
            "missing": [h.summary() for h in self.holes if h.kind == "missing"],
            "corrupt": [h.summary() for h in self.holes if h.kind != "missing"],
        }

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        return as_html("audit", [sentences.audited(self.summary())])


@dataclass(frozen=True, slots=True)
class AuditProgress:
    """How far an audit is."""

    total: int
    """Blocks of the target."""
    read: int = 0
    """Blocks compared so far; those of background are among them."""
    holes: int = 0
    """Objects found so far that are not what they should be."""
    wall_s: float = 0.0
    """Seconds since the start."""

    @property
    def blocks_per_s(self) -> float:
        """Blocks compared a second, so far."""
        return self.read / self.wall_s if self.wall_s else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest takes at this rate; None where there is no rate yet."""
        return (self.total - self.read) / self.blocks_per_s if self.blocks_per_s else None


AuditWatch: TypeAlias = Callable[[AuditProgress], None]


class AuditBackend(Protocol):
    """Somewhere that blocks are compared."""

    @property
    def workers(self) -> int:
        """Worker processes now."""
        ...

    def map(self, tasks: Iterator[BlockTask]) -> Iterator[Audited]:
        """Compare the blocks of tasks, a bounded number of them in flight."""
        ...


class LocalAudit:
    """Compares blocks in this process."""

    workers = 1

    def __init__(self, pool: AuditPool, ledger: Ledger) -> None:
        """Take the threads and the record."""
        self.pool = pool
        self.ledger = ledger

    def map(self, tasks: Iterator[BlockTask]) -> Iterator[Audited]:
        """Keep every thread busy, and one block waiting."""
        in_flight: deque[Future[list[Hole]]] = deque()
        for task in tasks:
            for future in self.pool.start(audit_task(self.ledger, task)):
                in_flight.append(future)
                if len(in_flight) > self.pool.readers:
                    yield Audited(1, holes=tuple(in_flight.popleft().result()))
        while in_flight:
            yield Audited(1, holes=tuple(in_flight.popleft().result()))


def audit_task(ledger: Ledger, task: BlockTask) -> AuditTask:
    """Add to blocks what is recorded of them."""
    recorded = ledger.recorded(task.stage, task.blocks)
    return AuditTask(task.stage, task.blocks, recorded.tobytes())


def audit_tasks(plan: Plan, ledger: Ledger, stage: int, workers: int) -> Iterator[BlockTask]:
    """Cut a stage into runs of blocks that take about as long, lazily.

    Blocks of background take next to nothing, so a run may have many more of them.
    """
    count, table = plan.block_count(stage), ledger.tables[stage]
    by_size = AUDIT_VOXELS // math.prod(plan.stages[stage].block)
    by_share = math.ceil(count / (TASKS_PER_WORKER * workers))
    most = max(1, min(by_size, by_share, TASK_BLOCKS))
    start = 0
    while start < count:
        stop = start + most
        if not _stored(table, start, stop).all() or stop > count:
            stored = np.cumsum(_stored(table, start, start + TASK_BLOCKS))
            stop = start + int(np.searchsorted(stored, most, side="right"))
        yield BlockTask(stage, range(start, stop))
        start = stop


def _stored(table: Table, start: int, stop: int) -> NDArray[np.bool_]:
    """Tell which of some blocks must be read."""
    stored: NDArray[np.bool_] = table.done[start:stop] & ~table.empty[start:stop]
    return stored


class Tally:
    """What has come back of an audit so far."""

    def __init__(self, total: int, watch: AuditWatch) -> None:
        """Start the clock."""
        self.holes: list[Hole] = []
        self._progress = AuditProgress(total)
        self._watch = watch
        self._began = time.monotonic()

    def take(self, audited: Audited) -> None:
        """Take blocks that are settled, or none, and tell who watches."""
        self.holes += audited.holes
        self._progress = replace(
            self._progress,
            read=self._progress.read + audited.blocks,
            holes=len(self.holes),
            wall_s=time.monotonic() - self._began,
        )
        self._watch(self._progress)

    def report(self, expected: int) -> AuditReport:
        """Return what was found, in the order of stages, blocks, levels and objects.

        Raises:
            ClusterError: a block is not accounted for, so nothing can be proved.
        """
        read, total = self._progress.read, self._progress.total
        if read != total:
            raise ClusterError(
                f"{read} of {total} blocks came back from the audit, and each must once, so it "
                "proves nothing; audit again"
            )
        order = sorted(self.holes, key=lambda h: (h.stage, h.block, h.level, h.box.lo))
        return AuditReport(expected, tuple(order))


def audit_target(
    plan: Plan, ledger: Ledger, backend: AuditBackend, watch: AuditWatch, timeouts: Timeouts
) -> AuditReport:
    """Read every block of every level and compare.

    Args:
        plan: what the target should hold.
        ledger: the recorded checksums.
        backend: where blocks are compared.
        watch: called often with how far it is.
        timeouts: pauses before what could not be read is tried again.

    Raises:
        ClusterError: the cluster went away.
    """
    tally = Tally(plan.total_blocks, watch)
    for stage in range(len(plan.stages)):
        audit_stage(plan, ledger, stage, backend, tally, timeouts.retry_pauses_s)
    return tally.report(plan.objects_written())


def audit_stage(
    plan: Plan,
    ledger: Ledger,
    stage: int,
    backend: AuditBackend,
    tally: Tally,
    pauses_s: tuple[float, ...],
) -> None:
    """Compare the blocks of a stage; those that may be read later are tried again at its end."""
    tasks = audit_tasks(plan, ledger, stage, backend.workers)
    for pause_s in (*pauses_s, None):
        again: list[int] = []
        for audited in backend.map(tasks):
            if pause_s is not None:
                unread = {hole.block for hole in audited.holes if hole.finding.transient}
                again += unread
                audited = audited.without(unread)
            tally.take(audited)
        if pause_s is None or not again:
            return
        log.warning("%d blocks could not be read and are tried again", len(again))
        time.sleep(pause_s * random.uniform(0.5, 1.5))
        tasks = plan.tasks(stage, iter(sorted(again)), backend.workers)
