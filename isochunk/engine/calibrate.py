"""Run a few blocks of a plan for real, and time them; nothing is written at the target."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from isochunk.core.geometry import grid_shape, triple
from isochunk.engine.cost import Calibration
from isochunk.engine.loop import Backend
from isochunk.errors import IsochunkError, UsageError
from isochunk.planning.block import BlockReport, BlockTask
from isochunk.planning.layout import block_index
from isochunk.planning.plan import Plan

log = logging.getLogger(__name__)

STEPS = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)
"""Powers of the reciprocal of x in x^4 = x + 1: multiples of these fill a cube evenly (R3)."""


def trial(plan: Plan) -> Plan:
    """Return the plan that writes into the memory of whatever process runs it."""
    return replace(plan, target=replace(plan.target, url="memory://calibration"))


def measure(plan: Plan, backend: Backend, blocks: int) -> Calibration:
    """Run blocks of the first stage and time them.

    A block for each worker runs first and is not counted: it loads what a process loads once.

    Args:
        plan: a :func:`trial`.
        backend: where blocks run; it holds the trial.
        blocks: how many to time; all, if the plan has fewer.

    Raises:
        UsageError: ``blocks`` is less than 1.
        IsochunkError: a block failed.
    """
    if blocks < 1:
        raise UsageError(f"calibrate is {blocks}; it must be at least 1")
    for _ in run(backend, spread_blocks(plan, backend.workers)):
        pass
    chosen = spread_blocks(plan, blocks)
    log.info("timing %d of %d blocks", len(chosen), plan.block_count(0))
    start = time.perf_counter()
    reports = list(run(backend, chosen))
    elapsed_s = time.perf_counter() - start
    stored = [r for r in reports if not r.empty]
    voxel_bytes = sum(r.bytes_written for r in stored)
    return Calibration(
        blocks=len(reports),
        voxels=sum(r.voxels for r in reports),
        read_voxels=sum(r.voxels for r in reports if r.bytes_read),
        stored_voxels=sum(r.voxels for r in stored),
        workers=backend.workers,
        depth=plan.depth,
        read_s=sum(r.read_s for r in reports),
        compute_s=sum(r.compute_s for r in reports),
        write_s=sum(r.write_s for r in reports),
        elapsed_s=elapsed_s,
        encoded_share=sum(r.bytes_encoded for r in stored) / voxel_bytes if voxel_bytes else None,
    )


def run(backend: Backend, blocks: list[int]) -> Iterator[BlockReport]:
    """Run blocks, each as a task of its own, so that all workers get some."""
    tasks = (BlockTask(0, (index,)) for index in blocks)
    for reports in backend.map(tasks, tell):
        for report in reports:
            if report.error is not None:
                raise IsochunkError(f"calibration stopped: {report.error}")
            yield report


def tell(event: str, details: Mapping[str, Any]) -> None:
    """Take an event of the backend."""
    log.debug("%s %s", event, details)


def spread_blocks(plan: Plan, blocks: int) -> list[int]:
    """Choose blocks of the first stage, spread evenly over the volume, the middle one first."""
    grid, block = plan.target.box, plan.stages[0].block
    count = plan.block_count(0)
    if 2 * blocks > count:
        wanted = min(blocks, count)
        return [i * count // wanted for i in range(wanted)]
    cells = grid_shape(grid.shape, block)
    chosen: dict[int, None] = {}
    number = 0
    while len(chosen) < blocks:
        where = ((0.5 + number * step) % 1 for step in STEPS)
        cell = triple(int(w * n) for w, n in zip(where, cells, strict=True))
        chosen[block_index(grid, block, cell)] = None
        number += 1
    return list(chosen)
