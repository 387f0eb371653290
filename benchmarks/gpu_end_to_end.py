"""Whole conversions on a device, from shared memory to shared memory, as a user starts them."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gpu_forward import SOURCE, planned
from gpu_machine import GIB, Line, NotHereError, Setting, card_id, extents
from gpu_networks import FACTOR, SPACING, Subject

import isochunk
from isochunk.core.geometry import Box, Spacing, Triple
from isochunk.core.job import Precision
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.synthetic import synthetic_em
from isochunk.planning.plan import Plan
from isochunk.storage.open import create_volume

if TYPE_CHECKING:
    from distributed import Client

FINE_SOURCE = "fine.zarr"
"""What is only copied: as large as what networks make."""

PATTERN: Triple = (64, 256, 256)
"""Voxels that are made; the sources repeat them."""

FEW_BLOCKS = 4
"""Blocks from which on it can be told how fast they follow on one another."""

SAMPLE_MS = 100
"""Time between questions of how busy a GPU is."""

FEW_SAMPLES = 3
"""Answers from which on they are believed."""


def write_sources(setting: Setting) -> list[Line]:
    """Write both sources, and say where and how large they are."""
    z, y, x = setting.source_shape
    begun = time.perf_counter()
    write_source(setting, SOURCE, (z, y, x), SPACING)
    write_source(setting, FINE_SOURCE, (int(z * FACTOR), y, x), Spacing.parse("10,10,10"))
    return [
        {
            "what": "sources",
            "shape": extents(setting.source_shape),
            "in_memory": str(setting.work).startswith("/dev/shm"),
            "written_s": time.perf_counter() - begun,
        }
    ]


def write_source(setting: Setting, name: str, shape: Triple, spacing: Spacing) -> None:
    """Write a volume that repeats a synthetic one."""
    small = tuple(map(min, PATTERN, shape))
    level = LevelSpec("s0", Box.from_shape(shape), spacing, (64, 64, 64), None)
    spec = VolumeSpec(
        f"file://{setting.work}/{name}", "zarr3", "uint8", "raw", (FACTOR * 0,) * 3, (level,)
    )
    volume = create_volume(spec)
    voxels = synthetic_em((small[0], small[1], small[2]), seed=4, spacing=spacing)
    starts = (range(0, n, step) for n, step in zip(shape, small, strict=True))
    for corner in product(*starts):
        box = Box.from_shape(voxels.shape, corner) & level.box
        volume.write(box, np.ascontiguousarray(voxels[box.slices(corner)]))


def here(setting: Setting, subject: Subject, precision: Precision) -> list[Line]:
    """Convert in this process."""
    plan = plan_of(setting, subject, precision)
    if not setting.small:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    line = carried_out(setting, plan)
    if not setting.small:
        line |= {
            "peak_gib": torch.cuda.max_memory_allocated() / GIB,
            "taken_gib": torch.cuda.max_memory_reserved() / GIB,
        }
    return [{**named(subject, precision, "one process"), **line}]


def on_cluster(setting: Setting, subject: Subject, precision: Precision) -> list[Line]:
    """Convert on isochunk's own cluster: a worker for each GPU, or one worker on the CPU."""
    kind = "local" if setting.small else "cuda"
    for module in ("distributed", *(() if setting.small else ("dask_cuda",))):
        try:
            import_module(module)
        except ImportError as error:
            raise NotHereError(str(error)) from error
    workers = 1 if setting.small else None
    plan = plan_of(setting, subject, precision, cluster=kind, workers=workers)

    def peaks() -> tuple[float, float]:
        import torch

        return torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30

    if not setting.small:
        torch.cuda.empty_cache()  # this process shares the GPU with the worker's
    with isochunk.start_cluster(kind, workers) as client:
        client.wait_for_workers(1)
        line = carried_out(setting, plan, client)
        line["workers"] = len(client.nthreads())
        if not setting.small:
            tensors, taken = zip(*client.run(peaks).values(), strict=True)
            line |= {"peak_gib": max(tensors), "taken_gib": max(taken)}
    return [{**named(subject, precision, f"cluster {kind}"), **line}]


def plan_of(setting: Setting, subject: Subject, precision: Precision, **options: Any) -> Plan:
    """Plan; what only copies is given as many voxels as networks make."""
    model = subject.model(setting.work)
    if setting.small:
        options |= {"chunk": (32, 32, 32), "shard": "none", "block": (32, 32, 64)}
    if subject.name == "identity":
        options["source"] = f"{setting.work}/{FINE_SOURCE}"
    return planned(setting, model, precision, **options)


def named(subject: Subject, precision: Precision, where: str) -> Line:
    """Return what a line is about."""
    precise = "" if subject.name == "identity" else precision
    return {"network": subject.name, "precision": precise, "where": where}


def carried_out(setting: Setting, plan: Plan, client: Client | None = None) -> Line:
    """Run a plan, time it, and watch the GPU.

    Raises:
        RuntimeError: blocks failed.
    """
    seen: list[tuple[float, int, int]] = []

    def watch(report: Any) -> None:
        if report.done > (seen[-1][1] if seen else 0):
            seen.append((time.perf_counter(), report.done, report.voxels))

    try:
        with watched_gpu(setting) as busy:
            begun = time.perf_counter()
            report = isochunk.run(plan, client, watch)
            ended = time.perf_counter()
    finally:
        shutil.rmtree(setting.work / "target", ignore_errors=True)
    if not report.complete:
        raise RuntimeError(f"blocks failed: {report.errors[:1]}")
    line: Line = {
        "voxels": report.voxels,
        "wall_s": ended - begun,
        "mvox_s": report.voxels / (ended - begun) / 1e6,
        "first_s": report.first_block_s,
        "blocks": plan.block_count(0),
        "block": extents(plan.stages[0].block),
        "tile": extents(plan.tile),
        "halo": plan.compute_overhead(),
        "planned_gib": plan.tile_bytes(plan.tile) / GIB,
        "halvings": report.halvings,
        "computing": report.compute_s / (ended - begun),
    }
    if plan.block_count(0) >= FEW_BLOCKS and len(seen) > 1:
        (first, _, before), (last, _, all_) = seen[0], seen[-1]
        line["steady_mvox_s"] = (all_ - before) / (last - first) / 1e6
    shares = [share for at, share in busy if begun <= at <= ended]
    if len(shares) >= FEW_SAMPLES:
        line["busy"] = sum(shares) / len(shares)
    return line


@contextmanager
def watched_gpu(setting: Setting) -> Iterator[list[tuple[float, float]]]:
    """Ask ``nvidia-smi`` again and again what share of the time a GPU has had kernels.

    Yields:
        A list that fills with times and shares; empty where it does not answer.
    """
    seen: list[tuple[float, float]] = []
    if setting.small:
        yield seen
        return
    command = [
        "nvidia-smi",
        f"--id={card_id()}",
        "--query-gpu=utilization.gpu",
        "--format=csv,noheader,nounits",
        f"--loop-ms={SAMPLE_MS}",
    ]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except OSError:
        yield seen
        return
    answered = threading.Event()

    def listen() -> None:
        assert process.stdout is not None
        for text in process.stdout:
            if text.strip().isdigit():
                seen.append((time.perf_counter(), int(text) / 100))
                answered.set()
        answered.set()  # it will not

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    answered.wait(5)  # so that it does not start while the job does
    try:
        yield seen
    finally:
        process.terminate()
        process.wait()
        listener.join()
