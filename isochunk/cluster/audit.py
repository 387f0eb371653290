"""Audit a target on a Dask cluster.

As in a run, a plugin opens the target once in each worker process and tasks go out through the
sliding window. A task carries the numbers of its blocks and the five bytes recorded of each, so
workers never load the ledger; what comes back is a count and the holes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

from distributed import Client, Future, secede

from isochunk.cluster.plugin import (
    HoldingPlugin,
    drop_plugin,
    held_here,
    send_plugin,
    wait_for_a_worker,
)
from isochunk.cluster.window import TaskWindow, Work
from isochunk.engine.audit import audit_task
from isochunk.engine.auditor import (
    NOTHING_AUDITED,
    Audited,
    AuditPool,
    AuditTask,
    open_auditor,
    readers,
)
from isochunk.engine.holes import Finding, all_holes
from isochunk.engine.target import WrittenTarget
from isochunk.engine.timeouts import Timeouts
from isochunk.host.memory import usable_memory_bytes
from isochunk.planning.block import BlockTask
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access

log = logging.getLogger(__name__)

WORKER_SHARE = 0.75
"""Share of a worker's memory limit that blocks may take: at 0.8 Dask pauses it."""


class AuditPlugin(HoldingPlugin[AuditPool]):
    """Holds the open target in a worker process."""

    def __init__(self, name: str, plan: Plan, url: str, access: Access) -> None:
        """Take what is needed to open the target on the worker."""
        super().__init__(name)
        self.plan = plan
        self.url = url
        self.access = access

    def open(self, worker: Any) -> AuditPool:
        """Open the target; as many blocks are read together as the worker has memory for."""
        limit = worker.memory_manager.memory_limit
        memory = int(WORKER_SHARE * limit) if limit else usable_memory_bytes()
        auditor = open_auditor(self.plan, self.url, self.access)
        return AuditPool(auditor, readers(self.plan, memory))

    def close(self, held: AuditPool) -> None:
        """Drop what is not at work."""
        held.abandon()


def run_audit(name: str, task: AuditTask) -> Audited:
    """Compare the blocks of a task on a worker."""
    pool: AuditPool = held_here(name)
    # As for the tasks of a run: the next one starts before the last blocks of this one end.
    with pool.task_slots:
        secede()
        return pool.run(task)


class DaskAudit:
    """Compares blocks on the workers of a client."""

    def __init__(self, client: Client, target: WrittenTarget, timeouts: Timeouts) -> None:
        """Take the way to workers that have the target open; see :func:`dask_audit`."""
        self.client = client
        self.target = target
        self.timeouts = timeouts
        self.name = f"isochunk-audit-{time.time_ns():x}"

    @property
    def workers(self) -> int:
        """Worker processes now, at least 1."""
        return max(1, len(self.client.nthreads()))

    def map(self, tasks: Iterator[BlockTask]) -> Iterator[Audited]:
        """Keep a few tasks a worker in flight; see :class:`TaskWindow` for what goes wrong.

        Raises:
            ClusterError: the scheduler or all workers are gone.
        """
        kept = "an audit keeps nothing"
        work = Work(self.submit, NOTHING_AUDITED, took_time, self.unread, kept)
        return TaskWindow(self.client, work, self.timeouts, tell).run(tasks)

    def submit(self, task: BlockTask, key: str, workers: list[str] | None) -> Future[Any]:
        """Submit a task under a key, to some workers if these are still there."""
        return self.client.submit(
            run_audit,
            self.name,
            audit_task(self.target.ledger, task),
            key=key,
            pure=False,
            workers=workers,
            allow_other_workers=workers is not None,
        )

    def unread(self, task: BlockTask, cause: str) -> Audited:
        """Say of blocks that did not come back even when they ran alone that nothing is known."""
        plan = self.target.plan
        blocks = [plan.block(task.stage, index) for index in task.blocks]
        found = []
        for block in blocks:
            where = f"block {block.index} {block.write}"
            reason = f"{where}: not read: it did not come back even when it ran alone: {cause}"
            found.append(all_holes(plan, block, Finding("unread", reason)))
        return Audited(len(blocks), holes=tuple(chain.from_iterable(found)))


def took_time(audited: Audited) -> bool:
    """Tell whether anything but background was read."""
    return audited.stored > 0


def tell(event: str, details: Mapping[str, Any]) -> None:
    """Log what happens to workers; an audit writes nothing at the target, its events neither."""
    log.info("%s: %s", event, dict(details))


@contextmanager
def dask_audit(
    client: Client, target: WrittenTarget, access: Access, timeouts: Timeouts
) -> Iterator[DaskAudit]:
    """Open a target on every worker of a cluster, present and future.

    Raises:
        UsageError: no worker came, or a worker could not open the target.
        ClusterError: workers kept dying.
    """
    wait_s = getattr(client, "wait_s", None) or timeouts.no_workers_s
    timeouts = replace(timeouts, no_workers_s=wait_s)
    wait_for_a_worker(client, timeouts)
    audit = DaskAudit(client, target, timeouts)
    send_plugin(client, AuditPlugin(audit.name, target.plan, target.store.url, access))
    try:
        yield audit
    finally:
        drop_plugin(client, audit.name)
