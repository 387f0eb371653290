"""Blocks that a mask leaves as background: many at once, and the same as one by one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import noise, read_all, tree_digest, write_source

import isochunk
from isochunk.api.jobs import repair
from isochunk.core.geometry import Box, Spacing
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.engine.mask import masked_blocks
from isochunk.engine.timeouts import Timeouts
from isochunk.planning.plan import Plan

BLOCKS = {"chunk": "16,16,16", "shard": "none", "block": "16,16,16", "levels": 1}


class InMemory:
    """A volume in memory that counts what is read of it."""

    def __init__(self, spec: VolumeSpec, voxels: Voxels) -> None:
        self.spec = spec
        self.voxels = voxels
        self.reads: list[Box] = []

    def read(self, box: Box, level: int = 0) -> Voxels:
        assert box in self.spec.box
        self.reads.append(box)
        return self.voxels[box.slices(self.spec.box.lo)]


def touches(plan: Plan, mask: InMemory, index: int) -> bool:
    """Ask voxel by voxel, in nanometres."""
    write = plan.block(0, index).write
    spans = []
    for axis in range(3):
        unit, step = tuple(plan.target.spacing)[axis], tuple(mask.spec.spacing)[axis]
        start = plan.target.corner_nm[axis] - mask.spec.corner_nm[axis]
        lo = floor((start + write.lo[axis] * unit) / step)
        hi = ceil((start + write.hi[axis] * unit) / step)
        spans.append((lo, hi))
    where = Box(*zip(*spans, strict=True)) & mask.spec.box  # type: ignore[arg-type]
    return bool(where.size) and bool(mask.voxels[where.slices(mask.spec.box.lo)].any())


def in_memory(shape: tuple[int, int, int], offset: tuple[int, int, int], size: str) -> InMemory:
    """A mask of one voxel in twenty set, whose corner is off the grid of any block."""
    rng = np.random.default_rng(sum(shape))
    spacing = Spacing.parse(size)
    level = LevelSpec("0", Box.from_shape(shape, offset), spacing, (64, 64, 64), None)
    corner = (Fraction(0), Fraction(7, 3), Fraction(-5))
    spec = VolumeSpec("memory://mask", "zarr3", "uint8", "raw", corner, (level,))
    return InMemory(spec, (rng.random(shape) < 0.05).astype(np.uint8))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    offset=st.tuples(*[st.integers(-3, 3)] * 3),
    size=st.sampled_from(["160,160,160", "46,52.5,21", "1000,1000,1000"]),
    kept=st.integers(1, 4),
)
def test_many_at_once_is_the_same_as_one_by_one(
    plan: Plan,
    shape: tuple[int, int, int],
    offset: tuple[int, int, int],
    size: str,
    kept: int,
) -> None:
    mask = in_memory(shape, offset, size)
    blocks = np.arange(0, plan.block_count(0), kept)
    out = masked_blocks(plan, mask, blocks)
    assert out.tolist() == [not touches(plan, mask, i) for i in blocks]
    assert len(mask.reads) <= 1


def test_a_fine_mask_is_read_in_parts(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of one block's mask voxels: runs are halved until each fits."""
    mask = in_memory((64, 100, 100), (0, 0, 0), "10,10,10")
    blocks = np.arange(plan.block_count(0))
    whole = masked_blocks(plan, mask, blocks)
    monkeypatch.setattr("isochunk.engine.mask.MASK_VOXELS", 10_000)
    again = in_memory((64, 100, 100), (0, 0, 0), "10,10,10")
    np.testing.assert_array_equal(masked_blocks(plan, again, blocks), whole)
    assert len(again.reads) > len(mask.reads) == 1
    assert max(box.size for box in again.reads) <= 10_000


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A plan of 4 x 6 x 6 blocks; those at the end are smaller."""
    folder = tmp_path_factory.mktemp("plan")
    source = write_source(f"file://{folder}/in", noise((15, 90, 93)))
    options = {"source": source, "target": f"{folder}/out", "model": "nearest", **BLOCKS}
    return isochunk.plan(isochunk.Job(**options))


@pytest.fixture
def masked(tmp_path: Path) -> isochunk.Job:
    """A job of which a mask leaves out half."""
    source = write_source(f"file://{tmp_path}/in", noise((8, 64, 64)))
    mask = np.zeros((2, 4, 4), np.uint8)
    mask[:, :2] = 1
    where = write_source(f"file://{tmp_path}/mask", mask, "160,160,160", chunk=(2, 2, 4))
    return isochunk.Job(
        source=source, target=f"{tmp_path}/out", model="nearest", mask=where, **BLOCKS
    )


def test_masked_blocks_are_recorded_like_blocks_of_zeros(
    masked: isochunk.Job, tmp_path: Path
) -> None:
    report = isochunk.run(isochunk.plan(masked))
    assert (report.done, report.empty) == (32, 16)
    assert report.voxels == 32 * 64 * 64
    assert report.bytes_written == report.voxels // 2
    assert read_all(masked.target)[:, 32:].max() == 0
    assert isochunk.audit(masked.target).complete


def test_repair_removes_what_a_mask_says_is_background(
    masked: isochunk.Job, tmp_path: Path
) -> None:
    isochunk.run(isochunk.plan(masked))
    good = tree_digest(tmp_path / "out")
    stored = tmp_path / "out" / "10_10_10"
    shutil.copy(stored / "0-16_0-16_0-16", stored / "0-16_48-64_0-16")
    audited, report = repair(masked.target)
    assert [hole.object for hole in audited.holes] == ["10_10_10/0-16_48-64_0-16"]
    assert report.complete
    assert tree_digest(tmp_path / "out") == good
    assert isochunk.audit(masked.target).complete


def test_a_mask_that_cannot_be_read_fails_only_the_blocks_that_need_it(
    masked: isochunk.Job, tmp_path: Path
) -> None:
    plan = isochunk.plan(masked)
    (chunk,) = (f for f in (tmp_path / "mask").rglob("0-4_0-2_0-2"))
    good = chunk.read_bytes()
    chunk.write_bytes(good[:3])
    report = isochunk.run(plan, timeouts=Timeouts(retry_pauses_s=()))
    assert (report.done, report.failed) == (16, 16)
    assert "mask" in report.errors[0]
    chunk.write_bytes(good)
    assert isochunk.run(isochunk.plan(masked)).complete
    whole = tree_digest(tmp_path / "out")
    isochunk.run(isochunk.plan(replace(masked, target=f"{tmp_path}/o")))
    assert tree_digest(tmp_path / "o") == whole
