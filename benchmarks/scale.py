"""Memory and rate as jobs grow: null blocks through a Dask cluster, and volumes through one worker.

    python benchmarks/scale.py [--blocks 1000,10000,100000]

Client and scheduler share this process, so its resident memory is that of both. Each size runs in a
process of its own.
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
from isochunk.geometry import Box, Spacing
from isochunk.spec import LevelSpec, VolumeSpec
from isochunk.storage.tensorstore import create_volume
from isochunk.testing.synthetic import synthetic_em

BLOCK = 16
MIB = 1 << 20


def null_blocks(folder: Path, blocks: int) -> dict[str, Any]:
    """Send blocks of background through the identity on two worker processes."""
    side = round(math.sqrt(blocks / 10))
    shape = (10 * BLOCK, side * BLOCK, side * BLOCK)
    spacing = Spacing(Fraction(8), Fraction(8), Fraction(8))
    level = LevelSpec("s0", Box.from_shape(shape), spacing, (64, 64, 64), None)
    zero = (Fraction(0), Fraction(0), Fraction(0))
    source = f"file://{folder}/null.zarr"
    create_volume(VolumeSpec(source, "zarr3", "uint8", "raw", zero, (level,)))
    job = isochunk.Job(
        source=source, target=f"{folder}/out", model="identity", levels=1,
        chunk=(BLOCK,) * 3, shard="none", block=(BLOCK,) * 3,
    )  # fmt: skip
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
    return {
        "blocks": report.total,
        "blocks_per_s": round(report.total / report.wall_s),
        "first_task_s": round(first, 2),
        "grown_mib": round((peak - before) / MIB, 1),
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
        source=source, target=f"{folder}/out", model="srunet-z4-small", memory="3GiB",
        shard="128,128,128", block="128,128,128",
    )  # fmt: skip
    plan = isochunk.plan(job)
    report = isochunk.run(plan)
    assert report.complete
    return {
        "mvoxels": round(plan.target.box.size / 1e6, 1),
        "planned_mib": round(plan.worker_memory_bytes() / MIB),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB),
    }


def apart(kind: str, size: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--measure", kind, "--size", str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure and print two tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--blocks", default="1000,10000,100000")
    options.add_argument("--times", default="1,4,16")
    options.add_argument("--measure", choices=["null", "volume"], help=argparse.SUPPRESS)
    options.add_argument("--size", type=int, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.measure:
        measure = null_blocks if chosen.measure == "null" else volume
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), chosen.size)))
        return
    for kind, sizes in (("null", chosen.blocks), ("volume", chosen.times)):
        rows = [apart(kind, int(size)) for size in sizes.split(",")]
        print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
        for row in rows:
            print("| " + " | ".join(str(v) for v in row.values()) + " |")
        print()


if __name__ == "__main__":
    main()
