"""Blocks and tiles by what they cost, in the memory that workers have."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
import user_networks
from plans import plan as interpolation_plan
from plans import volume

from isochunk.core.geometry import Box, triple
from isochunk.core.job import Job
from isochunk.core.limits import MAX_DEPTH
from isochunk.core.spec import Intensity, VolumeSpec
from isochunk.core.tile_costs import TileCosts
from isochunk.errors import UsageError
from isochunk.models.load import Examined, examine
from isochunk.models.tile_walk import _hollow, _walk
from isochunk.planning.blocks import Workers, larger_blocks
from isochunk.planning.make import Inputs, make_plan
from isochunk.planning.plan import Plan
from isochunk.planning.tiles import block_macs, device_tile, tile_steps

GIB = 1 << 30
NETWORKS = ("srunet-z4", "fsrcnn-z4", "anyz-z2-10-sample", "niiv-z2-10")
SIZES = tuple(n * GIB for n in (1, 2, 4, 16, 64))
LARGE = "0:1024,0:4096,0:4096"


@cache
def examined(name: str) -> Examined:
    """A network's spec, and a function of its costs that walks it once."""
    found = examine(name, trust=True)
    return replace(found, engine=found.engine and cache(found.engine))


@cache
def costs(name: str, factor: int) -> TileCosts:
    one = Fraction(1)
    made = examined(name).costs(
        examined(name).spec.for_factor((Fraction(factor), one, one)), "fp32"
    )
    assert made is not None
    return made


def source(name: str, box: str) -> VolumeSpec:
    factor = examined(name).spec.factor
    return volume(box, f"{8 * (8 if 'z8' in name else 4)},8,8" if factor else "32,8,8")


def planned(name: str, workers: Workers, box: str = LARGE, **options: object) -> Plan:
    spec, read = examined(name).spec, source(name, box)
    job = Job(source=read.url, target="out", model=name, **options)  # type: ignore[arg-type]
    found = Inputs(read, spec, Intensity(), "file:///out/", "precomputed", workers=workers)
    walked = lambda spec, _: costs(name, int(spec.resolved_factor[0]))  # noqa: E731
    return make_plan(job, replace(found, costs=walked))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_more_memory_never_means_more_work_and_is_never_exceeded(name: str) -> None:
    plans = [planned(name, Workers(size)) for size in SIZES]
    for size, made in zip(SIZES, plans, strict=True):
        whole, block = made.target.levels[0].object_shape, made.stages[0].block
        assert not any(b % n for b, n in zip(block, whole, strict=True))
        assert made.worker_memory_bytes() <= size
    work = [block_macs(made) / math.prod(made.stages[0].block) for made in plans]
    assert work == sorted(work, reverse=True)
    assert work[0] > 1.04 * work[-1]
    assert max(plans[-1].stages[0].block) > 256


def test_larger_blocks_are_whole_objects_where_these_do_not_divide_the_largest() -> None:
    made = interpolation_plan(volume(LARGE), chunk="48,48,48")
    assert made.target.levels[0].object_shape == (384, 384, 384)
    blocks = list(larger_blocks(made))
    assert set(np.unique(blocks)) == {384, 768}


def test_what_twice_the_memory_gives_is_what_it_would_give() -> None:
    for size in SIZES[:3]:
        made = planned("fsrcnn-z4", Workers(size, count=3))
        more = planned("fsrcnn-z4", Workers(2 * size, count=3))
        assert made.summary()["with_twice_the_memory"] == {
            "block": list(more.stages[0].block),
            "tile": list(more.tile),
            "compute_overhead": round(more.compute_overhead(), 4),
        }
        assert more.compute_overhead() < made.compute_overhead()


@pytest.mark.parametrize("count", [1, 4, 16])
def test_a_small_volume_has_a_block_for_each_worker(count: int) -> None:
    made = planned("fsrcnn-z4", Workers(64 * GIB, count=count), "0:128,0:512,0:1024")
    assert made.block_count(0) >= count
    assert (made.block_count(0) < 16) == (count == 1)  # 16 shards, and none to wait for at the end


def test_interpolations_and_blocks_asked_for_stay() -> None:
    large = volume(LARGE)
    made = [interpolation_plan(large, memory=f"{n}GiB") for n in (2, 64)]
    shard = made[0].target.levels[0].object_shape
    assert [one.stages[0].block for one in made] == [shard, shard]
    for size in (2 * GIB, 64 * GIB):
        asked = planned("fsrcnn-z4", Workers(size), shard="256,256,256", block="512,256,512")
        assert asked.stages[0].block == (512, 256, 512)


def test_a_block_in_flight_on_a_gpu_is_counted_on_both_sides() -> None:
    """Pinned memory is kept in powers of two, and a GPU holds the block as stored."""
    options = {"shard": "256,256,256", "block": "256,256,256"}
    host = planned("fsrcnn-z4", Workers(64 * GIB), **options)
    made = planned("fsrcnn-z4", Workers(64 * GIB, 64 * GIB), device="cuda", **options)
    read = math.prod(made.model.read_box(Box.from_shape(made.stages[0].block)).shape)
    assert 2**22 < read < 2**23, "a source box of 64 sections with its halo"
    assert host.block_bytes() == 2 * read + math.ceil(2**24 * 8 / 7)
    assert made.block_bytes() == host.block_bytes() + 2**23 + 2**24
    assert read + 2**24 <= made.block_device_bytes() < read + 2**24 + (2 << 20)
    assert made.worker_memory_bytes() == (600 << 20) + made.depth * made.block_bytes()


@pytest.mark.parametrize("size", [6 << 20, 80 << 20, 200 << 20, GIB, 4 * GIB, 64 * GIB])
def test_what_lies_on_a_gpu_fits_it(size: int) -> None:
    made = planned("fsrcnn-z4", Workers(64 * GIB, size), device="cuda", block="256,256,256")
    used = made.tile_bytes(made.tile) + made.depth * made.block_device_bytes()
    assert used <= size or (made.depth == 1 and size < 80 << 20), "else the smallest there is"
    if size >= GIB:
        assert made.depth == MAX_DEPTH
    least = replace(made, depth=1)
    assert device_tile(made, size) == made.tile
    assert math.prod(device_tile(least, size)) >= math.prod(made.tile)


def test_little_host_memory_makes_a_gpus_pipeline_shallow_and_not_its_tile_small() -> None:
    options = {"device": "cuda", "block": "256,256,256"}
    roomy = planned("fsrcnn-z4", Workers(64 * GIB, 8 * GIB), **options)
    needed = (600 << 20) + 2 * roomy.block_bytes()
    tight = planned("fsrcnn-z4", Workers(needed, 8 * GIB), **options)
    assert (tight.depth, roomy.depth) == (2, MAX_DEPTH)
    assert math.prod(tight.tile) >= math.prod(roomy.tile)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_error_names_the_least_memory_that_works(name: str) -> None:
    with pytest.raises(UsageError, match="raise --memory") as refused:
        planned(name, Workers(610 << 20))
    needed = re.search(r"need (\d+) MiB .* and it has 610 MiB", str(refused.value))
    assert needed is not None
    least = int(needed[1]) << 20
    assert planned(name, Workers(least)).depth == 1
    with pytest.raises(UsageError):
        planned(name, Workers(least - (1 << 20)))


@pytest.mark.parametrize("side", [260, 520, 1040])
def test_windows_of_attention_do_not_hide_what_a_slice_costs(side: int) -> None:
    """Its tensors grow by whole windows of 64 pixels, and not with every voxel of a tile."""
    one, tile = Fraction(1), (side, 1, side)
    spec = examined("a2i-z2-10").spec.for_factor((Fraction(5), one, one))
    hollow = _hollow(examined("a2i-z2-10").engine(spec), torch.float32)  # type: ignore[misc]
    walk, found = _walk(hollow, Box.from_shape(tile)), costs("a2i-z2-10", 5)
    got = found.of(tile)
    assert got.macs == pytest.approx(sum(walk.macs), rel=0.1)
    assert got.bytes == pytest.approx(np.cumsum(walk.bytes).max(), rel=0.1)


@pytest.mark.parametrize("name", ["fsrcnn-z4", f"{user_networks.__file__}:unet"])
def test_costs_are_those_of_a_walk(name: str) -> None:
    """At tiles that no cost was fitted to; three at a time as well as each alone."""
    one = Fraction(1)
    spec = examined(name).spec.for_factor((Fraction(4), one, one))
    step = tile_steps(spec)
    tiles = [triple(n * s for n, s in zip(m, step, strict=True)) for m in ((3, 5, 7), (9, 4, 6))]
    tiles.append(triple(-(-n // s) * s for n, s in zip((128, 160, 96), step, strict=True)))
    hollow = _hollow(examined(name).engine(spec), torch.float32)  # type: ignore[misc]
    found = costs(name, 4)
    for number, tile in enumerate(tiles):
        walk = _walk(hollow, Box.from_shape(tile))
        got = found.of(tile)
        alive = max(np.cumsum(walk.bytes))
        assert got.macs == pytest.approx(sum(walk.macs), rel=1e-9)
        assert got.bytes == pytest.approx(alive, rel=1e-9)
        assert got.elements == pytest.approx(max(walk.elements), rel=1e-9)
        together = [values[number] for values in found.of_many(np.array(tiles))]
        assert together == pytest.approx([got.macs, got.bytes, got.elements], rel=1e-12)
        assert math.prod(tile) < got.elements


def test_costs_of_both_planes_are_those_of_a_walk_along_each() -> None:
    """Of any tile, however narrow along either."""
    one = Fraction(1)
    found = examined("niiv-z2-10")
    spec = found.spec.on_plane("xz+yz").for_factor((Fraction(4), one, one))
    got = found.costs(spec, "fp32")
    assert got is not None
    assert found.engine is not None
    hollow = _hollow(found.engine(spec), torch.float32)
    for tile in ((32, 48, 8), (32, 8, 48), (64, 128, 128), (256, 64, 16)):
        walk = _walk(hollow, Box.from_shape(tile))
        assert got.of(tile).macs == pytest.approx(sum(walk.macs), rel=1e-6)
