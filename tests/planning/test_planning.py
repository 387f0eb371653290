"""Layout and plan: pure properties that every run relies on."""

from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import plan, volume

from isochunk.core.codec import from_json, to_json
from isochunk.core.geometry import Box, Spacing, target_box, triple
from isochunk.core.job import Job
from isochunk.core.limits import TASK_BLOCKS, TASKS_PER_WORKER
from isochunk.core.spec import LevelSpec
from isochunk.engine.ledger import Ledger
from isochunk.errors import GeometryError, ModelError, UsageError
from isochunk.planning.layout import (
    LayoutOptions,
    block_bounds,
    block_box,
    block_count,
    block_index,
    blocks_over,
    lay_out,
)
from isochunk.planning.plan import Plan
from isochunk.storage.open import open_store

ISOTROPIC = Spacing(Fraction(8), Fraction(8), Fraction(8))


extents = st.tuples(*[st.integers(1, 300)] * 3)
powers = st.tuples(*[st.sampled_from([1, 2, 4])] * 3)


@settings(max_examples=150, deadline=None)
@given(
    shape=extents,
    origin=st.tuples(*[st.integers(-40, 40).map(lambda v: 4 * v)] * 3),
    chunk=st.tuples(*[st.sampled_from([16, 24, 32])] * 3),
    shard=st.one_of(st.sampled_from(["auto", "none"]), powers),
    multiple=st.one_of(st.none(), powers),
    format=st.sampled_from(["precomputed", "zarr3"]),
)
def test_blocks_write_whole_objects_of_every_level_exactly_once(
    shape: tuple[int, int, int],
    origin: tuple[int, int, int],
    chunk: tuple[int, int, int],
    shard: object,
    multiple: tuple[int, int, int] | None,
    format: str,
) -> None:
    box = Box.from_shape(shape, origin)
    if isinstance(shard, tuple):
        if format == "precomputed":  # not every shape is a run of the Morton code
            shard = (max(shard),) * 3
        shard = tuple(c * s for c, s in zip(chunk, shard, strict=True))
    unit = chunk if isinstance(shard, str) else shard
    block = None
    if multiple is not None and shard != "auto":
        block = tuple(u * m for u, m in zip(unit, multiple, strict=True))
    options = LayoutOptions(format, chunk, shard, block, None, lossy=False)  # type: ignore[arg-type]
    levels, stages = lay_out(box, ISOTROPIC, options)
    assert [n for s in stages for n in s.writes] == list(range(len(levels)))
    for stage in stages:
        first = levels[stage.writes[0]]
        count = np.zeros(first.box.shape, np.uint8)
        for index in range(block_count(first.box, stage.block)):
            write = block_box(first.box, stage.block, index)
            count[write.slices(first.box.lo)] += 1
        assert (count == 1).all()
        for number in stage.writes:
            level = levels[number]
            by = tuple(int(c / f) for c, f in zip(level.spacing, first.spacing, strict=True))
            for axis in range(3):
                step, end = stage.block[axis], first.box.hi[axis]
                for edge in range(first.box.lo[axis] + step, end, step):
                    assert edge % by[axis] == 0
                    offset = edge // by[axis] - level.box.lo[axis]
                    assert offset % level.object_shape[axis] == 0


@given(shape=extents, block=st.tuples(*[st.integers(1, 90)] * 3))
def test_block_numbers_round_trip_and_neighbours_touch(
    shape: tuple[int, int, int], block: tuple[int, int, int]
) -> None:
    box = Box.from_shape(shape, (5, -7, 11))
    count = min(block_count(box, block), 200)
    boxes = [block_box(box, block, i) for i in range(count)]
    for i, b in enumerate(boxes):
        cell = tuple((v - o) // n for v, o, n in zip(b.lo, box.lo, block, strict=True))
        assert block_index(box, block, cell) == i  # type: ignore[arg-type]
        assert i in set(blocks_over(box, block, b))
    lo, hi = block_bounds(box, block, np.arange(count))
    assert [Box(triple(a), triple(b)) for a, b in zip(lo, hi, strict=True)] == boxes
    for a, b in itertools.pairwise(boxes):
        assert sum(p != q for p, q in zip(a.lo, b.lo, strict=True)) == 1


def test_plan_survives_json() -> None:
    made = plan(volume("0:20,0:1024,0:1024"), box="2:18,0:1000,4:1024")
    assert from_json(Plan, json.loads(json.dumps(to_json(made)))) == made


def test_factor_offset_and_placement() -> None:
    made = plan(volume("2:20,256:1024,0:1024"))
    assert made.model.factor == (10, 1, 1)
    assert made.target.box == Box.parse("20:200,256:1024,0:1024")
    assert made.shift == (0, 0, 0)
    assert made.target.corner_nm == (0, 0, 0)
    zarr = plan(volume("2:20,256:1024,0:1024"), format="ome-zarr")
    assert zarr.target.box == Box.parse("0:180,0:768,0:1024")
    assert zarr.target.corner_nm == (92, Fraction("1177.6"), 0)
    assert zarr.anchored(zarr.target.box) == made.target.box


def test_ome_source_without_translation_keeps_its_half_voxel() -> None:
    """OME-Zarr voxel 0 is centred on 0 nm; precomputed cannot store that, the viewer adds it."""
    corner = (Fraction(-20), Fraction(-5), Fraction(-5))
    source = volume("0:62,0:250,0:250", "40,10,10", format="zarr3", corner_nm=corner)
    made = plan(source)
    assert made.target.box == Box.parse("0:248,0:250,0:250")
    assert made.target.corner_nm == corner
    assert plan(source, format="ome-zarr").target.corner_nm == corner


@pytest.mark.parametrize("bits", [10, 13])
def test_a_petavoxel_is_planned_from_its_axes_alone(bits: int) -> None:
    side = 1 << bits
    made = plan(volume(f"0:{side},0:{8 * side},0:{8 * side}", "64,8,8"))
    summary = made.summary()
    assert summary["blocks"] >= (8 * side // 512) ** 3
    reads = summary["bytes_read"]
    assert made.region.size <= reads <= 3 * made.region.size
    assert 0 < summary["halo_overhead"] < 0.2


def test_read_bytes_count_chunks_touched_by_each_block() -> None:
    made = plan(volume("0:40,0:512,0:512"), chunk="20,64,64", shard="none", block="200,256,256")
    expected = 0
    for i in range(made.block_count(0)):
        read = made.read_box(made.block(0, i)) & made.source.box
        span = [
            min(-(-hi // c) * c, n) - lo // c * c
            for lo, hi, c, n in zip(read.lo, read.hi, (20, 256, 256), (40, 512, 512), strict=True)
        ]
        expected += int(np.prod(span))
    assert made.summary()["bytes_read"] == expected
    assert made.summary()["read_amplification"] == round(expected / (40 * 512 * 512), 4)


def test_tasks_cover_missing_blocks_in_order() -> None:
    made = plan(volume("0:20,0:1024,0:1024"), chunk="16,16,16", shard="none", block="16,16,16")
    missing = [i for i in range(made.block_count(0)) if i % 3]
    tasks = list(made.tasks(0, iter(missing), workers=2))
    assert [i for task in tasks for i in task.blocks] == missing
    assert len(tasks) > 10


@given(blocks=st.integers(1, 4000), workers=st.integers(1, 50))
def test_tasks_shrink_to_single_blocks(blocks: int, workers: int) -> None:
    """No task is more than a part of what a worker has left, so the last of each are of one."""
    made = plan(volume("0:20,0:4096,0:4096"), chunk="16,16,16", shard="none", block="16,16,16")
    tasks = list(made.tasks(0, iter(range(blocks)), workers, blocks))
    sizes = [len(task.blocks) for task in tasks]
    assert [i for task in tasks for i in task.blocks] == list(range(blocks))
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) <= TASK_BLOCKS
    left = blocks
    for size in sizes:
        assert size == 1 or size <= left / (TASKS_PER_WORKER * workers) + 1
        left -= size
    assert sizes.count(1) >= min(blocks, TASKS_PER_WORKER * workers - 1)


def test_tasks_are_small_to_send() -> None:
    """A scheduler keeps the last thousand messages to each worker."""
    made = plan(volume("0:20,0:4096,0:4096"), chunk="16,16,16", shard="none", block="16,16,16")
    task = next(made.tasks(0, iter(range(made.block_count(0))), workers=2))
    assert len(task.blocks) == TASK_BLOCKS
    assert len(pickle.dumps(task)) < 200


def test_a_petavoxel_is_recorded_and_cut_into_tasks_lazily() -> None:
    """Seven million blocks: tables of 6 bytes a block, and a first task without the others."""
    level = LevelSpec(
        "0", Box.from_shape((25_000, 200_000, 200_000)), ISOTROPIC, (64, 64, 64), None
    )
    source = replace(volume("0:1,0:1,0:1"), levels=(level,))
    made = plan(source, "identity", block="512,512,512")
    assert made.block_count(0) == 49 * 391 * 391
    ledger = Ledger(open_store("memory://petavoxel"), made)
    tables = ledger.tables[0]
    assert tables.done.nbytes + tables.empty.nbytes + tables.checksum.nbytes == 6 * 49 * 391 * 391
    assert next(ledger.missing(0)) == 0
    tables.done[:-3] = True
    last = list(made.tasks(0, ledger.missing(0), workers=1000))
    assert [i for task in last for i in task.blocks] == list(range(49 * 391 * 391)[-3:])
    assert sum(made.block(0, i).write.size for i in (0, 1)) == 2 * 512**3


BAD = {
    "block": ({"block": "64,96,64", "shard": "128,128,128"}, r"along z; choose a multiple of 128"),
    "shard": ({"shard": "64,96,64"}, r"cuts chunk \(64, 64, 64\) along y"),
    "outside": ({"box": "0:21,0:9,0:9"}, r"--box 0:20,0:9,0:9 works"),
    "half level": ({"box": "1:20,0:99,0:99", "levels": 3}, r"starts at \(5, 0, 0\)"),
    "memory": ({"memory": "301MiB"}, r"raise --memory"),
    "fraction": ({"spacing": "4.5,4.6,4.6", "box": "1:20,0:9,0:9"}, r"--box 0:20,0:9,0:9 works"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_geometry_says_what_works(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(volume("0:20,0:1024,0:1024"), **options)


def test_bad_input_of_other_kinds() -> None:
    with pytest.raises(UsageError, match="uint8 and uint16 are supported"):
        plan(volume("0:9,0:9,0:9", dtype="int16"))
    with pytest.raises(UsageError, match="empty"):
        plan(volume("0:9,0:9,0:9"), box="3:3,0:9,0:9")
    with pytest.raises(ModelError, match="choose --spacing"):
        plan(volume("0:9,0:9,0:9"), model="identity", spacing="4.6,4.6,4.6")
    with pytest.raises(UsageError, match="unknown blok"):
        Job.from_mapping({"source": "a", "target": "b", "model": "c", "blok": 1})
    with pytest.raises(GeometryError, match="not a length"):
        Spacing.parse("4,nm,4")


@given(
    n=st.integers(1, 60),
    start=st.integers(0, 8),
    factor=st.sampled_from([Fraction(4), Fraction(10), Fraction(225, 23), Fraction(5, 2)]),
)
def test_target_box_is_floor_of_extent(n: int, start: int, factor: Fraction) -> None:
    lo = start * factor.denominator
    box = Box((lo, 0, 0), (lo + n, 3, 3))
    made = target_box(box, (factor, Fraction(1), Fraction(1)))
    assert made.lo[0] == lo * factor
    assert made.shape[0] == int(n * factor)
