"""Run a plan on a Dask cluster. The only module that knows Dask.

A worker plugin opens the job once per process: model, volumes, pipeline. A task carries integers.
Tasks go out through a sliding window over the lazy plan, so neither client nor scheduler ever holds
more than a few tasks a worker, whatever the size of the job.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from dask import array as da
from dask.delayed import delayed
from distributed import Client, WorkerPlugin, as_completed, get_worker, secede

from isochunk.block import BlockReport, BlockTask
from isochunk.engine.local import (
    WorkerSettings,
    compare_box,
    open_pipeline,
    open_predictor,
    predict_box,
)
from isochunk.engine.report import Seam
from isochunk.errors import UsageError
from isochunk.geometry import Box, triple
from isochunk.planning import Plan
from isochunk.process import Pipeline
from isochunk.storage.tensorstore import open_volume

if TYPE_CHECKING:
    from isochunk.predict import Predictor, Voxels
    from isochunk.storage.volume import Volume

log = logging.getLogger(__name__)

TASKS_IN_FLIGHT = 3
"""Tasks per worker: two at work in the pipeline, one on its way."""

RECOUNT_S = 1.0
"""How often the workers are counted, since clusters grow and shrink."""

POLL_S = 0.01
"""Pause between looks at the futures while none is ready."""

WORKERS_S = 120.0
"""How long a cluster may take to bring its first worker."""


class JobPlugin(WorkerPlugin):
    """Holds the open job in a worker process."""

    pipeline: Pipeline
    """The open job, on a worker."""

    def __init__(self, name: str, plan: Plan, settings: WorkerSettings) -> None:
        """Take the job; it is opened on the worker."""
        self.name = name
        self.plan = plan
        self.settings = settings

    def setup(self, worker: Any) -> None:  # noqa: ANN401 - distributed is untyped
        """Open the job in the worker's process."""
        threads = self.settings.threads or worker.state.nthreads
        self.pipeline = open_pipeline(self.plan, replace(self.settings, threads=threads))

    def teardown(self, worker: Any) -> None:  # noqa: ANN401
        """Finish blocks in flight."""
        self.pipeline.close()


def worker_pipeline(name: str) -> Pipeline:
    """Return the pipeline of this worker process."""
    plugin = get_worker().plugins[name]
    assert isinstance(plugin, JobPlugin)
    return plugin.pipeline


def run_task(name: str, stage: int, blocks: tuple[int, ...]) -> list[BlockReport]:
    """Run consecutive blocks on a worker."""
    pipeline = worker_pipeline(name)
    # Leaving the thread pool lets the worker start its next task, so that its reads overlap with
    # this task's last blocks; the turn comes first, so that it never takes more than that.
    with pipeline.turn:
        secede()
        futures = [pipeline.submit(stage, index) for index in blocks]
        return [future.result() for future in futures]


def run_compare(name: str, box: Box) -> Seam:
    """Compare a box on a worker."""
    return compare_box(worker_pipeline(name), box)


class DaskBackend:
    """Runs tasks on the workers of a client. Use it as a context manager."""

    def __init__(self, client: Client, plan: Plan, settings: WorkerSettings) -> None:
        """Send the job to every worker, present and future.

        Raises:
            UsageError: no worker came, or a worker could not open the job.
        """
        self.client = client
        self.name = f"isochunk-{plan.model.sha256[:8]}-{time.time_ns():x}"
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError:
            raise UsageError(
                f"no Dask worker came within {WORKERS_S:.0f} s; start workers for "
                f"{client.scheduler_info()['address']}"
            ) from None
        client.register_plugin(JobPlugin(self.name, plan, settings), name=self.name)

    def __enter__(self) -> DaskBackend:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the job on the workers."""
        self.client.unregister_worker_plugin(self.name)

    @property
    def workers(self) -> int:
        """Worker processes now."""
        return max(1, len(self.client.scheduler_info(n_workers=-1)["workers"]))

    def map(self, tasks: Iterator[BlockTask]) -> Iterator[list[BlockReport]]:
        """Keep a few tasks a worker in flight."""
        sent: dict[str, BlockTask] = {}
        window, counted = TASKS_IN_FLIGHT * self.workers, time.monotonic()
        done = as_completed(loop=self.client.loop, with_results=True, raise_errors=False)
        while True:
            for task in itertools.islice(tasks, max(0, window - len(sent))):
                key = f"{self.name}-{task.stage}-{task.blocks[0]}"
                future = self.client.submit(
                    run_task, self.name, task.stage, task.blocks, key=key, pure=False
                )
                sent[key] = task
                done.add(future)
            if not sent:
                return
            if time.monotonic() - counted > RECOUNT_S:
                window, counted = TASKS_IN_FLIGHT * self.workers, time.monotonic()
            if not done.has_ready():
                yield []
                time.sleep(POLL_S)
                continue
            for future, result in done.next_batch(block=True):
                task = sent.pop(future.key)
                yield result if future.status == "finished" else lost(task, future.status, result)

    def compare(self, boxes: list[Box]) -> Iterator[Seam]:
        """Compare on the workers."""
        futures = [self.client.submit(run_compare, self.name, b, pure=False) for b in boxes]
        yield from self.client.gather(futures)


def lost(task: BlockTask, status: str, result: Any) -> list[BlockReport]:  # noqa: ANN401
    """Report the blocks of a task that no worker finished."""
    cause = f"{type(result[1]).__name__}: {result[1]}" if isinstance(result, tuple) else status
    log.warning("blocks %s of stage %d: %s", task.blocks, task.stage, cause)
    return [
        BlockReport(task.stage, index, error=f"block {index}: its task was lost: {cause}")
        for index in task.blocks
    ]


class LazyJob:
    """A job that opens itself in whatever process first asks it for voxels."""

    def __init__(self, plan: Plan, settings: WorkerSettings) -> None:
        """Take the job; nothing is opened yet."""
        self.plan = plan
        self.settings = settings
        self._opened: tuple[Predictor, Volume] | None = None
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel closed."""
        return LazyJob, (self.plan, self.settings)

    def predict(self, box: Box) -> Voxels:
        """Predict a stored target box."""
        with self._opening:
            if self._opened is None:
                source = open_volume(self.plan.source.url, self.settings.access)
                self._opened = open_predictor(self.plan, self.settings), source
        return predict_box(self.plan, *self._opened, box)


def predict_chunk(job: LazyJob, block_info: dict[Any, Any]) -> Voxels:
    """Predict one chunk of a lazy array."""
    lo, hi = zip(*block_info[None]["array-location"], strict=True)
    return job.predict(Box(triple(lo), triple(hi)).shift(job.plan.target.box.lo))


def lazy_array(plan: Plan, settings: WorkerSettings) -> da.Array:
    """Return the plan's finest level as a lazy array, a chunk for each block."""
    grid, block = plan.target.box, plan.stages[0].block
    chunks = tuple(
        tuple(min(b, n - start) for start in range(0, n, b))
        for n, b in zip(grid.shape, block, strict=True)
    )
    array: da.Array = da.map_blocks(
        predict_chunk,
        delayed(LazyJob(plan, settings)),
        chunks=chunks,
        dtype=plan.target.dtype,
        meta=np.empty((0, 0, 0), plan.target.dtype),
    )
    return array
