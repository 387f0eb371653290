"""Tasks in flight on a Dask cluster, and what is done about those that go wrong."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future, as_completed

from isochunk.engine.events import Notify
from isochunk.engine.timeouts import Patience
from isochunk.errors import ClusterError
from isochunk.planning.block import NOTHING, BlockReport, BlockTask, Reports
from isochunk.planning.plan import Plan

log = logging.getLogger(__name__)

TASKS_IN_FLIGHT = 3
"""Tasks per worker: two at work in the pipeline, one on its way."""

LOOK_S = 1.0
"""How often workers are counted and tasks looked after."""

POLL_S = 0.01
"""Pause between looks at the futures while none is ready."""

PACE_SAMPLES = 101
"""Recent tasks whose median tells how long a task usually takes."""

PACE_LEAST = 5
"""With fewer samples nothing is a straggler."""

COPIES_SHARE = 10
"""One worker in this many may run second copies."""

RESTART_S = 5
"""How long a restart is waited for; it goes on without."""

COPY = "-copy"
"""Ends the key of a second copy."""

Submit = Callable[[BlockTask, str, list[str] | None], Future[Any]]
"""Submits a task under a key, to some workers if these are still there."""


@dataclass(frozen=True, slots=True)
class Flight:
    """A task on its way."""

    task: BlockTask
    """What it carries."""
    key: str
    """Key of its first copy."""
    alone: bool
    """Nothing else is in flight: what kills its worker is its own doing."""
    sent: float
    """Clock when it was sent."""
    copies: dict[str, Future[Any]]
    """What is still awaited, by key."""
    began: dict[str, tuple[str, float]]
    """The worker that each copy is on, and the clock when it was first seen there, by key."""

    def age(self, now: float) -> float:
        """Return how long workers have had it; waiting for a worker is nobody's fault."""
        return now - min((since for _, since in self.began.values()), default=now)


class Flock:
    """Runs the tasks of one stage.

    A task that takes three times the median gets a second copy on another worker; the first answer
    counts, and where that is the copy's, the worker that was late is restarted. A task whose
    workers keep dying, or that hangs, is a suspect: when all others are done, its blocks run again,
    one at a time and nothing beside them. A block that fails alone, too, is quarantined: it is
    reported as failed, and the rest of the job is done.
    """

    def __init__(
        self, client: Client, plan: Plan, submit: Submit, patience: Patience, notify: Notify
    ) -> None:
        """Take the way to the cluster; nothing is sent yet."""
        self.client = client
        self.plan = plan
        self.submit = submit
        self.patience = patience
        self.notify = notify
        self.flights: dict[str, Flight] = {}
        """By the key of the first copy."""
        self.suspects: deque[BlockTask] = deque()
        self.given_up: list[Reports] = []
        self.pace: deque[float] = deque(maxlen=PACE_SAMPLES)
        self.workers = max(1, len(client.nthreads()))
        self.landed = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        self._looked = self._reached = self._staffed = time.monotonic()

    def run(self, tasks: Iterator[BlockTask]) -> Iterator[Reports]:
        """Run tasks, then the blocks of those that were lost.

        Raises:
            ClusterError: the scheduler or all workers are gone.
        """
        try:
            while True:
                room = TASKS_IN_FLIGHT * self.workers - len(self.flights)
                for task in itertools.islice(tasks, max(0, room)):
                    self.send(task, alone=False)
                if not self.flights:
                    break
                yield from self.turn()
            while self.suspects:
                task = self.suspects.popleft()
                for index in task.blocks:
                    self.send(BlockTask(task.stage, (index,)), alone=True)
                    while self.flights:
                        yield from self.turn()
        finally:
            self.cancel([f for flight in self.flights.values() for f in flight.copies.values()])

    def turn(self) -> Iterator[Reports]:
        """Take what has landed, or wait a moment and look after the others."""
        if time.monotonic() - self._looked > LOOK_S:
            self.look_after()
            self._looked = time.monotonic()
            yield from self.given_up
            self.given_up = []
        if self.landed.has_ready():
            for future, result in self.landed.next_batch(block=True):
                yield self.land(future, result)
        else:
            yield NOTHING
            time.sleep(POLL_S)

    def send(self, task: BlockTask, *, alone: bool) -> None:
        """Send a task under a new key: the scheduler remembers the fate of old ones."""
        key = f"isochunk-{task.stage}-{task.blocks[0]}-{uuid.uuid4().hex[:8]}"
        flight = Flight(task, key, alone, time.monotonic(), {}, {})
        self.flights[key] = flight
        self.send_copy(flight, key, None)

    def send_copy(self, flight: Flight, key: str, workers: list[str] | None) -> None:
        """Send one copy of a task."""
        future = self.submit(flight.task, key, workers)
        flight.copies[key] = future
        self.landed.add(future)

    def land(self, future: Future[Any], result: Any) -> Reports:
        """Take a future that ended and return the reports of its blocks, if it has any."""
        key = str(future.key)
        flight = self.flights.get(key.removesuffix(COPY))
        if flight is None:  # the other copy was faster, or the task was given up
            return NOTHING
        del flight.copies[key]
        _, began = flight.began.pop(key, ("", flight.sent))
        if future.status == "finished":
            reports: Reports = result
            if reports.failed or not reports.done["empty"].all():
                self.pace.append(time.monotonic() - began)
            self.drop(flight)
            if key.endswith(COPY):  # what was late may never end, and holds a thread until then
                self.restart([worker for worker, _ in flight.began.values()])
            return reports
        if flight.copies:
            return NOTHING
        self.drop(flight)
        if future.status == "error":
            return self.lose(flight, f"{type(result[1]).__name__}: {result[1]}")
        # Cancelled: the client lost the scheduler, which then forgot what this client had sent.
        self.look_after()
        self.send(flight.task, alone=flight.alone)
        return NOTHING

    def lose(self, flight: Flight, cause: str) -> Reports:
        """Note that a task did not come back; return the verdict if it was alone."""
        task = flight.task
        details = {"stage": task.stage, "blocks": list(task.blocks), "cause": cause}
        if not flight.alone:
            log.warning(
                "blocks %s of stage %d did not come back and will run again, each alone: %s",
                task.blocks,
                task.stage,
                cause,
            )
            self.notify("lost", details)
            self.suspects.append(task)
            return NOTHING
        log.warning("blocks %s of stage %d are quarantined: %s", task.blocks, task.stage, cause)
        self.notify("quarantined", details)
        reports = []
        for index in task.blocks:
            where = f"block {index} {self.plan.block(task.stage, index).write}"
            reason = f"quarantined: it did not come back even when it ran alone: {cause}"
            reports.append(BlockReport(task.stage, index, error=f"{where}: {reason}"))
        return Reports.gather(task.stage, reports)

    def drop(self, flight: Flight) -> None:
        """Forget a task and the copies of it that are still at work."""
        del self.flights[flight.key]
        self.cancel(list(flight.copies.values()))

    def cancel(self, futures: list[Future[Any]]) -> None:
        """Cancel futures where there is still a scheduler to tell."""
        if futures and self.client.status == "running":
            self.client.cancel(futures)

    def look_after(self) -> None:
        """Look for a lost scheduler, lost workers, stragglers and tasks that hang.

        Raises:
            ClusterError: the scheduler or all workers are gone.
        """
        self.check_scheduler()
        now = self._reached = time.monotonic()
        at = self.client.processing()
        if at:
            self._staffed = now
        elif now - self._staffed > self.patience.workers_s:
            raise ClusterError(
                f"the Dask cluster has had no worker for {self.patience.workers_s:.0f} s; what is "
                "done is recorded: start workers and give the same command again"
            )
        if max(1, len(at)) != self.workers:
            self.notify("workers", {"workers": len(at)})
        self.workers = max(1, len(at))
        where = {key: worker for worker, keys in at.items() for key in keys}
        for flight in self.flights.values():
            for key in flight.copies:
                worker = where.get(key)
                if worker is None:
                    flight.began.pop(key, None)
                elif flight.began.get(key, ("", now))[0] != worker:
                    flight.began[key] = (worker, now)
        usual = statistics.median(self.pace) if len(self.pace) >= PACE_LEAST else math.nan
        self.hurry(usual, now, {worker: len(keys) for worker, keys in at.items()})
        self.give_up(usual, now)

    def check_scheduler(self) -> None:
        """Wait for a lost scheduler for as long as patience allows."""
        while self.client.status != "running":
            lost_s = time.monotonic() - self._reached
            if self.client.status == "closed" or lost_s > self.patience.scheduler_s:
                raise ClusterError(
                    "the Dask scheduler is gone; what is done is recorded: start a cluster and "
                    "give the same command again"
                )
            time.sleep(POLL_S)

    def hurry(self, usual: float, now: float, load: Mapping[str, int]) -> None:
        """Send stragglers a second time, to the workers that have least to do."""
        limit = max(self.patience.straggler * usual, self.patience.straggler_s)
        single = [f for f in self.flights.values() if len(f.copies) == 1 and not f.alone]
        late = [f for f in single if not math.isnan(usual) and f.age(now) > limit]
        room = max(1, self.workers // COPIES_SHARE) - (len(self.flights) - len(single))
        for flight in late[: max(0, room)]:
            here = [worker for worker, _ in flight.began.values()]
            others = sorted(set(load) - set(here), key=lambda worker: load[worker])
            if others:
                self.notify(
                    "straggler",
                    {
                        "stage": flight.task.stage,
                        "blocks": list(flight.task.blocks),
                        "seconds": round(flight.age(now), 1),
                        "median_s": round(usual, 1),
                        "workers": here,
                    },
                )
                self.send_copy(flight, flight.key + COPY, others[:3])

    def give_up(self, usual: float, now: float) -> None:
        """Take tasks for lost that hang, and restart the workers that they hang on."""
        limit = self.patience.hung_s
        if not math.isnan(usual):
            limit = max(limit, self.patience.hung * usual)
        for flight in [f for f in self.flights.values() if f.age(now) > limit]:
            here = [worker for worker, _ in flight.began.values()]
            self.drop(flight)
            self.given_up.append(self.lose(flight, f"no answer for {flight.age(now):.0f} s"))
            self.restart(here)

    def restart(self, workers: list[str]) -> None:
        """Have nannies restart their workers; what else these had goes to others."""
        if not workers:
            return
        self.notify("restarted", {"workers": workers})
        try:
            self.client.restart_workers(workers, timeout=RESTART_S, raise_for_error=False)
        except (ValueError, KeyError) as error:  # it has no nanny, or has just died
            log.warning("%s cannot be restarted: %s", workers, error)
