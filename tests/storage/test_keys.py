"""Object keys and shard shapes, against what tensorstore really stores."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given, settings
from hypothesis import strategies as st

from isochunk.core.geometry import Box, Spacing, grid_shape, triple
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.errors import GeometryError, UsageError
from isochunk.storage.keys import (
    check_whole_objects,
    level_key,
    morton_axes,
    morton_code,
    nearest_shard_shape,
    object_boxes,
    object_key,
    object_keys,
    precomputed_shard_shapes,
    precomputed_sharding,
)
from isochunk.storage.open import create_volume

SPACING = Spacing.parse("46,4.6,4.6")


def level(shape, chunk, shard=None, lo=(0, 0, 0)):
    return LevelSpec("4.6_4.6_46", Box.from_shape(shape, lo), SPACING, chunk, shard)


def volume(url, format_, *levels):
    zero = Fraction(0)
    return VolumeSpec(url, format_, "uint8", "raw", (zero, zero, zero), levels)


def files(folder: Path, key: str) -> set[str]:
    return {
        p.relative_to(folder).as_posix()
        for p in (folder / key).rglob("*")
        if p.is_file() and p.name not in ("zarr.json", ".zarray")
    }


grids = st.tuples(*[st.integers(1, 40)] * 3)


@given(grid=grids)
@settings(deadline=None)
def test_morton_code_is_a_bijection_on_power_of_two_grids_and_injective_on_all(grid):
    if np.prod(grid) > 4096:
        grid = triple(min(n, 16) for n in grid)
    codes = [morton_code((z, y, x), grid) for z, y, x in np.ndindex(*grid)]
    assert len(set(codes)) == len(codes)
    assert max(codes) < 1 << len(morton_axes(grid))
    if all(n & (n - 1) == 0 for n in grid):
        assert sorted(codes) == list(range(len(codes)))


def test_morton_order_starts_with_x():
    assert morton_axes((1, 4, 8)) == (2, 1, 2, 1, 2)  # z has one chunk and takes no bit
    assert [morton_code(i, (2, 2, 2)) for i in [(0, 0, 1), (0, 1, 0), (1, 0, 0)]] == [1, 2, 4]


@given(
    shape=st.tuples(*[st.integers(1, 150)] * 3),
    chunk=st.tuples(*[st.sampled_from([8, 16, 20])] * 3),
    lo=st.tuples(*[st.integers(-50, 50)] * 3),
    pick=st.integers(0, 100),
)
@settings(deadline=None, max_examples=40)
def test_every_possible_shard_is_the_write_chunk_of_tensorstore(shape, chunk, lo, pick):
    shapes = precomputed_shard_shapes(level(shape, chunk, lo=lo))
    shard = shapes[pick % len(shapes)]
    scale = level(shape, chunk, shard, lo)
    parameters = precomputed_sharding(scale)
    assert parameters.preshift_bits <= 9
    array = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": "memory://",
            "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 1},
            "scale_metadata": {
                "key": "k",
                "size": shape[::-1],
                "voxel_offset": lo[::-1],
                "chunk_size": chunk[::-1],
                "resolution": [4.6, 4.6, 46],
                "encoding": "raw",
                "sharding": parameters.as_json(),
            },
        },
        create=True,
    ).result()
    reported = array.chunk_layout.write_chunk.shape[:3][::-1]
    extent = triple(n * c for n, c in zip(grid_shape(shape, chunk), chunk, strict=True))
    # An axis that one shard covers is reported up to its last chunk or beyond: the same cells.
    for mine, theirs, whole in zip(shard, reported, extent, strict=True):
        assert mine == theirs or min(mine, theirs) >= whole


@given(
    shape=st.tuples(*[st.integers(30, 150)] * 3),
    bits=st.tuples(*[st.integers(0, 3)] * 3),
)
@settings(deadline=None)
def test_impossible_shards_name_one_that_works(shape, bits):
    wanted = triple(16 << b for b in bits)
    scale = level(shape, (16, 16, 16), wanted)
    nearest = nearest_shard_shape(scale, wanted)
    assert precomputed_sharding(level(shape, (16, 16, 16), nearest)).bits >= 0
    extent = triple(-(-n // 16) * 16 for n in shape)
    if any(min(a, n) != min(b, n) for a, b, n in zip(nearest, wanted, extent, strict=True)):
        with pytest.raises(GeometryError, match=",".join(map(str, nearest))):
            precomputed_sharding(scale)
    else:
        assert precomputed_sharding(scale) == precomputed_sharding(
            level(shape, (16, 16, 16), nearest)
        )


@pytest.mark.parametrize("shard", [(24, 32, 32), (48, 16, 16), (8, 16, 16)])
def test_shards_that_are_no_power_of_two_chunks_are_refused(shard):
    with pytest.raises(GeometryError, match="nearest shape that works is --shard"):
        precomputed_sharding(level((160, 160, 160), (16, 16, 16), shard))


@pytest.mark.parametrize(
    ("format_", "shape", "chunk", "shard", "lo"),
    [
        ("precomputed", (37, 70, 45), (16, 16, 16), None, (7, -6, 5)),
        ("precomputed", (37, 70, 45), (16, 16, 16), (32, 32, 32), (7, -6, 5)),
        ("precomputed", (37, 150, 200), (16, 16, 16), (16, 32, 32), (0, 0, 0)),
        ("precomputed", (10, 70, 45), (16, 16, 16), (16, 128, 64), (0, 3, 0)),
        ("precomputed", (70, 70, 70), (4, 4, 4), (64, 64, 64), (0, 0, 0)),
        ("zarr2", (37, 70, 45), (16, 16, 16), None, (0, 0, 0)),
        ("zarr3", (37, 70, 45), (16, 16, 16), None, (0, 0, 0)),
        ("zarr3", (37, 70, 45), (16, 16, 16), (32, 64, 16), (0, 0, 0)),
    ],
)
def test_keys_are_the_files_that_are_written(tmp_path, format_, shape, chunk, shard, lo):
    scale = level(shape, chunk, shard, lo)
    spec = volume(f"file://{tmp_path}", format_, scale)
    target = create_volume(spec)
    boxes = list(object_boxes(scale, scale.box))
    keys = list(object_keys(spec, 0, scale.box))
    assert len(set(keys)) == len(boxes) == np.prod(grid_shape(shape, scale.object_shape))
    written = set()
    for box, key in zip(boxes[:6], keys[:6], strict=True):  # one at a time: each box has its key
        target.write(box, np.full(box.shape, 1, np.uint8))
        now = files(tmp_path, scale.key)
        assert now - written == {key}
        written = now
    target.write(scale.box, np.full(shape, 2, np.uint8))
    assert files(tmp_path, scale.key) == set(keys)


def test_keys_of_an_overlap_are_those_of_its_objects():
    scale = level((64, 64, 64), (16, 16, 16), None, (1, 2, 3))
    spec = volume("file:///v", "zarr2", scale)
    box = Box((16, 17, 18), (18, 18, 20))
    assert list(object_keys(spec, 0, box)) == [
        f"{scale.key}/{z}/0/{x}" for z in (0, 1) for x in (0, 1)
    ]
    assert list(object_keys(spec, 0, Box((100, 0, 0), (101, 1, 1)))) == []
    assert object_key(spec, 0, box, ".") == f"{scale.key}/0.0.0"


@given(shape=st.tuples(*[st.integers(1, 50)] * 3), lo=st.tuples(*[st.integers(-9, 9)] * 3))
def test_object_boxes_partition_the_level(shape, lo):
    scale = level(shape, (8, 4, 16), (16, 16, 16), lo)
    hits = np.zeros(shape, np.uint8)
    for box in object_boxes(scale, scale.box):
        check_whole_objects(scale, box)
        hits[box.slices(scale.box.lo)] += 1
    assert (hits == 1).all()


def test_boxes_that_cut_objects_are_refused():
    scale = level((100, 100, 100), (16, 16, 16), (32, 32, 32), (5, 0, 0))
    check_whole_objects(scale, Box((37, 96, 0), (69, 100, 32)))
    for box in [Box((36, 0, 0), (69, 32, 32)), Box((37, 0, 0), (69, 16, 32))]:
        with pytest.raises(GeometryError, match=r"cuts shard \(32, 32, 32\) along"):
            check_whole_objects(scale, box)
    for box in [Box((0, 0, 0), (37, 32, 32)), Box((37, 0, 0), (37, 32, 32))]:
        with pytest.raises(GeometryError, match="empty or outside"):
            check_whole_objects(scale, box)


def test_level_keys():
    assert level_key("precomputed", 0, SPACING) == "4.6_4.6_46"
    assert level_key("zarr3", 2, SPACING) == "s2"


def test_cloudvolume_sources_have_no_keys():
    with pytest.raises(UsageError, match="have no keys"):
        object_key(
            volume("graphene://x", "cloudvolume", level((8, 8, 8), (8, 8, 8))),
            0,
            Box((0, 0, 0), (8, 8, 8)),
        )
