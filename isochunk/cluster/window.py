"""Tasks in flight on a Dask cluster, and what is done about those that go wrong."""

from __future__ import annotations

import logging
import math
import statistics
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from distributed import Client, Future, as_completed

from isochunk.cluster.placement import Placement
from isochunk.cluster.roster import known_workers
from isochunk.engine.events import Notify
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import ClusterError
from isochunk.planning.block import BlockTask

log = logging.getLogger(__name__)

CHECK_S = 1.0
"""How often workers are counted, and stragglers and tasks that hang are looked for."""

POLL_S = 0.01
"""Pause between looks at the futures while none is ready."""

KEPT_DURATIONS = 101
"""Recent tasks whose median tells how long a task usually takes."""

LEAST_DURATIONS = 5
"""With fewer, nothing is a straggler."""

WORKERS_PER_BACKUP = 10
"""One worker in this many may run speculative copies."""

RESTART_S = 5
"""How long a restart is waited for; it goes on without."""

BACKUP = "-backup"
"""Ends the key of a speculative copy."""

Submit = Callable[[BlockTask, str, list[str] | None], Future[Any]]
"""Submits a task under a key, to some workers if these are still there."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Work(Generic[Answer]):
    """What is done with the blocks of tasks, and what is said of it."""

    submit: Submit
    """Sends a task."""
    nothing: Answer
    """Said while waiting."""
    took_time: Callable[[Answer], bool]
    """Whether an answer tells how long a task takes: that of background alone does not."""
    verdict: Callable[[BlockTask, str], Answer]
    """Says of a task that it did not come back even when it ran isolated, and why."""
    kept: str
    """What remains of the work where the cluster goes away, for messages."""


@dataclass(frozen=True, slots=True)
class InFlightTask:
    """A task that was sent and has not answered."""

    task: BlockTask
    """What it carries."""
    key: str
    """Key of its first copy."""
    isolated: bool
    """Nothing else is in flight: what kills its worker is its own doing."""
    sent: float
    """Clock when it was sent."""
    copies: dict[str, Future[Any]]
    """What is still awaited, by key."""
    running: dict[str, tuple[str, float]]
    """The worker that each copy is on, and the clock when it was first seen there, by key."""

    def running_s(self, now: float) -> float:
        """Return how long workers have had it; waiting for a worker is nobody's fault."""
        return now - min((since for _, since in self.running.values()), default=now)

    @property
    def workers(self) -> list[str]:
        """Workers that its copies are on."""
        return [worker for worker, _ in self.running.values()]


class TaskWindow(Generic[Answer]):
    """Runs the tasks of one stage, a bounded number of them in flight on each worker.

    A straggler, a task that takes three times the median, gets a speculative copy on another
    worker; the first answer counts, and where that is the copy's, the worker that was late is
    restarted. A task whose workers keep dying, or that hangs, is a suspect: when all others are
    done, its blocks run again, one at a time and nothing beside them. A block that fails isolated,
    too, is quarantined: it is reported as failed, and the rest of the job is done.
    """

    def __init__(
        self, client: Client, work: Work[Answer], timeouts: Timeouts, notify: Notify
    ) -> None:
        """Take the way to the cluster; nothing is sent yet."""
        self.client = client
        self.work = work
        self.timeouts = timeouts
        self.notify = notify
        self.in_flight: dict[str, InFlightTask] = {}
        """By the key of the first copy."""
        self.suspects: deque[BlockTask] = deque()
        self.given_up: list[Answer] = []
        self.durations: deque[float] = deque(maxlen=KEPT_DURATIONS)
        self.placement = Placement(client.nthreads())
        self.workers = max(1, len(self.placement.load))
        self.not_running: Set[str] = frozenset()
        """Workers that are there and take no tasks, as those do that Dask has paused."""
        self.nowhere: Set[str] = frozenset()
        """Tasks, by key, that no worker had when it was last looked."""
        self.completed = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        self._checked = self._had_scheduler = self._had_workers = time.monotonic()

    def run(self, tasks: Iterator[BlockTask]) -> Iterator[Answer]:
        """Run tasks, then the blocks of those that were lost.

        Raises:
            ClusterError: the scheduler or all workers are gone.
        """
        try:
            waiting = next(tasks, None)
            while waiting is not None or self.in_flight:
                while waiting is not None and (worker := self.placement.next_worker()) is not None:
                    self.send(waiting, worker, isolated=False)
                    waiting = next(tasks, None)
                yield from self.poll()
            while self.suspects:
                task = self.suspects.popleft()
                for index in task.blocks:
                    self.send(BlockTask(task.stage, (index,)), None, isolated=True)
                    while self.in_flight:
                        yield from self.poll()
        finally:
            self.cancel([f for sent in self.in_flight.values() for f in sent.copies.values()])

    def poll(self) -> Iterator[Answer]:
        """Yield what has completed, or wait a moment; see now and then to the others."""
        if time.monotonic() - self._checked > CHECK_S:
            self.check_health()
            self._checked = time.monotonic()
            yield from self.given_up
            self.given_up = []
        if self.completed.has_ready():
            for future, result in self.completed.next_batch(block=True):
                yield self.on_task_done(future, result)
        else:
            yield self.work.nothing
            time.sleep(POLL_S)

    def send(self, task: BlockTask, worker: str | None, *, isolated: bool) -> None:
        """Send a task under a new key: the scheduler remembers the fate of old ones.

        Args:
            task: what to run.
            worker: where, if it is still there; None leaves that to Dask.
            isolated: nothing else is in flight.
        """
        key = f"isochunk-{task.stage}-{task.blocks[0]}-{uuid.uuid4().hex[:8]}"
        sent = InFlightTask(task, key, isolated, time.monotonic(), {}, {})
        self.in_flight[key] = sent
        self.send_copy(sent, key, None if worker is None else [worker])

    def send_copy(self, sent: InFlightTask, key: str, workers: list[str] | None) -> None:
        """Send one copy of a task."""
        future = self.work.submit(sent.task, key, workers)
        sent.copies[key] = future
        if workers is not None:
            self.placement.put(key, workers[0])
        self.completed.add(future)

    def on_task_done(self, future: Future[Any], result: Any) -> Answer:
        """Take a future that ended and return what it answers, if it is the first to."""
        key = str(future.key)
        self.placement.remove(key)
        sent = self.in_flight.get(key.removesuffix(BACKUP))
        if sent is None:  # the other copy was faster, or the task was given up
            return self.work.nothing
        del sent.copies[key]
        _, began = sent.running.pop(key, ("", sent.sent))
        if future.status == "finished":
            answer: Answer = result
            if self.work.took_time(answer):
                self.durations.append(time.monotonic() - began)
            self.drop(sent)
            if key.endswith(BACKUP):  # what was late may never end, and holds a thread until then
                self.restart(sent.workers)
            return answer
        if sent.copies:
            return self.work.nothing
        self.drop(sent)
        if future.status == "error":
            return self.on_task_lost(sent, f"{type(result[1]).__name__}: {result[1]}")
        # Cancelled: the client lost the scheduler, which then forgot what this client had sent.
        self.check_health()
        self.send(sent.task, None, isolated=sent.isolated)
        return self.work.nothing

    def on_task_lost(self, sent: InFlightTask, cause: str) -> Answer:
        """Note that a task did not come back; return the verdict if it ran isolated."""
        task = sent.task
        details = {"stage": task.stage, "blocks": list(task.blocks), "cause": cause}
        if not sent.isolated:
            log.warning(
                "blocks %s of stage %d did not come back and will run again, each alone: %s",
                task.blocks,
                task.stage,
                cause,
            )
            self.notify("lost", details)
            self.suspects.append(task)
            return self.work.nothing
        log.warning("blocks %s of stage %d are quarantined: %s", task.blocks, task.stage, cause)
        self.notify("quarantined", details)
        return self.work.verdict(task, cause)

    def drop(self, sent: InFlightTask) -> None:
        """Forget a task and the copies of it that are still at work."""
        del self.in_flight[sent.key]
        for key in sent.copies:
            self.placement.remove(key)
        self.cancel(list(sent.copies.values()))

    def cancel(self, futures: list[Future[Any]]) -> None:
        """Cancel futures where there is still a scheduler to tell."""
        if futures and self.client.status == "running":
            self.client.cancel(futures)

    def check_health(self) -> None:
        """Look for a lost scheduler, lost workers, stragglers and tasks that hang.

        Raises:
            ClusterError: the scheduler or all workers are gone.
        """
        self.check_scheduler()
        now = self._had_scheduler = time.monotonic()
        at = self.client.processing()
        self.check_workers(len(at), now)
        where = {key: worker for worker, keys in at.items() for key in keys}
        self.place(at.keys(), where)
        for sent in self.in_flight.values():
            for key in sent.copies:
                worker = where.get(key)
                if worker is None:
                    sent.running.pop(key, None)
                elif sent.running.get(key, ("", now))[0] != worker:
                    sent.running[key] = (worker, now)
        enough = len(self.durations) >= LEAST_DURATIONS
        median_s = statistics.median(self.durations) if enough else math.nan
        self.launch_backups(median_s, now, {worker: len(keys) for worker, keys in at.items()})
        self.give_up_hanging(median_s, now)

    def place(self, workers: Set[str], where: Mapping[str, str]) -> None:
        """Note which workers take tasks, and where those in flight have gone.

        Args:
            workers: all there are.
            where: the worker of every task that the scheduler has given to one.
        """
        keys = (key for sent in self.in_flight.values() for key in sent.copies)
        found = {key: where[key] for key in keys if key in where}
        # All that a scheduler knows of a thousand workers is much to ask for every second.
        strayed = any(self.placement.at.get(key, w) != w for key, w in found.items())
        if strayed or self.not_running:
            known = known_workers(self.client)
            self.not_running = {w for w, said in known.items() if said["status"] != "running"}
        self.placement.update(workers - self.not_running, found)
        self.send_stranded(where)

    def send_stranded(self, where: Mapping[str, str]) -> None:
        """Send tasks again that no worker has.

        Where all workers are gone at once, Dask keeps a task that was sent to one of them until a
        worker of that very address comes, though others may have it. The new copy is sent to none,
        so that Dask goes on counting the workers that die of it.
        """
        chosen = self.placement.chosen
        nowhere = {
            sent.key
            for sent in self.in_flight.values()
            if sent.copies and all(k in chosen and k not in where for k in sent.copies)
        }
        for key in nowhere & self.nowhere:  # not just one that has ended, or is on its way
            sent = self.in_flight[key]
            self.drop(sent)
            self.send(sent.task, None, isolated=sent.isolated)
        self.nowhere = nowhere

    def check_scheduler(self) -> None:
        """Wait for a lost scheduler, for a time.

        Raises:
            ClusterError: it did not come back.
        """
        while self.client.status != "running":
            lost_s = time.monotonic() - self._had_scheduler
            if self.client.status == "closed" or lost_s > self.timeouts.no_scheduler_s:
                raise ClusterError(
                    f"the Dask scheduler is gone; {self.work.kept}: start a cluster and give the "
                    "same command again"
                )
            time.sleep(POLL_S)

    def check_workers(self, count: int, now: float) -> None:
        """Note how many workers there are.

        Raises:
            ClusterError: there has been none for too long.
        """
        if count:
            self._had_workers = now
        elif now - self._had_workers > self.timeouts.no_workers_s:
            raise ClusterError(
                f"the Dask cluster has had no worker for {self.timeouts.no_workers_s:.0f} s; "
                f"{self.work.kept}: start workers and give the same command again"
            )
        if max(1, count) != self.workers:
            self.notify("workers", {"workers": count})
        self.workers = max(1, count)

    def launch_backups(self, median_s: float, now: float, load: Mapping[str, int]) -> None:
        """Send speculative copies of stragglers to the workers that have least to do.

        Args:
            median_s: how long a task usually takes; NaN where that is not known yet.
            now: clock.
            load: tasks of each worker.
        """
        limit = max(self.timeouts.backup_factor * median_s, self.timeouts.backup_min_s)
        single = [s for s in self.in_flight.values() if len(s.copies) == 1 and not s.isolated]
        late = [s for s in single if not math.isnan(median_s) and s.running_s(now) > limit]
        room = max(1, self.workers // WORKERS_PER_BACKUP) - (len(self.in_flight) - len(single))
        for sent in late[: max(0, room)]:
            others = sorted(set(load) - set(sent.workers), key=lambda worker: load[worker])
            if others:
                self.notify(
                    "straggler",
                    {
                        "stage": sent.task.stage,
                        "blocks": list(sent.task.blocks),
                        "seconds": round(sent.running_s(now), 1),
                        "median_s": round(median_s, 1),
                        "workers": sent.workers,
                    },
                )
                self.send_copy(sent, sent.key + BACKUP, others[:3])

    def give_up_hanging(self, median_s: float, now: float) -> None:
        """Take tasks that hang for lost, and restart the workers that they hang on."""
        limit = self.timeouts.hang_min_s
        if not math.isnan(median_s):
            limit = max(limit, self.timeouts.hang_factor * median_s)
        for sent in [s for s in self.in_flight.values() if s.running_s(now) > limit]:
            workers = sent.workers
            self.drop(sent)
            cause = f"no answer for {sent.running_s(now):.0f} s"
            self.given_up.append(self.on_task_lost(sent, cause))
            self.restart(workers)

    def restart(self, workers: list[str]) -> None:
        """Have nannies restart their workers; what else these had goes to others."""
        if not workers:
            return
        self.notify("restarted", {"workers": workers})
        self.placement.withdraw(workers)
        try:
            self.client.restart_workers(workers, timeout=RESTART_S, raise_for_error=False)
        except (ValueError, KeyError) as error:  # it has no nanny, or has just died
            log.warning("%s cannot be restarted: %s", workers, error)
