"""Which worker gets the next task: the one that has least."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

IN_FLIGHT_PER_WORKER = 2
"""Tasks in flight for each worker: one computing, one reading ahead. As many run in a worker at
once, so all begin as soon as they arrive; and Dask steals none that has begun."""


class Placement:
    """Where the tasks in flight are.

    Dask itself takes a worker for idle whose tasks have left its thread pool, as ours do, and would
    give one worker three of four tasks.
    """

    def __init__(self, workers: Iterable[str]) -> None:
        """Take the workers there are; none has a task."""
        self.load: dict[str, int] = dict.fromkeys(workers, 0)
        """Tasks in flight of each worker that takes tasks."""
        self.at: dict[str, str] = {}
        """The worker of each task, by its key."""
        self.chosen: set[str] = set()
        """Keys of the tasks that were sent to a worker, and not to whichever Dask takes."""

    def next_worker(self) -> str | None:
        """Return the worker that has least; None where each has enough, or there is none."""
        worker = min(self.load, key=self.load.__getitem__, default=None)
        if worker is None or self.load[worker] >= IN_FLIGHT_PER_WORKER:
            return None
        return worker

    def put(self, key: str, worker: str) -> None:
        """Note that a task is sent to a worker."""
        self.at[key] = worker
        self.chosen.add(key)
        self._count(worker, 1)

    def remove(self, key: str) -> None:
        """Note that a task has ended or is given up."""
        self.chosen.discard(key)
        worker = self.at.pop(key, None)
        if worker is not None:
            self._count(worker, -1)

    def withdraw(self, workers: Iterable[str]) -> None:
        """Give nothing more to workers, until :meth:`update` names them again."""
        for worker in workers:
            self.load.pop(worker, None)

    def update(self, workers: Iterable[str], found: Mapping[str, str]) -> None:
        """Take what the scheduler says.

        Args:
            workers: those that take tasks.
            found: the worker of each task that the scheduler has given to one.
        """
        self.at.update(found)
        self.load = dict.fromkeys(workers, 0)
        for worker in self.at.values():
            self._count(worker, 1)

    def _count(self, worker: str, change: int) -> None:
        if worker in self.load:  # else it is gone, or takes none
            self.load[worker] += change
