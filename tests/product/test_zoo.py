"""A package of the BioImage Model Zoo through the whole product, on real tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import command, read_all, write_source
from zoo_packages import FACTOR, MEAN, STD, Author, Restorer, seeded

import isochunk
from isochunk.core.tissue import truth

SHAPE = (11, 37, 41)
HALO = 6  # more than the network sees, and whole cells of its pooling


def real_sections() -> np.ndarray:
    """Thick sections of medulla."""
    z, y, x = SHAPE
    fine = truth()[: z * FACTOR, 50 : 50 + y, 60 : 60 + x]
    return fine.reshape(z, FACTOR, y, x).mean(1).round().astype(np.uint8)


def whole(voxels: np.ndarray) -> np.ndarray:
    """Answer a whole volume, continued by reflection, with the author's network alone."""
    rims = [(HALO, HALO + (n % 2)) for n in voxels.shape]  # pooling wants even extents
    around = np.pad(voxels, rims, mode="symmetric").astype(np.float32)
    with torch.inference_mode():
        normal = torch.from_numpy((around - MEAN) / STD)[None, None]
        answer = (seeded(Restorer)(normal) * STD + MEAN)[0, 0].numpy()
    z, y, x = (slice(HALO, HALO + n) for n in voxels.shape)
    return answer[z.start * FACTOR : z.stop * FACTOR, y, x]


@pytest.mark.slow
def test_a_package_runs_on_workers_and_tiles_equal_the_whole(tmp_path: Path) -> None:
    package = str(Author().write(tmp_path / "author"))
    voxels = real_sections()
    source = write_source(f"file://{tmp_path}/in", voxels)
    job = isochunk.Job(
        source=source,
        target=f"{tmp_path}/out",
        model=package,
        chunk="16,16,16",
        shard="none",
        block="32,32,32",
        levels=1,
    )
    plan = isochunk.plan(job)
    assert plan.summary()["padded_because"] == ""
    assert plan.summary()["blocks"] == 8
    (tmp_path / "job.toml").write_text(
        f'source = "{source}"\ntarget = "{job.target}"\nmodel = "{package}"\n'
        'chunk = "16,16,16"\nshard = "none"\nblock = "32,32,32"\nlevels = 1\n'
    )
    told = command("run", "--config", str(tmp_path / "job.toml"), "--workers", "2")
    assert told["complete"]
    assert isochunk.audit(job.target).complete
    exact = np.clip(whole(voxels), 0, 255)
    got = read_all(job.target)
    assert got.shape == exact.shape
    assert np.abs(got - exact).max() <= 0.5 + 1e-3
    assert exact.std() > 10
    told = (tmp_path / "out" / "provenance").read_text()
    assert package in told
    assert plan.model.sha256 in told
    assert len(plan.model.sha256) == 64
