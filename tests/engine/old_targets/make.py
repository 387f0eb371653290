"""Writes the targets of this folder; run once, with isochunk as of commit 6507252.

Each is a run that was interrupted half-way: a network to sharded precomputed, and cubic under a
mask to OME-Zarr. ``test_old_targets.py`` resumes, audits and repairs them with the code of today.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from jobs import write_source

import isochunk
from isochunk.engine.report import Report

SHAPE = (12, 48, 48)


def interrupted(job: isochunk.Job, after: int) -> None:
    """Run a job until some blocks are done, as Ctrl-C would end it."""

    def stop(report: Report) -> None:
        if report.done >= after:
            raise KeyboardInterrupt

    plan = isochunk.plan(job)
    try:
        isochunk.run(plan, watch=stop)
    except KeyboardInterrupt:
        return
    raise AssertionError(f"{plan.total_blocks} blocks were too few to interrupt")


def main(folder: str) -> None:
    """Write source, mask and targets below an empty folder."""
    at = f"file://{Path(folder).resolve()}"
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(0, 6, SHAPE), axis=2) + 128
    source = write_source(f"{at}/source", np.clip(smooth, 1, 255).astype(np.uint8), "32,8,8")
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, :, :30] = 1
    write_source(f"{at}/mask", mask, "32,8,8")
    small = {"source": source, "chunk": "8,8,8", "shard": "16,16,16", "block": "16,16,16"}
    network = {"model": "srunet-z4-small", "levels": 2, "memory": "2GiB"}
    interrupted(isochunk.Job(target=f"{at}/network", **small, **network), 12)
    cubic = {"model": "cubic", "format": "ome-zarr", "mask": f"{at}/mask", "levels": 3}
    interrupted(isochunk.Job(target=f"{at}/cubic.zarr", **small, **cubic), 15)


if __name__ == "__main__":
    main(sys.argv[1])
