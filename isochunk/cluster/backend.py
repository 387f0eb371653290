"""Run a plan on a Dask cluster.

A worker plugin opens the job once per process: model, volumes, pipeline. A task carries integers.
Tasks go out through a sliding window over the lazy plan, so neither client nor scheduler ever holds
more than a few tasks a worker, whatever the size of the job.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from distributed import (
    Client,
    Future,
    KilledWorker,
    Reschedule,
    WorkerPlugin,
    as_completed,
    get_worker,
    secede,
)
from distributed.comm.addressing import get_address_host

from isochunk.cluster.metrics import WorkerMetrics
from isochunk.cluster.start import check_versions, connected
from isochunk.cluster.window import TaskWindow
from isochunk.core.geometry import Box
from isochunk.engine.events import Notify
from isochunk.engine.opened import open_job
from isochunk.engine.pipeline import Pipeline
from isochunk.engine.report import Seam
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import ClusterError, UsageError
from isochunk.host.cores import usable_cores
from isochunk.models.threads import candidates
from isochunk.planning.block import BlockTask, Reports
from isochunk.planning.memory import fit_memory
from isochunk.planning.plan import Plan

log = logging.getLogger(__name__)

WORKER_SHARE = 0.75
"""Share of a worker's memory limit that is planned with: at 0.8 Dask pauses it."""

SENDS = 3
"""Times that the job is sent to workers that die of other causes meanwhile."""


class JobPlugin(WorkerPlugin):
    """Holds the open job in a worker process."""

    pipeline: Pipeline | None = None
    """The open job, on a worker."""
    metrics: WorkerMetrics | None = None
    """What it has done there."""

    def __init__(self, name: str, plan: Plan, sharing: Mapping[str, int]) -> None:
        """Take the job; it is opened on the worker.

        Args:
            name: of the job.
            plan: what to do.
            sharing: how many workers there are on each host.
        """
        self.name = name
        self.plan = plan
        self.sharing = sharing
        self.version = version("isochunk")

    async def setup(self, worker: Any) -> None:
        """Open the job in the worker's process; meanwhile the worker stays in touch.

        Raises:
            UsageError: a worker that came later has another version of isochunk.
        """
        if version("isochunk") != self.version:
            raise UsageError(
                f"worker {worker.address} has isochunk {version('isochunk')}, wanted is "
                f"{self.version}; install that version there"
            )
        here = self.sharing.get(get_address_host(worker.address))
        threads = candidates(worker.state.nthreads, usable_cores(), here)
        opened = await asyncio.to_thread(open_job, self.plan, threads)
        self.pipeline = Pipeline(opened)
        self.metrics = WorkerMetrics(self.name)
        self.metrics.register()

    def teardown(self, worker: Any) -> None:
        """Drop what is not at work."""
        if self.pipeline is not None and self.metrics is not None:  # setup got so far
            self.pipeline.abandon()
            self.metrics.unregister()


def on_worker(name: str) -> tuple[Pipeline, WorkerMetrics]:
    """Return the job that is open in this worker process, and its metrics.

    A worker that came later and could not open the job stays in the cluster all the same, and
    would fail every task it is given at once. It leaves, and another worker gets the task.
    """
    worker = get_worker()
    plugin = worker.plugins[name]
    assert isinstance(plugin, JobPlugin)
    if plugin.pipeline is None or plugin.metrics is None:
        log.error("worker %s could not open the job and leaves", worker.address)
        worker.loop.add_callback(worker.close, nanny=True, reason="the job could not be opened")
        raise Reschedule
    return plugin.pipeline, plugin.metrics


def run_task(name: str, task: BlockTask) -> Reports:
    """Run a task on a worker."""
    pipeline, metrics = on_worker(name)
    # Leaving the thread pool lets the worker start its next task, so that its reads overlap with
    # this task's last blocks; the slot comes first, so that it never takes more than that.
    with pipeline.task_slots:
        secede()
        reports = pipeline.run(task)
    metrics.add(reports)
    return reports


def run_compare(name: str, box: Box) -> Seam:
    """Compare a box on a worker."""
    return on_worker(name)[0].job.compare(box)


def fit_workers(plan: Plan, client: Client) -> Plan:
    """Fit tile and depth to the workers there are, where the job leaves memory open.

    Raises:
        UsageError: not even one block and one small tile fit.
    """
    if plan.job.memory is not None or plan.costs is None:
        return plan
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = {int(worker["memory_limit"]) for worker in workers if worker["memory_limit"]}
    if not limits:
        return plan  # none is kept to a limit
    if len(limits) > 1:
        log.warning(
            "workers have %.1f to %.1f GiB of memory; tiles are made for the least",
            min(limits) / 2**30,
            max(limits) / 2**30,
        )
    return fit_memory(plan, int(WORKER_SHARE * min(limits)))


class DaskBackend:
    """Runs tasks on the workers of a client. Use it as a context manager."""

    def __init__(self, client: Client, plan: Plan, timeouts: Timeouts) -> None:
        """Send the job to every worker, present and future.

        Raises:
            UsageError: no worker came, or a worker could not open the job.
        """
        self.client = client
        self.plan = plan
        self.timeouts = timeouts
        self.name = f"isochunk-{plan.model.sha256[:8]}-{time.time_ns():x}"
        try:
            client.wait_for_workers(1, timeout=timeouts.no_workers_s)
        except TimeoutError:
            raise UsageError(
                f"no Dask worker came within {timeouts.no_workers_s:.0f} s; start workers for "
                f"{client.scheduler_info()['address']}"
            ) from None
        check_versions(client)
        self.plan = fit_workers(plan, client)
        sharing = Counter(get_address_host(worker) for worker in client.nthreads())
        self.send_job(JobPlugin(self.name, self.plan, dict(sharing)))

    def send_job(self, plugin: JobPlugin) -> None:
        """Open the job on every worker; one that dies meanwhile is not the end.

        Raises:
            ClusterError: workers kept dying.
        """
        for left in reversed(range(SENDS)):
            try:
                self.client.register_plugin(plugin, name=plugin.name)
            except OSError as error:
                if not left:
                    raise ClusterError(f"workers died when the job was opened: {error}") from error
                log.warning("a worker died when the job was opened; opening it again: %s", error)
            else:
                return

    def __enter__(self) -> DaskBackend:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the job on the workers."""
        if self.client.status == "running":
            self.client.unregister_worker_plugin(self.name)

    @property
    def workers(self) -> int:
        """Worker processes now, at least 1."""
        return max(1, len(self.client.nthreads()))

    def map(self, tasks: Iterator[BlockTask], notify: Notify) -> Iterator[Reports]:
        """Keep a few tasks a worker in flight; see :class:`TaskWindow` for what goes wrong.

        Raises:
            ClusterError: the scheduler or all workers are gone.
        """
        return TaskWindow(self.client, self.plan, self.submit, self.timeouts, notify).run(tasks)

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

    def compare(self, boxes: list[Box]) -> Iterator[Seam]:
        """Compare on the workers.

        Raises:
            ClusterError: workers died of it, or hang.
        """
        futures = [self.client.submit(run_compare, self.name, b, pure=False) for b in boxes]
        limit = self.timeouts.hang_min_s
        done = as_completed(futures, loop=self.client.loop, with_results=True, timeout=limit)
        try:
            yield from (seam for _, seam in done)
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
