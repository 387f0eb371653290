"""Start the workers of a Dask cluster, and replace those that are lost."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import Adaptive, SpecCluster
from distributed.core import Status

from isochunk.errors import UsageError

log = logging.getLogger(__name__)

CHECK = "5s"
"""How often workers are counted."""

RETRY_S = 30.0
"""Pause before what could not be started is asked for again."""

NOT_STARTED = (Status.failed, Status.closed)
"""What a worker says of itself that was asked for in vain."""


def start_workers(cluster: SpecCluster, workers: int, origin: str) -> None:
    """Ask for worker processes and wait until all have been asked for.

    Raises:
        UsageError: not one could be asked for.
    """

    async def plan_and_start() -> None:
        # Not scale(), which starts them in the background and loses what goes wrong there.
        while len(cluster.plan) < workers:
            cluster.worker_spec.update(cluster.new_worker_spec())
        await cluster

    try:
        cluster.sync(plan_and_start)
    except Exception as error:
        cause = mark_failed(cluster, error)
        if not any(w.status == Status.running for w in cluster.workers.values()):
            raise UsageError(
                f"the cluster of {origin} could not start a worker: {cause}; see its [options]"
            ) from error
        log.warning("some workers could not be started and will be asked for again: %s", cause)


def mark_failed(cluster: SpecCluster, error: Exception) -> str:
    """Mark the workers that an error kept from starting; return the error as one line."""
    for worker in cluster.workers.values():
        if worker.status == Status.created:
            worker.status = Status.failed
    return in_a_line(error)


def in_a_line(error: BaseException) -> str:
    """Write an error in one line, with the first of its causes: classes often fail in closing."""
    first = error
    while (earlier := first.__cause__ or first.__context__) is not None:
        first = earlier
    said = [" ".join(f"{type(e).__name__}: {e}".split()) for e in dict.fromkeys((error, first))]
    return ", after ".join(dict.fromkeys(said))


class WorkerReplacer(Adaptive):
    """Asks again for workers that were lost or could not be started; retires none.

    Dask's own :class:`Adaptive` counts what was asked for. So a worker that could not be started is
    never asked for again, nor a job of several processes once it is lost.
    """

    def __init__(self, cluster: SpecCluster, minimum: float = 0, maximum: float = math.inf) -> None:
        """Take a cluster; how many workers there are to be, its own plan says."""
        super().__init__(cluster, interval=CHECK)
        self.cluster: SpecCluster = cluster
        self._seen: dict[Any, float] = {}
        self._tried = time.monotonic()

    async def adapt(self) -> None:
        """Count once, and ask for what is missing."""
        cluster, now = self.cluster, time.monotonic()
        for job in self._lost(now):
            log.warning("job %s and its workers are lost and are asked for again", job)
            await self._drop(job)
        if now - self._tried > RETRY_S:
            self._tried = now
            for job in [j for j, w in cluster.workers.items() if w.status in NOT_STARTED]:
                await self._drop(job)
        missing = set(cluster.worker_spec) - set(cluster.workers)
        for job in missing:
            self._seen.pop(job, None)
        if missing:
            try:
                await cluster
            except Exception as error:
                cause = mark_failed(cluster, error)
                log.warning("workers could not be started: %s", cause)
                log.debug("as follows", exc_info=True)

    def _lost(self, now: float) -> list[Any]:
        """Return jobs of several processes of which none is left; SpecCluster sees to others."""
        limit = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
        lost = []
        for job in self.cluster.workers:
            suffixes = self.cluster.worker_spec.get(job, {}).get("group", ())
            if self.cluster.observed & {f"{job}{suffix}" for suffix in suffixes}:
                self._seen[job] = now
            elif now - self._seen.get(job, now) > limit:
                lost.append(job)
        return lost

    async def _drop(self, job: Any) -> None:
        """Give a job up, so that it is asked for again."""
        worker = self.cluster.workers.pop(job)
        try:
            await worker.close()
        except Exception:
            log.debug("job %s could not be closed", job, exc_info=True)
