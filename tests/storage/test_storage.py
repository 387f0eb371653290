"""Volumes written by isochunk, read back by it and by others, on files, S3 and GCS."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from fractions import Fraction
from urllib.parse import urlsplit

import numpy as np
import pytest
import servers
import zarr
from cloudvolume import CloudVolume
from ome_zarr_models import v05
from ome_zarr_models.v04 import image as v04_image

from isochunk.core.geometry import Box, Spacing
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.errors import GeometryError, TargetConflictError, UsageError
from isochunk.storage.keys import level_key, object_keys
from isochunk.storage.open import Access, create_volume, open_store, open_target, open_volume

SPACING = Spacing.parse("46,4.6,4.6")
COARSE = Spacing.parse("46,9.2,9.2")
SHAPE = (21, 70, 45)

LAYOUTS = [
    ("precomputed", "raw", None),
    ("precomputed", "raw", (16, 32, 32)),
    ("precomputed", "png", None),
    ("precomputed", "png", (32, 64, 64)),
    ("precomputed", "jpeg", (16, 32, 32)),
    ("precomputed", "gzip", (16, 32, 32)),
    ("zarr2", "raw", None),
    ("zarr2", "zstd", None),
    ("zarr2", "blosc", None),
    ("zarr2", "gzip", None),
    ("zarr2", "blosc-zstd", None),
    ("zarr2", "zstd:9", None),
    ("zarr3", "raw", None),
    ("zarr3", "raw", (32, 32, 32)),
    ("zarr3", "zstd", (16, 32, 64)),
    ("zarr3", "blosc", (32, 32, 32)),
    ("zarr3", "gzip", (32, 32, 32)),
    ("zarr3", "zstd:9", None),
    ("zarr3", "blosc-zstd", (32, 32, 32)),
    ("zarr3", "blosc-zstd:9", None),
]


def make_spec(url, format_, encoding="raw", shard=None, dtype="uint8"):
    """Two levels, anisotropic, with an offset of whole voxels or of nanometres."""
    lo = (3, -4, 10) if format_ == "precomputed" else (0, 0, 0)
    corner = (0, 0, 0) if format_ == "precomputed" else ("138", "-18.4", "46")
    levels = tuple(
        LevelSpec(level_key(format_, i, spacing), box, spacing, (16, 16, 16), shard)
        for i, (box, spacing) in enumerate(
            [
                (Box.from_shape(SHAPE, lo), SPACING),
                (Box.from_shape((21, 35, 22), (lo[0], lo[1] // 2, lo[2] // 2)), COARSE),
            ]
        )
    )
    return VolumeSpec(url, format_, dtype, encoding, tuple(map(Fraction, corner)), levels)


def voxels_for(box, dtype="uint8"):
    """Smooth, so that JPEG stays close, and never zero."""
    z, y, x = np.indices(box.shape)
    top = np.iinfo(dtype).max
    return ((z * 3 + y * 2 + x) // 2 * (top // 255) + 20).astype(dtype)


def as_stored(spec):
    """Clip shards to the grid: larger ones hold the same objects. Levels are not read back."""
    levels = tuple(
        level
        if level.shard is None
        else replace(
            level,
            shard=tuple(
                min(s, -(-n // c) * c)
                for s, c, n in zip(level.shard, level.chunk, level.box.shape, strict=True)
            ),
        )
        for level in spec.levels
    )
    return replace(spec, levels=levels, encoding=spec.encoding.partition(":")[0])


def write_and_read(spec, access=Access()):  # noqa: B008
    target = create_volume(spec, access, {"source": "memory", "model": "none"})
    arrays = [voxels_for(level.box, spec.dtype) for level in spec.levels]
    for i, array in enumerate(arrays):
        target.write(spec.levels[i].box, array, i)
    volume = open_volume(spec.url, access)
    assert as_stored(volume.spec) == as_stored(spec)
    for i, array in enumerate(arrays):
        box = spec.levels[i].box
        tolerance = 8 if spec.lossy else 0
        inner = Box((box.lo[0] + 2, box.lo[1] + 15, box.lo[2] + 1), box.hi)
        for part in (box, inner):
            read = volume.read(part, i)
            assert read.shape == part.shape
            assert read.dtype == np.dtype(spec.dtype)
            assert read.flags.c_contiguous
            expected = array[part.slices(box.lo)].astype(int)
            assert np.abs(read.astype(int) - expected).max() <= tolerance
    return arrays


@pytest.mark.parametrize(("format_", "encoding", "shard"), LAYOUTS)
def test_round_trip_files(tmp_path, format_, encoding, shard):
    write_and_read(make_spec(f"file://{tmp_path}/v", format_, encoding, shard))


@pytest.mark.parametrize(("format_", "encoding", "shard"), LAYOUTS)
def test_round_trip_uint16(tmp_path, format_, encoding, shard):
    spec = make_spec(f"file://{tmp_path}/v", format_, encoding, shard, "uint16")
    if encoding == "jpeg":
        with pytest.raises(UsageError, match="jpeg: uint8"):
            create_volume(spec)
        assert not list(tmp_path.iterdir())
    else:
        write_and_read(spec)


CLOUD_LAYOUTS = [
    ("precomputed", "raw", None),
    ("precomputed", "raw", (16, 32, 32)),
    ("precomputed", "jpeg", None),
    ("zarr2", "blosc", None),
    ("zarr3", "zstd", (32, 32, 32)),
]


@pytest.mark.parametrize(("format_", "encoding", "shard"), CLOUD_LAYOUTS)
@pytest.mark.parametrize("cloud", ["s3", "gcs"])
def test_round_trip_clouds(request, cloud, format_, encoding, shard):
    bucket = request.getfixturevalue(cloud)
    spec = make_spec(f"{bucket}/some/volume", format_, encoding, shard)
    write_and_read(spec)
    store = open_store(spec.url)
    for i, level in enumerate(spec.levels):
        assert set(object_keys(spec, i, level.box)) <= set(store.keys(f"{level.key}/"))


def test_endpoint_given_by_argument_or_url(s3, monkeypatch, s3_server):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    spec = make_spec(f"{s3}/v", "precomputed")
    write_and_read(spec, Access(endpoint_url=s3_server.endpoint_url))
    host = urlsplit(s3_server.endpoint_url).netloc
    bucket = s3.removeprefix("s3://")
    assert open_volume(f"s3+http://{host}/{bucket}/v").spec.levels == spec.levels


@pytest.mark.parametrize(
    ("place", "encoding", "shard", "dtype"),
    [
        *itertools.product(["file", "s3", "gcs"], ["raw"], [None, (16, 32, 32)], ["uint8"]),
        *itertools.product(["file"], ["gzip"], [(16, 32, 32)], ["uint8", "uint16"]),
        *itertools.product(["file"], ["png"], [None, (16, 32, 32)], ["uint8"]),
        ("s3", "png", (16, 32, 32), "uint8"),
    ],
)
def test_precomputed_is_read_by_cloudvolume(request, tmp_path, place, encoding, shard, dtype):
    root = f"file://{tmp_path}" if place == "file" else request.getfixturevalue(place)
    spec = make_spec(f"{root}/v", "precomputed", encoding, shard, dtype)
    arrays = write_and_read(spec)
    for mip, array in enumerate(arrays):
        volume = CloudVolume(f"precomputed://{spec.url}", mip=mip, progress=False)
        assert list(volume.resolution) == ([4.6, 4.6, 46] if mip == 0 else [9.2, 9.2, 46])
        assert tuple(volume.voxel_offset) == spec.levels[mip].box.lo[::-1]
        np.testing.assert_array_equal(np.asarray(volume[:, :, :])[..., 0].T, array)
    assert volume.provenance["processing"][0]["method"]["model"] == "none"


@pytest.mark.parametrize(
    ("format_", "encoding", "stored"),
    [
        ("zarr3", "zstd", ("zstd", {"level": 1, "checksum": False})),
        ("zarr3", "zstd:9", ("zstd", {"level": 9, "checksum": False})),
        ("zarr3", "blosc-zstd", ("blosc", {"cname": "zstd", "clevel": 5, "typesize": 2})),
        ("zarr3", "blosc", ("blosc", {"cname": "lz4", "clevel": 5, "typesize": 2})),
        ("zarr2", "zstd", {"id": "zstd", "level": 1}),
        ("zarr2", "blosc-zstd:7", {"id": "blosc", "cname": "zstd", "clevel": 7, "shuffle": 2}),
    ],
)
def test_an_encoding_is_stored_with_its_level(tmp_path, format_, encoding, stored):
    create_volume(make_spec(f"file://{tmp_path}/v", format_, encoding, dtype="uint16"))
    file = "zarr.json" if format_ == "zarr3" else ".zarray"
    meta = json.loads((tmp_path / "v" / "s0" / file).read_text())
    if format_ == "zarr3":
        codec = meta["codecs"][-1]
        assert codec["name"] == stored[0]
        found, wanted = codec["configuration"], stored[1]
    else:
        found, wanted = meta["compressor"], stored
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("format_", "encoding", "shard"), [layout for layout in LAYOUTS if layout[0] != "precomputed"]
)
def test_ome_zarr_is_read_by_zarr_python(tmp_path, format_, encoding, shard):
    spec = make_spec(f"file://{tmp_path}/v", format_, encoding, shard)
    arrays = write_and_read(spec)
    group = zarr.open_group(tmp_path / "v", mode="r")
    attributes = dict(group.attrs)
    assert attributes["isochunk"] == {"source": "memory", "model": "none"}
    entry = attributes.get("ome", attributes)["multiscales"][0]
    assert [axis["name"] for axis in entry["axes"]] == ["z", "y", "x"]
    scale, translation = entry["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == [46.0, 4.6, 4.6]
    # centres of voxel 0: corner + half a voxel
    assert translation["translation"] == [161.0, -16.1, 48.3]
    for dataset, array in zip(entry["datasets"], arrays, strict=True):
        np.testing.assert_array_equal(group[dataset["path"]][:], array)


@pytest.mark.parametrize("format_", ["zarr2", "zarr3"])
def test_ome_metadata_is_what_the_specification_asks_for(tmp_path, format_):
    spec = make_spec(f"file://{tmp_path}/v", format_, "zstd")
    create_volume(spec, attributes={"source": "somewhere"})
    group = zarr.open_group(tmp_path / "v", mode="r")
    if format_ == "zarr3":
        told = v05.Image.from_zarr(group).ome_attributes
    else:
        told = v04_image.ImageAttrs.model_validate(group.attrs.asdict())
    (multiscale,) = told.multiscales
    assert [axis.name for axis in multiscale.axes] == ["z", "y", "x"]
    assert len(multiscale.datasets) == len(spec.levels)


def test_info_holds_plain_numbers(tmp_path):
    create_volume(make_spec(f"file://{tmp_path}/v", "precomputed", "raw", (16, 32, 32)))
    text = (tmp_path / "v" / "info").read_text()
    info = json.loads(text)
    assert info["@type"] == "neuroglancer_multiscale_volume"
    assert info["type"] == "image"
    first = info["scales"][0]
    assert first["key"] == "4.6_4.6_46"
    assert first["resolution"] == [4.6, 4.6, 46]
    assert first["voxel_offset"] == [10, -4, 3]
    assert first["size"] == [45, 70, 21]
    assert "4.6000" not in text


def test_corner_of_precomputed_survives(tmp_path):
    spec = replace(
        make_spec(f"file://{tmp_path}/v", "precomputed"),
        corner_nm=(Fraction(-5), Fraction(1, 3), Fraction("0.1")),
    )
    create_volume(spec)
    assert open_volume(spec.url).spec.corner_nm == spec.corner_nm


@pytest.mark.parametrize(
    ("format_", "encoding", "shard"),
    [
        ("precomputed", "raw", (16, 32, 32)),
        ("precomputed", "jpeg", None),
        ("zarr3", "zstd", (32, 32, 32)),
        ("zarr2", "raw", None),
    ],
)
def test_each_object_is_written_once_and_black_ones_never(
    s3, s3_server, monkeypatch, format_, encoding, shard
):
    faults = servers.Faults()
    with servers.proxy(s3_server.endpoint_url, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        spec = make_spec(f"{s3}/v", format_, encoding, shard)
        target = create_volume(spec)
        level = spec.levels[0]
        array = voxels_for(level.box)
        array[:, :64] = 0
        target.write(level.box, array)
        keys = list(object_keys(spec, 0, level.box))
        lit = set(
            object_keys(
                spec, 0, Box((level.box.lo[0], level.box.lo[1] + 64, level.box.lo[2]), level.box.hi)
            )
        )
        assert 0 < len(lit) < len(keys)
        stored = [urlsplit(path).path.partition("/v/")[2] for path in faults.stored]
        written = {key: stored.count(key) for key in keys}
        assert written == {key: int(key in lit) for key in keys}
        assert {key for key in keys if open_store(spec.url).exists(key)} == lit
        read = open_volume(spec.url).read(level.box).astype(int)
        tolerance = 40 if spec.lossy else 0  # the edge of the black is hard for JPEG
        assert np.abs(read - array).max() <= tolerance
        # Again, now dark where it was bright: the stale objects have to go.
        target.write(level.box, np.zeros_like(array))
        assert not [key for key in keys if open_store(spec.url).exists(key)]
        assert not open_volume(spec.url).read(level.box).any()


def test_create_twice_is_harmless_and_something_else_is_refused(tmp_path):
    for format_ in ("precomputed", "zarr2", "zarr3"):
        url = f"file://{tmp_path}/{format_}"
        spec = make_spec(url, format_)
        arrays = write_and_read(spec)
        create_volume(spec)
        np.testing.assert_array_equal(open_volume(url).read(spec.box), arrays[0])
        finer = replace(spec.levels[0], chunk=(8, 8, 8))
        other_chunks = replace(spec, levels=(finer, spec.levels[1]))
        other_spacing = replace(
            spec, levels=(replace(spec.levels[0], spacing=COARSE), spec.levels[1])
        )
        for other in (other_chunks, other_spacing):
            with pytest.raises(TargetConflictError, match="choose another target or --overwrite"):
                create_volume(other)
        for foreign in {"precomputed", "zarr2", "zarr3"} - {format_}:
            with pytest.raises(TargetConflictError, match="of another volume"):
                create_volume(make_spec(url, foreign))
        np.testing.assert_array_equal(open_volume(url).read(spec.box), arrays[0])


def test_writing_needs_whole_objects_of_the_right_type(tmp_path):
    spec = make_spec(f"file://{tmp_path}/v", "zarr3", "raw", (16, 32, 32))
    target = create_volume(spec)
    box = Box((0, 0, 0), (16, 32, 16))
    with pytest.raises(GeometryError, match="cuts shard"):
        target.write(box, voxels_for(box))
    whole = Box((0, 0, 0), (16, 32, 32))
    with pytest.raises(GeometryError, match="takes"):
        target.write(whole, voxels_for(box))
    with pytest.raises(GeometryError, match="uint8"):
        target.write(whole, voxels_for(whole, "uint16"))
    with pytest.raises(GeometryError, match="outside level 0"):
        target.read(Box((0, 0, 0), (22, 1, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "n5"}, "cannot be written"),
        ({"format": "zarr3", "encoding": "jpeg"}, "choose raw, zstd, blosc, gzip"),
        ({"format": "precomputed", "encoding": "zstd"}, "raw: uint8, uint16"),
        ({"format": "precomputed", "encoding": "gzip"}, "--encoding png, or shards"),
        ({"format": "zarr3", "encoding": "zstd:23"}, "a level from 1 to 22"),
        ({"format": "zarr2", "encoding": "gzip:5"}, "of levels gzip takes none"),
        ({"format": "zarr2", "shard": (32, 32, 32)}, "zarr v2 has no shards"),
        ({"format": "zarr3", "shard": (24, 32, 32)}, "no multiple of chunk"),
        ({"format": "precomputed", "shard": (16, 64, 16)}, "--shard"),
        ({"format": "zarr3", "dtype": "float32"}, "uint8 and uint16"),
    ],
)
def test_impossible_targets_leave_nothing_behind(tmp_path, change, message):
    parts = {"format": "zarr3", "encoding": "raw", "shard": None, "dtype": "uint8", **change}
    spec = make_spec(
        f"file://{tmp_path}/v", parts["format"], parts["encoding"], parts["shard"], parts["dtype"]
    )
    with pytest.raises(UsageError, match=message):
        create_volume(spec)
    assert not list(tmp_path.iterdir())


def test_http_is_read_only(tmp_path):
    spec = make_spec(f"file://{tmp_path}/v", "zarr3", "zstd", (32, 32, 32))
    arrays = write_and_read(spec)
    with servers.file_server(tmp_path) as url:
        volume = open_volume(f"{url}/v")
        np.testing.assert_array_equal(volume.read(spec.box), arrays[0])
        assert volume.spec.levels == spec.levels
        store = open_store(f"{url}/v")
        assert store.exists("zarr.json")
        for attempt in (
            lambda: create_volume(replace(spec, url=f"{url}/w")),
            lambda: open_target(replace(spec, url=f"{url}/v")),
            lambda: store.put("a", b"b"),
            lambda: store.delete(["a"]),
        ):
            with pytest.raises(UsageError, match="read only"):
                attempt()
        with pytest.raises(UsageError, match="cannot be listed"):
            store.keys()


@pytest.mark.parametrize("place", ["file", "s3", "gcs"])
def test_object_store(request, tmp_path, place):
    root = f"file://{tmp_path}" if place == "file" else request.getfixturevalue(place)
    store = open_store(f"{root}/target")
    assert store.keys() == []
    assert store.get(".isochunk/job.json") is None
    store.put(".isochunk/job.json", b"{}")
    store.put(".isochunk/job.json", b"{1}")
    store.put(".isochunk/log/0", b"")
    store.put("c/0", b"\x00\xff")
    assert store.get(".isochunk/job.json") == b"{1}"
    assert store.get(".isochunk/log/0") == b""
    assert store.keys() == [".isochunk/job.json", ".isochunk/log/0", "c/0"]
    assert store.keys(".isochunk/l") == [".isochunk/log/0"]
    assert open_store(f"{root}/target/.isochunk").keys() == ["job.json", "log/0"]
    assert store.exists("c/0")
    assert not store.exists("c")
    store.delete(["c/0", "c/1"])
    assert store.keys("c") == []


def test_missing_objects_of_foreign_precomputed_are_errors(tmp_path):
    spec = make_spec(f"file://{tmp_path}/v", "precomputed")
    write_and_read(spec)
    first = next(iter(object_keys(spec, 0, spec.box)))
    (tmp_path / "v" / first).unlink()
    assert (open_volume(spec.url).read(spec.box)[:16, :16, :16] == 0).all()
    path = tmp_path / "v" / "info"
    info = json.loads(path.read_text())
    del info["isochunk"]
    path.write_text(json.dumps(info))
    from isochunk.errors import NotFoundError

    strict = open_volume(spec.url)
    with pytest.raises(NotFoundError, match=rf"box {spec.box} .*object {first} is missing"):
        strict.read(spec.box)
    rest = Box((spec.box.lo[0] + 16, *spec.box.lo[1:]), spec.box.hi)
    assert strict.read(rest).all()
    assert not open_volume(spec.url, Access(missing="background")).read(spec.box).all()
