"""Throughput where every request to storage takes longer: one real job, from bucket to bucket.

    python benchmarks/latency.py [--ms 0,50,100] [--rounds 3] [--size 64,384,384]

S3 is rclone. A proxy in a process of its own holds each request back before it is carried out. Runs
of the same latency are rounds apart, so that what else the machine does falls on all alike. A rate
is voxels over the wall time of the run, planning and the model's loading left out; ``whole`` has
them in it. ``computing`` is the share of that time that the network is busy, which other programs
on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import servers
from jobs import slow_model, write_source

import isochunk
from isochunk.core.geometry import Spacing, Triple
from isochunk.core.synthetic import synthetic_em

MODEL = "fsrcnn-z4"
CHUNK = (64, 64, 64)
BLOCK = (128, 128, 128)
SHOWN = ("wall_s", "whole_s", "stages_s", "depth", "requests", "blocks")


def hold_back(upstream: str, latency_s: float, told: Connection) -> None:
    """Run a proxy until told to end; say its URL first and its number of requests last."""
    faults = servers.Faults(latency_s=latency_s)
    with servers.proxy(upstream, faults) as url:
        told.send(url)
        told.recv()
        told.send(len(faults.requests))


@contextmanager
def slow_server(upstream: str, latency_s: float) -> Iterator[tuple[str, list[int]]]:
    """Give the URL of a proxy, and a list that gets its number of requests at the end."""
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=hold_back, args=(upstream, latency_s, theirs), daemon=True)
    process.start()
    requests: list[int] = []
    try:
        yield ours.recv(), requests
        ours.send(None)
        requests.append(ours.recv())
    finally:
        process.join(10)


def measure(source: str, target: str, model: str) -> dict[str, Any]:
    """Run the job in this process."""
    begun = time.perf_counter()
    job = isochunk.Job(
        source=source,
        target=target,
        model=model,
        block=BLOCK,
        shard=BLOCK,
        trust=True,
        encoding="raw",  # as the figures in docs/performance.md
    )
    plan = isochunk.plan(job)
    report = isochunk.run(plan)
    assert report.complete, report.errors
    return {
        **report.summary(),
        "whole_s": time.perf_counter() - begun,
        "computing": report.compute_s / report.wall_s,
        "depth": plan.depth,
    }


def one_run(bucket: str, upstream: str, latency_s: float, model: str) -> dict[str, Any]:
    """Run the job in a process of its own, behind a proxy of its own."""
    target = f"{bucket}/out-{time.time_ns()}"
    with slow_server(upstream, latency_s) as (url, requests):
        done = subprocess.run(
            [sys.executable, __file__, "--measure", f"{bucket}/in", target, model],
            env={**os.environ, "AWS_ENDPOINT_URL": url},
            check=True,
            stdout=subprocess.PIPE,
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "requests": requests[0]}


def main() -> None:
    """Measure and print a table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ms", default="0,50,100", help="latencies, the first is the reference")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--size", default="64,384,384", help="source voxels, z,y,x")
    options.add_argument("--sleep", type=float, help="in place of the network: seconds a tile")
    options.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.measure:
        print(json.dumps(measure(*chosen.measure)))
        return
    latencies = [int(ms) for ms in chosen.ms.split(",")]
    z, y, x = (int(n) for n in chosen.size.split(","))
    shape: Triple = (z, y, x)
    runs: dict[int, list[dict[str, Any]]] = {ms: [] for ms in latencies}
    with tempfile.TemporaryDirectory() as folder, servers.s3_server(Path(folder)) as server:
        os.environ.update(server.environment)
        bucket = f"s3://{servers.BUCKET}"
        voxels = synthetic_em(shape, spacing=Spacing.parse("32,8,8"))
        write_source(f"{bucket}/in", voxels, "32,8,8", chunk=CHUNK)
        model = MODEL if chosen.sleep is None else slow_model(Path(folder), chosen.sleep)
        for _ in range(chosen.rounds):
            for ms in latencies:
                run = one_run(bucket, server.endpoint_url, ms / 1000, model)
                shown = {k: v for k, v in run.items() if k in SHOWN}
                print(ms, shown, file=sys.stderr)
                runs[ms].append(run)
    print("| latency ms | requests | wall s | whole s | Mvox/s | ratio | computing | ratio |")
    print("|" + "---|" * 8)
    first = None
    for ms, rows in runs.items():
        wall, whole, requests, rate, computing = (
            statistics.median(row[key] for row in rows)
            for key in ("wall_s", "whole_s", "requests", "voxels_per_s", "computing")
        )
        first = first or (rate, computing)
        print(
            f"| {ms} | {requests:.0f} | {wall:.1f} | {whole:.1f} | {rate / 1e6:.2f} "
            f"| {rate / first[0]:.3f} | {computing:.3f} | {computing / first[1]:.3f} |"
        )


if __name__ == "__main__":
    main()
