"""Weak scaling of the engine: many workers of a model that sleeps, each with as many tasks.

    python benchmarks/simulate.py [--workers 10,100,1000] [--task-s 10] [--tasks 20] [--hosts 4]

Everything is real but the model and the machines: scheduler and client in processes of their own,
plan, sliding window, stragglers, ledger, target in a temporary folder; every worker is a Dask
worker that opens the job through its plugin, reads a source, and writes what it computed. A few
host processes hold all workers, so only so much work may go on in them: a block is 16^3 voxels, and
the model sleeps, then takes the nearest voxels. A task is one block.

Efficiency is the time that a worker's tasks sleep over the wall time from the start of the
run to the last block recorded; opening the job on the workers is timed apart. With --audit the
target is audited as well: a worker sleeps before each block that it reads, one block at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
from distributed import Client, Worker

import isochunk
from isochunk.cluster import audit as auditing
from isochunk.core.geometry import Box, Spacing
from isochunk.core.spec import LevelSpec, ModelSpec, VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.engine import audit as audits
from isochunk.engine import opened
from isochunk.engine.auditor import Auditor, open_auditor
from isochunk.engine.holes import Hole
from isochunk.models.interface import Launched, Predictor, Staged
from isochunk.planning import plan as planning
from isochunk.planning.block import Block
from isochunk.storage.open import create_volume

BLOCK = 16
MIB = 1 << 20

MEMORY = Path("/dev/shm")
"""Where the volumes are: one disk is no bucket, and stalls a thousand writers."""

HOSTING = {
    # What each worker does for itself all the time, on a machine of its own.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "1h",
    "distributed.admin.tick.interval": "10s",
    "distributed.admin.tick.limit": "1h",
    # A thousand connections are made at once.
    "distributed.comm.timeouts.connect": "120s",
}


class Sleeper:
    """A predictor that takes its time."""

    halvings = 0

    def __init__(self, inner: Predictor, seconds: float) -> None:
        self.inner = inner
        self.seconds = seconds

    @property
    def spec(self) -> ModelSpec:
        return self.inner.spec

    def stage(self, source: Voxels, read: Box, write: Box) -> SleepingBlock:
        return SleepingBlock(self.inner.stage(source, read, write), self.seconds)


@dataclass(frozen=True)
class SleepingBlock:
    """A block whose computing takes its time."""

    inner: Staged
    seconds: float

    def launch(self) -> Launched:
        # The comparison of seams after the run is not what is simulated.
        if threading.current_thread().name.startswith("isochunk-compute"):
            time.sleep(self.seconds)
        return self.inner.launch()


class SleepingAuditor(Auditor):
    """Compares blocks one at a time, and takes its time."""

    def __init__(self, inner: Auditor, seconds: float) -> None:
        super().__init__(inner.plan, inner.target, inner.store)
        self.seconds = seconds
        self.lock = threading.Lock()

    def block(self, block: Block, recorded: Any) -> list[Hole]:
        with self.lock:
            time.sleep(self.seconds)
            return super().block(block, recorded)


class Hosted(Worker):
    """A worker that says once a minute that it lives; a thousand would each 6 s, half a core."""

    async def heartbeat(self) -> None:
        await super().heartbeat()
        self.periodic_callbacks["heartbeat"].callback_time = 60_000


async def host(scheduler_file: str, workers: int, task_s: float) -> None:
    """Hold workers until their scheduler goes away."""
    load = opened.load
    opened.load = lambda model, runtime: Sleeper(load(model, runtime), task_s)
    auditing.open_auditor = lambda *where: SleepingAuditor(open_auditor(*where), task_s)
    with dask.config.set(HOSTING):
        held = [
            Hosted(scheduler_file=scheduler_file, nthreads=1, memory_limit=0, dashboard=False)
            for _ in range(workers)
        ]
        await asyncio.gather(*held)
        await asyncio.gather(*(worker.finished() for worker in held))


@contextmanager
def process(*arguments: str) -> Iterator[psutil.Process]:
    """Run Python in the background."""
    started = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL)
    try:
        yield psutil.Process(started.pid)
    finally:
        started.kill()
        started.wait()


@contextmanager
def cluster(
    folder: Path, workers: int, hosts: int, task_s: float
) -> Iterator[tuple[Client, psutil.Process]]:
    """Start a scheduler and hosts of workers; give a client and the scheduler's process."""
    file = f"{folder}/scheduler.json"
    with ExitStack() as closing:
        command = ["-m", "distributed.cli.dask_scheduler", "--scheduler-file", file]
        listen = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
        scheduler = closing.enter_context(process(*command, *listen))
        for number in range(hosts):
            share = workers // hosts + (number < workers % hosts)
            what = ["--host-file", file, "--workers", str(share), "--task-s", str(task_s)]
            closing.enter_context(process(__file__, *what))
        client = closing.enter_context(Client(scheduler_file=file, timeout=60))
        client.wait_for_workers(workers, timeout=300)
        yield client, scheduler


def sleeping_job(folder: Path, blocks: int) -> isochunk.Job:
    """Describe a job of so many blocks of noise."""
    shape = (BLOCK // 4, BLOCK, BLOCK * blocks)
    level = LevelSpec("s0", Box.from_shape(shape), Spacing.parse("32,8,8"), (4, 16, 4096), None)
    zero = (Fraction(0), Fraction(0), Fraction(0))
    source = f"file://{folder}/source.zarr"
    volume = create_volume(VolumeSpec(source, "zarr3", "uint8", "raw", zero, (level,)))
    volume.write(level.box, np.random.default_rng(0).integers(1, 256, shape, np.uint8))
    return isochunk.Job(
        source=source,
        target=f"{folder}/out",
        model="nearest",
        levels=1,
        chunk=(BLOCK,) * 3,
        shard="none",
        block=(BLOCK,) * 3,
        encoding="raw",  # as the figures in docs/performance.md
    )


def measure_audit(client: Client, target: str, asleep_s: float) -> dict[str, Any]:
    """Audit a target whose workers sleep for so long, each."""
    audits.AUDIT_VOXELS = 1  # a task is one block
    first: list[float] = []
    begun = time.perf_counter()
    report = isochunk.audit(
        target,
        client=client,
        watch=lambda p: first.append(time.perf_counter()) if not first else None,
    )
    wall_s = time.perf_counter() - first[0]
    assert report.complete
    return {
        "audit, opening, s": round(first[0] - begun, 1),
        "audit, s": round(wall_s, 1),
        "audit, efficiency": round(asleep_s / wall_s, 3),
        "audit, blocks/s": round(report.expected / wall_s, 1),
    }


def measure(
    folder: Path, workers: int, tasks: int, hosts: int, task_s: float, audit: bool
) -> dict[str, Any]:
    """Give every worker so many tasks of so many seconds."""
    planning.TASK_BLOCKS = 1
    with cluster(folder, workers, min(hosts, workers), task_s) as (client, scheduler):
        plan = isochunk.plan(sleeping_job(folder, workers * tasks))
        begun, opening_s, wall_s, busy_s = time.perf_counter(), 0.0, 0.0, 0.0
        me, peak = psutil.Process(), 0

        def cpu_s(of: psutil.Process) -> float:
            return of.cpu_times().user + of.cpu_times().system

        before = cpu_s(scheduler)

        def watch(report: Any) -> None:
            nonlocal opening_s, wall_s, busy_s, peak, before
            if not opening_s:
                sending_s = report.wall_s
                opening_s, before = time.perf_counter() - begun - sending_s, cpu_s(scheduler)
            if not wall_s and report.done == report.total:
                wall_s = report.wall_s
                busy_s = cpu_s(scheduler) - before
            peak = max(peak, me.memory_info().rss + scheduler.memory_info().rss)

        report = isochunk.run(plan, client, watch)
        audited = measure_audit(client, plan.target.url, tasks * task_s) if audit else {}
    assert report.complete, report.errors
    assert report.seam is not None
    assert report.seam.max_difference == 0
    return {
        "workers": workers,
        "tasks": report.total,
        "opening, s": round(opening_s, 1),
        "wall, s": round(wall_s, 1),
        "efficiency": round(tasks * task_s / wall_s, 3),
        "tasks/s": round(report.total / wall_s, 1),
        "scheduler CPU": f"{100 * busy_s / wall_s:.0f}%",
        "client + scheduler, MiB": round(peak / MIB),
        **audited,
    }


def main() -> None:
    """Measure each number of workers and print a table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--workers", default="10,100,1000")
    options.add_argument("--task-s", type=float, default=10.0)
    options.add_argument("--tasks", type=int, default=20, help="of each worker")
    options.add_argument("--hosts", type=int, default=4)
    options.add_argument("--audit", action="store_true", help="audit what was written, too")
    options.add_argument("--json", action="store_true")
    options.add_argument("--host-file", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.host_file:
        asyncio.run(host(chosen.host_file, int(chosen.workers), chosen.task_s))
        return
    for position, workers in enumerate(map(int, chosen.workers.split(","))):
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            told = (chosen.tasks, chosen.hosts, chosen.task_s, chosen.audit)
            row = measure(Path(folder), workers, *told)
        if chosen.json:
            print(json.dumps(row), flush=True)
            continue
        if position == 0:
            print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
        print("| " + " | ".join(str(v) for v in row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
