"""Run a plan on a Dask cluster.

A worker plugin opens the job once per process: model, volumes, pipeline. A task carries integers.
Tasks go out through a sliding window over the lazy plan, so neither client nor scheduler ever holds
more than a few tasks a worker, whatever the size of the job.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from distributed import Client, Future, KilledWorker, as_completed, secede
from distributed.comm.addressing import get_address_host

from isochunk.cluster.devices import WorkerDevices, ask_devices, warn_if_unequal
from isochunk.cluster.metrics import WorkerMetrics
from isochunk.cluster.plugin import (
    HoldingPlugin,
    drop_plugin,
    held_here,
    send_plugin,
    wait_for_a_worker,
)
from isochunk.cluster.roster import known_workers
from isochunk.cluster.start import connected
from isochunk.cluster.window import TaskWindow, Work
from isochunk.core.consistency import Consistency
from isochunk.core.geometry import Box
from isochunk.core.limits import MAX_DEPTH
from isochunk.engine.events import Notify
from isochunk.engine.opened import open_job
from isochunk.engine.pipeline import Pipeline
from isochunk.engine.report import Seam
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import ClusterError
from isochunk.host.cores import usable_cores
from isochunk.host.memory import usable_memory_bytes
from isochunk.models.threads import candidates
from isochunk.planning.block import EMPTY_REPORTS, BlockReport, BlockTask, Reports
from isochunk.planning.blocks import Workers, fit_workers
from isochunk.planning.plan import Plan
from isochunk.planning.seats import Seating

log = logging.getLogger(__name__)

Figure = TypeVar("Figure", Seam, Consistency)

WORKER_SHARE = 0.75
"""Share of a worker's memory limit that is planned with: at 0.8 Dask pauses it."""


class JobPlugin(HoldingPlugin[tuple[Pipeline, WorkerMetrics]]):
    """Holds the open job in a worker process, and counts what it has done there."""

    def __init__(
        self, name: str, plan: Plan, sharing: Mapping[str, int], seating: Seating | None = None
    ) -> None:
        """Take the job; it is opened on the worker.

        Args:
            name: of the job.
            plan: what to do.
            sharing: how many workers there are on each host.
            seating: who computes on which GPU; None on CPUs.
        """
        super().__init__(name)
        self.plan = plan
        self.sharing = sharing
        self.seating = seating

    def open(self, worker: Any) -> tuple[Pipeline, WorkerMetrics]:
        """Open the job, with as many threads as are fastest here."""
        here = self.sharing.get(get_address_host(worker.address))
        threads = candidates(worker.state.nthreads, usable_cores(), here)
        seat = None if self.seating is None else self.seating.of(str(worker.name))
        pipeline = Pipeline(open_job(self.plan, threads, seat))
        metrics = WorkerMetrics(self.name)
        metrics.register()
        return pipeline, metrics

    def unusable(self, held: tuple[Pipeline, WorkerMetrics]) -> str | None:
        """Tell of a GPU that is lost to this process."""
        lost = held[0].lost
        return None if lost is None else str(lost)

    def close(self, held: tuple[Pipeline, WorkerMetrics]) -> None:
        """Drop what is not at work."""
        pipeline, metrics = held
        pipeline.abandon()
        metrics.unregister()


def run_task(name: str, task: BlockTask) -> Reports:
    """Run a task on a worker."""
    pipeline: Pipeline
    metrics: WorkerMetrics
    pipeline, metrics = held_here(name)
    # Leaving the thread pool lets the worker start its next task, so that its reads overlap with
    # this task's last blocks; the slot comes first, so that it never takes more than that.
    with pipeline.task_slots:
        secede()
        reports = pipeline.run(task)
    metrics.add(reports)
    return reports


def run_compare(name: str, box: Box) -> Seam:
    """Compare a box on a worker."""
    pipeline: Pipeline = held_here(name)[0]
    return pipeline.compare(box)


def run_check(name: str, box: Box) -> Consistency:
    """Compare a source box with what is stored, on a worker."""
    pipeline: Pipeline = held_here(name)[0]
    return pipeline.job.check(box)


def took_time(reports: Reports) -> bool:
    """Tell whether anything but background was computed."""
    return bool(reports.failed) or not reports.done["empty"].all()


def fit_to_workers(plan: Plan, client: Client, devices: WorkerDevices) -> Plan:
    """Fit tile and depth to the workers there are, and to what they compute on.

    Host memory is what the job says; where it leaves that open, a worker may use what its own limit
    says, and its share of what is free on its host.

    Args:
        plan: as planned before there were workers.
        client: of the cluster.
        devices: what workers compute on, of :func:`ask_devices`.

    Raises:
        UsageError: not even one block and one small tile fit.
    """
    if plan.job.device == "auto" and plan.found_device != devices.found:
        plan = replace(plan, found_device=devices.found)
    elif plan.job.memory is not None and not plan.on_gpu:
        return plan
    memory = worker_memory_bytes(client) if plan.job.memory is None else plan.job.memory
    if memory is None:
        if not plan.on_gpu:
            return plan
        memory = replace(plan, depth=MAX_DEPTH).worker_memory_bytes()
    return fit_workers(plan, Workers(memory, devices.device_bytes))


def worker_memory_bytes(client: Client) -> int | None:
    """Return the host memory of the worker that has least; None where they cannot tell."""
    limits = {
        address: int(WORKER_SHARE * worker["memory_limit"])
        for address, worker in known_workers(client).items()
        if worker["memory_limit"]
    }
    free = client.run(usable_memory_bytes, on_error="ignore")
    hosts = Counter(get_address_host(address) for address in free)
    usable: list[int] = [
        min(limits.get(address, size), size // hosts[get_address_host(address)])
        for address, size in free.items()
        if size is not None
    ]
    if not usable:
        return None
    warn_if_unequal("memory", min(usable), max(usable))
    return min(usable)


class DaskBackend:
    """Runs tasks on the workers of a client. Use it as a context manager."""

    def __init__(self, client: Client, plan: Plan, timeouts: Timeouts) -> None:
        """Send the job to every worker, present and future.

        Raises:
            UsageError: no worker came, a worker could not open the job, or only some have a GPU.
        """
        self.client = client
        self.plan = plan
        self.timeouts = timeouts
        self.name = f"isochunk-{plan.model.sha256[:8]}-{time.time_ns():x}"
        wait_for_a_worker(client, timeouts)
        devices = ask_devices(plan, client)
        self.device = devices.summary
        self.plan = fit_to_workers(plan, client, devices)
        sharing = Counter(get_address_host(worker) for worker in client.nthreads())
        send_plugin(client, JobPlugin(self.name, self.plan, dict(sharing), devices.seating))

    def __enter__(self) -> DaskBackend:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the job on the workers."""
        drop_plugin(self.client, self.name)

    @property
    def workers(self) -> int:
        """Worker processes now, at least 1."""
        return max(1, len(self.client.nthreads()))

    def map(self, tasks: Iterator[BlockTask], notify: Notify) -> Iterator[Reports]:
        """Keep a few tasks a worker in flight; see :class:`TaskWindow` for what goes wrong.

        Raises:
            ClusterError: the scheduler or all workers are gone.
        """
        work = Work(
            self.submit, EMPTY_REPORTS, took_time, self.quarantined, "what is done is recorded"
        )
        return TaskWindow(self.client, work, self.timeouts, notify).run(tasks)

    def submit(self, task: BlockTask, key: str, workers: list[str] | None) -> Future[Any]:
        """Submit a task under a key, to some workers if these are still there."""
        return self.client.submit(
            run_task,
            self.name,
            task,
            key=key,
            pure=False,
            workers=workers,
            allow_other_workers=workers is not None,
        )

    def quarantined(self, task: BlockTask, cause: str) -> Reports:
        """Report blocks that did not come back even when they ran alone as failed."""
        reports = []
        for index in task.blocks:
            where = f"block {index} {self.plan.block(task.stage, index).write}"
            reason = f"quarantined: it did not come back even when it ran alone: {cause}"
            reports.append(BlockReport(task.stage, index, error=f"{where}: {reason}"))
        return Reports.gather(task.stage, reports)

    def compare(self, boxes: list[Box]) -> Iterator[Seam]:
        """Compare on the workers.

        Raises:
            ClusterError: workers died of it, or hang.
        """
        return self._measure(run_compare, boxes)

    def check(self, boxes: list[Box]) -> Iterator[Consistency]:
        """Compare with the source on the workers.

        Raises:
            ClusterError: workers died of it, or hang.
        """
        return self._measure(run_check, boxes)

    def _measure(self, measure: Callable[[str, Box], Figure], boxes: list[Box]) -> Iterator[Figure]:
        futures = [self.client.submit(measure, self.name, b, pure=False) for b in boxes]
        limit = self.timeouts.hang_min_s
        done = as_completed(futures, loop=self.client.loop, with_results=True, timeout=limit)
        try:
            yield from (figure for _, figure in done)
        except (KilledWorker, CancelledError, TimeoutError) as error:
            raise ClusterError(f"workers were lost while they compared: {error!r}") from error


@contextmanager
def dask_backend(plan: Plan, client: Client | None, timeouts: Timeouts) -> Iterator[DaskBackend]:
    """Open a job on the cluster that it asks for, or on that of a client.

    Raises:
        UsageError: there is no such cluster, no worker came, or one could not open the job.
        ClusterError: workers kept dying.
    """
    with connected(plan.job, client) as cluster_client:
        wait_s = getattr(cluster_client, "wait_s", None) or timeouts.no_workers_s
        with DaskBackend(cluster_client, plan, replace(timeouts, no_workers_s=wait_s)) as backend:
            yield backend
