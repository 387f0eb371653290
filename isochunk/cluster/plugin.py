"""What a worker process opens once and holds for all tasks of a job."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from importlib.metadata import version
from typing import Any, Generic, NoReturn, TypeVar

from distributed import Client, Reschedule, WorkerPlugin, get_worker

from isochunk.cluster.start import check_versions
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import ClusterError, UsageError

log = logging.getLogger(__name__)

SENDS = 3
"""Times that a job is sent to workers that die of other causes meanwhile."""

Held = TypeVar("Held")


class HoldingPlugin(WorkerPlugin, ABC, Generic[Held]):
    """Opens something in each worker process, present and future, and holds it there."""

    held: Held | None = None
    """What is open, on a worker."""

    def __init__(self, name: str) -> None:
        """Take the name that tasks ask for; nothing is opened before it is on a worker."""
        self.name = name
        self.version = version("isochunk")

    @abstractmethod
    def open(self, worker: Any) -> Held:
        """Open what is held; the worker stays in touch meanwhile."""

    @abstractmethod
    def close(self, held: Held) -> None:
        """Drop what is not at work."""

    def unusable(self, held: Held) -> str | None:
        """Return why what is held cannot be used any more; None if it can."""
        del held
        return None

    async def setup(self, worker: Any) -> None:
        """Open in the worker's process.

        Raises:
            UsageError: a worker that came later has another version of isochunk.
        """
        if version("isochunk") != self.version:
            raise UsageError(
                f"worker {worker.address} has isochunk {version('isochunk')}, wanted is "
                f"{self.version}; install that version there"
            )
        self.held = await asyncio.to_thread(self.open, worker)

    def teardown(self, worker: Any) -> None:
        """Close what was opened."""
        if self.held is not None:  # setup got so far
            self.close(self.held)


def held_here(name: str) -> Any:
    """Return what is open in this worker process.

    A worker that came later and could not open the job stays in the cluster all the same, and
    would fail every task it is given at once. It leaves for good, and another worker gets the task.
    Where what is open is broken, as a GPU's context is after an error of CUDA, only the process
    ends: its nanny, if it has one, starts another under the same name.
    """
    worker = get_worker()
    plugin = worker.plugins[name]
    assert isinstance(plugin, HoldingPlugin)
    if plugin.held is None:
        log.error("worker %s could not open the job and leaves", worker.address)
        leave(worker, "the job could not be opened", nanny=True)
    broken = plugin.unusable(plugin.held)
    if broken is not None:
        log.error("worker %s leaves: %s", worker.address, broken)
        leave(worker, broken, nanny=False)
    return plugin.held


def leave(worker: Any, reason: str, *, nanny: bool) -> NoReturn:
    """Have a worker leave the cluster, and its task go to another.

    Args:
        worker: this process's.
        reason: for its log.
        nanny: its nanny leaves too, so that no other process takes its place.

    Raises:
        Reschedule: always.
    """
    worker.loop.add_callback(worker.close, nanny=nanny, reason=reason)
    raise Reschedule


def wait_for_a_worker(client: Client, timeouts: Timeouts) -> None:
    """Wait for the first worker, and check that all there are have this isochunk.

    Raises:
        UsageError: no worker came, or one has another version.
    """
    try:
        client.wait_for_workers(1, timeout=timeouts.no_workers_s)
    except TimeoutError:
        raise UsageError(
            f"no Dask worker came within {timeouts.no_workers_s:.0f} s; start workers for "
            f"{client.scheduler_info()['address']}"
        ) from None
    check_versions(client)


def send_plugin(client: Client, plugin: HoldingPlugin[Any]) -> None:
    """Open a job on every worker; one that dies meanwhile is not the end.

    Raises:
        ClusterError: workers kept dying.
    """
    for left in reversed(range(SENDS)):
        try:
            client.register_plugin(plugin, name=plugin.name)
        except OSError as error:
            if not left:
                raise ClusterError(f"workers died when the job was opened: {error}") from error
            log.warning("a worker died when the job was opened; opening it again: %s", error)
        else:
            return


def drop_plugin(client: Client, name: str) -> None:
    """Close a job on the workers, where there is still a scheduler to tell."""
    if client.status == "running":
        client.unregister_worker_plugin(name)
