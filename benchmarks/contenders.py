"""The contenders of ``efficiency.py``; this file runs one of them, in a process of its own.

    python benchmarks/contenders.py NAME FOLDER

Workers of a ``LocalCluster`` import the file that started it. So only what a user's script needs
is imported at the head, and the rest where it is used.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import isochunk

if TYPE_CHECKING:
    from distributed import Client

Row: TypeAlias = dict[str, float]
"""Figures of one run of a contender."""

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "2147483647",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}
"""What a careful user sets so that glibc keeps freed memory."""

SEVERAL = 2
"""Processes or threads of a cluster."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the table."""

    run: Callable[[Path, Path], Row]
    """Takes the folder of the workload and the target; returns figures."""
    rows: str
    """The part of the table it belongs to: user or cluster."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of its process; others of the allocator are taken out."""


def bare(work: Path, target: Path, side: int) -> Row:
    """Forward passes without halo, input or output: the ceiling."""
    import numpy as np
    import workload

    from isochunk.host.allocator import keep_memory
    from isochunk.storage.open import open_volume

    del target
    keep_memory()
    network = workload.fast_network(work)
    source = open_volume(f"{work}/{workload.SOURCE}")
    voxels = source.read(source.spec.box)
    _, height, width = voxels.shape
    workload.forward(network, voxels[:, :side, :side])
    start = time.perf_counter()
    for y in range(0, height, side):
        for x in range(0, width, side):
            part = np.ascontiguousarray(voxels[:, y : y + side, x : x + side])
            workload.forward(network, part)
    return {"wall_s": time.perf_counter() - start, "e_halo": 1.0}


def hand_loop(work: Path, target: Path, side: int) -> Row:
    """What a careful user writes: read with halo, forward, crop, write, next."""
    import numpy as np
    import workload

    from isochunk.core.geometry import Box, reflected
    from isochunk.storage.open import open_volume

    network = workload.fast_network(work)
    source = open_volume(f"{work}/{workload.SOURCE}")
    shape = source.spec.box.shape
    out = workload.create_output(target, (shape[0] * workload.FACTOR, *shape[1:]))
    step = (side // workload.FACTOR, side, side)
    computed, compute_s = 0, 0.0
    start = time.perf_counter()
    for position in np.ndindex(*(-(-n // s) for n, s in zip(shape, step, strict=True))):
        lo = [i * s for i, s in zip(position, step, strict=True)]
        hi = [min(i + s, n) for i, s, n in zip(lo, step, shape, strict=True)]
        index = [
            reflected(i - h, j + h, 0, n)
            for i, j, h, n in zip(lo, hi, workload.HALO, shape, strict=True)
        ]
        low = [int(i.min()) for i in index]
        read = Box(tuple(low), tuple(int(i.max()) + 1 for i in index))
        voxels = source.read(read)[np.ix_(*(i - o for i, o in zip(index, low, strict=True)))]
        before = time.perf_counter()
        answer = workload.forward(network, voxels)
        compute_s += time.perf_counter() - before
        computed += answer.size
        z = slice(lo[0] * workload.FACTOR, hi[0] * workload.FACTOR)
        core = workload.without_halo(answer)
        out[z, lo[1] : hi[1], lo[2] : hi[2]].write(core).result()
    wall = time.perf_counter() - start
    return {"wall_s": wall, "compute_s": compute_s, "e_halo": out.size / computed}


def map_overlap(work: Path, target: Path, side: int) -> Row:
    """Dask's own overlap, threads, stored with to_zarr."""
    import dask
    import dask.array as da
    import numpy as np
    import workload
    import zarr

    network = workload.fast_network(work)
    source = da.from_zarr(f"{work}/{workload.SOURCE}/s0")
    source = source.rechunk((side // workload.FACTOR, side, side))
    shape = (source.shape[0] * workload.FACTOR, *source.shape[1:])

    def predict(voxels: np.ndarray) -> np.ndarray:
        return workload.without_halo(workload.forward(network, np.ascontiguousarray(voxels)))

    padded = da.overlap.overlap(source, dict(enumerate(workload.HALO)), "reflect")
    chunks = (tuple(c * workload.FACTOR for c in source.chunks[0]), *source.chunks[1:])
    empty = np.empty((0, 0, 0), np.uint8)
    result = da.map_blocks(predict, padded, chunks=chunks, dtype="uint8", meta=empty)
    store = zarr.create_array(
        str(target / "s0"),
        shape=shape,
        dtype="uint8",
        chunks=(workload.CHUNK,) * 3,
        shards=(workload.SHARD,) * 3,
        compressors=None,
    )
    start = time.perf_counter()
    with dask.config.set(scheduler="threads"):
        result.to_zarr(store)
    return {"wall_s": time.perf_counter() - start, "e_halo": source.size / padded.size}


def job(work: Path, target: Path, model: str, **options: Any) -> isochunk.Job:
    """Return the conversion as a user states it; all that is not said here is the default."""
    return isochunk.Job(
        source=f"{work}/source.zarr",
        target=f"zarr3://{target}",
        model=f"{work}/{model}",
        encoding="raw",
        chunk=(64, 64, 64),
        shard=(128, 128, 128),
        **options,
    )


def planned(described: isochunk.Job) -> tuple[Any, Row]:
    """Plan, and say how long it took."""
    start = time.perf_counter()
    plan = isochunk.plan(described)
    return plan, {"plan_s": time.perf_counter() - start}


def carried_out(plan: Any, client: Client | None = None) -> Row:
    """Run a plan; time it, and its first block."""
    first = 0.0
    start = time.perf_counter()

    def watch(report: Any) -> None:
        nonlocal first
        if report.done and not first:
            first = time.perf_counter() - start

    report = isochunk.run(plan, client, watch)
    wall = time.perf_counter() - start
    if not report.complete:
        raise RuntimeError(f"blocks failed: {report.errors}")
    return {"wall_s": wall, "first_s": first, "compute_s": report.compute_s}


def foreseen(plan: Any) -> Row:
    """Return what a plan says beforehand of halo and memory."""
    return {
        "blocks": plan.block_count(0),
        "e_halo": 1 / (1 + plan.compute_overhead()),
        "planned_gib": plan.worker_memory_bytes() / 2**30,
    }


def one_process(work: Path, target: Path, model: str, **options: Any) -> Row:
    """Convert in this process, as a user's script does."""
    plan, planning = planned(job(work, target, model, **options))
    return {**carried_out(plan), **planning, **foreseen(plan)}


def on_cluster(
    work: Path, target: Path, model: str, cluster: Callable[[], Any], **options: Any
) -> Row:
    """Convert on a cluster that is there already, as a user's script does."""
    from isochunk.cluster.backend import fit_to_workers
    from isochunk.cluster.devices import ask_devices

    plan, planning = planned(job(work, target, model, **options))
    with cluster() as client:
        workers = len(client.nthreads())
        # As run does before it sends the job.
        fitted = fit_to_workers(plan, client, ask_devices(plan, client))
        row = carried_out(plan, client)
        peak = max(client.run(peak_gib).values())
    return {**row, **planning, **foreseen(fitted), "peak_gib": peak, "processes": workers}


@contextmanager
def users_cluster(processes: int, threads: int) -> Iterator[Client]:
    """Start a cluster as a user writes it; nothing of it is isochunk's."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=processes, threads_per_worker=threads, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(processes)
        yield client


@contextmanager
def own_cluster(processes: int) -> Iterator[Client]:
    """Start isochunk's cluster."""
    with isochunk.start_cluster("local", processes) as client:
        client.wait_for_workers(processes)
        yield client


def bare_pipeline(work: Path, target: Path, model: str) -> Row:
    """Read, compute and write overlapped, without loop, ledger or scheduler."""
    from isochunk.engine.opened import open_job
    from isochunk.engine.pipeline import Pipeline
    from isochunk.engine.prepare import prepare_target

    plan, planning = planned(job(work, target, model))
    prepare_target(plan)
    start = time.perf_counter()
    compute_s = 0.0
    with Pipeline(open_job(plan)) as pipeline:
        for stage in range(len(plan.stages)):
            futures = [pipeline.submit(stage, i) for i in range(plan.block_count(stage))]
            for report in [future.result() for future in futures]:
                if report.error:
                    raise RuntimeError(report.error)
                compute_s += report.compute_s
    wall = time.perf_counter() - start
    return {"wall_s": wall, "compute_s": compute_s, **planning, **foreseen(plan)}


def peak_gib() -> float:
    """Return the most memory that this process had.

    Not ``ru_maxrss``, where Linux tells better: that also counts what the process that started
    this one had.
    """
    import resource
    from pathlib import Path

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.exists():
        lines = (line.split() for line in status.read_text().splitlines())
        peak = next((int(words[1]) for words in lines if words[0] == "VmHWM:"), peak)
    return peak / 2**20


PYTHON_FILE = "user_network.py:make"
PROGRAM = "network.pt2"
CHECKPOINT = "checkpoint"
USERS_FILE: dict[str, Any] = {"model": PYTHON_FILE, "trust": True}
BLOCKS_OF_128: dict[str, Any] = {"block": (128, 128, 128)}
BLOCKS_OF_256: dict[str, Any] = {"block": (256, 256, 256)}
PROCESSES = partial(users_cluster, SEVERAL, 1)
THREADS = partial(users_cluster, 1, SEVERAL)
OWN = partial(own_cluster, SEVERAL)

CONTENDERS: dict[str, Contender] = {
    "bare forward": Contender(partial(bare, side=256), "user"),
    "bare forward, small tiles": Contender(partial(bare, side=128), "user"),
    "hand loop 256, tuned": Contender(partial(hand_loop, side=256), "user", TUNED),
    "hand loop 256": Contender(partial(hand_loop, side=256), "user"),
    "hand loop 128, tuned": Contender(partial(hand_loop, side=128), "user", TUNED),
    "hand loop 128": Contender(partial(hand_loop, side=128), "user"),
    "map_overlap + to_zarr 256": Contender(partial(map_overlap, side=256), "user"),
    "map_overlap + to_zarr 128": Contender(partial(map_overlap, side=128), "user"),
    "isochunk, user's .py": Contender(partial(one_process, **USERS_FILE), "user"),
    "isochunk, user's .pt2": Contender(partial(one_process, model=PROGRAM), "user"),
    "isochunk, checkpoint": Contender(partial(one_process, model=CHECKPOINT), "user"),
    "isochunk, checkpoint, blocks of 128": Contender(
        partial(one_process, model=CHECKPOINT, **BLOCKS_OF_128), "cluster"
    ),
    "bare pipeline, checkpoint": Contender(partial(bare_pipeline, model=CHECKPOINT), "user"),
    "LocalCluster 2 x 1, user's .py": Contender(
        partial(on_cluster, **USERS_FILE, cluster=PROCESSES), "cluster"
    ),
    "LocalCluster 2 x 1, user's .py, blocks of 256": Contender(
        partial(on_cluster, **USERS_FILE, cluster=PROCESSES, **BLOCKS_OF_256), "cluster"
    ),
    "LocalCluster 2 x 1, user's .py, blocks of 128": Contender(
        partial(on_cluster, **USERS_FILE, cluster=PROCESSES, **BLOCKS_OF_128), "cluster"
    ),
    "LocalCluster 2 x 1, checkpoint, blocks of 128": Contender(
        partial(on_cluster, model=CHECKPOINT, cluster=PROCESSES, **BLOCKS_OF_128), "cluster"
    ),
    "LocalCluster 2 x 1, checkpoint, blocks of 256": Contender(
        partial(on_cluster, model=CHECKPOINT, cluster=PROCESSES, **BLOCKS_OF_256), "cluster"
    ),
    "LocalCluster 1 x 2, user's .py": Contender(
        partial(on_cluster, **USERS_FILE, cluster=THREADS), "cluster"
    ),
    "LocalCluster 1 x 2, user's .py, blocks of 128": Contender(
        partial(on_cluster, **USERS_FILE, cluster=THREADS, **BLOCKS_OF_128), "cluster"
    ),
    "isochunk's cluster of 2, checkpoint, blocks of 128": Contender(
        partial(on_cluster, model=CHECKPOINT, cluster=OWN, **BLOCKS_OF_128), "cluster"
    ),
}


def environment(name: str) -> dict[str, str]:
    """Return the variables of a contender's process: this one's, but the allocator's own."""
    given = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    return {**given, **CONTENDERS[name].environment}


def main() -> None:
    """Run one contender and print its figures."""
    name, folder = sys.argv[1:]
    work = Path(folder)
    row = CONTENDERS[name].run(work, work / "target")
    print(json.dumps({"peak_gib": peak_gib(), **row}))


if __name__ == "__main__":
    main()
