"""Dask clusters of separate processes, whose parts can be killed one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import servers
from distributed import Client, LocalCluster

TTL_S = 10
"""A worker that is silent for so long is restarted."""

PATIENCE_S = 20
"""How long a nanny may take to start a worker again."""

ALLOWED_FAILURES = 1
"""Workers that may die of a task, besides the first."""


@dataclass
class Cluster:
    """A scheduler and workers, each with a nanny."""

    address: str
    scheduler: subprocess.Popen[bytes]
    start_nanny: Callable[[int], subprocess.Popen[bytes]]
    nannies: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def wait_until_whole(self, client: Client) -> None:
        """Wait for all workers; start those again whose nanny gave up, as a batch system would.

        A nanny whose worker is killed while it is being started again sometimes leaves it at that.
        """
        try:
            client.wait_for_workers(len(self.nannies), timeout=PATIENCE_S)
        except TimeoutError:
            for number, nanny in enumerate(self.nannies):
                if not self._workers(number):
                    end_family(nanny)
                    self.nannies[number] = self.start_nanny(number)
            client.wait_for_workers(len(self.nannies), timeout=60)

    def worker(self, number: int) -> psutil.Process:
        """Return the worker process that a nanny looks after now."""
        return self._workers(number)[0]

    def _workers(self, number: int) -> list[psutil.Process]:
        children = psutil.Process(self.nannies[number].pid).children()
        return [c for c in children if "spawn_main" in " ".join(c.cmdline())]


@contextmanager
def cluster(folder: Path, workers: int = 2) -> Iterator[Cluster]:
    """Run a cluster until the block ends; what its processes say goes to files of the folder."""
    port = servers.free_port()
    spawn = "DASK_DISTRIBUTED__"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        f"{spawn}SCHEDULER__ALLOWED_FAILURES": str(ALLOWED_FAILURES),
        f"{spawn}SCHEDULER__WORKER_TTL": f"{TTL_S}s",
    }

    def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = closing.enter_context((folder / f"{name}.log").open("ab"))
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        closing.callback(end_family, process)
        return process

    address = f"tcp://127.0.0.1:{port}"

    def start_nanny(number: int) -> subprocess.Popen[bytes]:
        return start(
            f"worker-{number}",
            "worker",
            address,
            "--host",
            "127.0.0.1",
            "--nthreads",
            "1",
            "--memory-limit",
            "0",
            "--no-dashboard",
            "--death-timeout",
            "60",
            "--local-directory",
            str(folder),
        )

    with ExitStack() as closing:
        scheduler = start(
            "scheduler", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"
        )
        yield Cluster(address, scheduler, start_nanny, [start_nanny(n) for n in range(workers)])


def end_family(process: subprocess.Popen[bytes]) -> None:
    """End a process, gently if that works, and its children."""
    children = []
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        servers.end(process)
    for child in children:
        if child.is_running():
            child.kill()


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    """Run a cluster as users start one, of single-threaded processes, until the block ends."""
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",
            silence_logs=False,  # else it silences the handlers with which tests read the log
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
