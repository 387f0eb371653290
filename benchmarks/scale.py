"""Memory and rate as jobs grow: null blocks through a Dask cluster, and volumes through one worker.

    python benchmarks/scale.py [--masked 10000,100000,1000000] [--zeros 10000] [--times 1,4,16]

A null block has 16^3 voxels and nothing to store. Masked: the mask, one voxel a block, says so; it
is read as in any run. Zeros: there is no mask, so the block is read, computed by the identity and
written, and the storage library finds that there is nothing to write. Both go through plan, Dask,
ledger and report like any block. Client and scheduler share one process, so its resident memory is
that of both; two worker processes have their own. Each size runs in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
from distributed import Client, LocalCluster

import isochunk
from isochunk.core.geometry import Box, Spacing, Triple
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.synthetic import synthetic_em
from isochunk.storage.open import create_volume

BLOCK = 16
MIB = 1 << 20


def empty_volume(url: str, shape: Triple, spacing_nm: int) -> str:
    """Create a volume of which nothing is stored."""
    spacing = Spacing(*[Fraction(spacing_nm)] * 3)
    level = LevelSpec("s0", Box.from_shape(shape), spacing, (64, 64, 64), None)
    zero = (Fraction(0), Fraction(0), Fraction(0))
    create_volume(VolumeSpec(url, "zarr3", "uint8", "raw", zero, (level,)))
    return url


def null_job(folder: Path, kind: str, blocks: int) -> isochunk.Job:
    """Describe a job of null blocks, ten along z."""
    side = round(math.sqrt(blocks / 10))
    volume = (10 * BLOCK, side * BLOCK, side * BLOCK)
    source = empty_volume(f"file://{folder}/source.zarr", volume, 8)
    mask = empty_volume(f"file://{folder}/mask.zarr", (10, side, side), 8 * BLOCK)
    return isochunk.Job(
        source=source,
        target=f"{folder}/out",
        model="identity",
        levels=1,
        chunk=(BLOCK,) * 3,
        shard="none",
        block=(BLOCK,) * 3,
        mask=mask if kind == "masked" else None,
    )


def null_blocks(folder: Path, kind: str, blocks: int) -> dict[str, Any]:
    """Run null blocks on two worker processes."""
    job = null_job(folder, kind, blocks)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        plan = isochunk.plan(job)
        process = psutil.Process()
        before, peak, first = process.memory_info().rss, 0, 0.0
        start = time.perf_counter()

        def watch(report: Any) -> None:
            nonlocal peak, first
            peak = max(peak, process.memory_info().rss)
            if report.done and not first:
                first = time.perf_counter() - start

        report = isochunk.run(plan, client, watch)
    assert report.complete
    assert report.empty == report.total
    return {
        f"{kind} blocks": report.total,
        "blocks/s": round(report.total / report.wall_s),
        "first task done, s": round(first, 2),
        "client + scheduler, MiB": round(peak / MIB, 1),
        "grown, MiB": round((peak - before) / MIB, 1),
    }


def volume(folder: Path, times: int) -> dict[str, Any]:
    """Convert a volume ``times`` as large as the smallest in one process; return its peak."""
    shape = (32, 256, 256 * times)
    spacing = Spacing.parse("40,10,10")
    level = LevelSpec("s0", Box.from_shape(shape), spacing, (32, 128, 128), None)
    zero = (Fraction(0), Fraction(0), Fraction(0))
    source = f"file://{folder}/source.zarr"
    target = create_volume(VolumeSpec(source, "zarr3", "uint8", "raw", zero, (level,)))
    part = synthetic_em((32, 256, 256), 0, spacing)
    for i in range(times):
        box = Box((0, 0, 256 * i), (32, 256, 256 * (i + 1)))
        target.write(box, part)
    job = isochunk.Job(
        source=source,
        target=f"{folder}/out",
        model="fsrcnn-z4",
        memory="3GiB",
        shard="128,128,128",
        block="128,128,128",
        encoding="raw",  # as the figures in docs/performance.md
    )
    plan = isochunk.plan(job)
    report = isochunk.run(plan)
    assert report.complete
    return {
        "output Mvoxel": round(plan.target.box.size / 1e6, 1),
        "planned, MiB": round(plan.worker_memory_bytes() / MIB),
        "peak, MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB),
    }


def apart(kind: str, size: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--measure", kind, "--size", str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure and print the tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--masked", default="10000,100000,1000000")
    options.add_argument("--zeros", default="10000")
    options.add_argument("--times", default="1,4,16")
    options.add_argument("--measure", choices=["masked", "zeros", "times"], help=argparse.SUPPRESS)
    options.add_argument("--size", type=int, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.measure:
        with tempfile.TemporaryDirectory() as folder:
            if chosen.measure == "times":
                row = volume(Path(folder), chosen.size)
            else:
                row = null_blocks(Path(folder), chosen.measure, chosen.size)
            print(json.dumps(row))
        return
    for kind in ("masked", "zeros", "times"):
        rows = [apart(kind, int(size)) for size in getattr(chosen, kind).split(",") if size]
        if rows:
            print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
        for row in rows:
            print("| " + " | ".join(str(v) for v in row.values()) + " |")
        print()


if __name__ == "__main__":
    main()
