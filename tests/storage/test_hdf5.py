"""HDF5 as others write it: data sets by path, voxel sizes in attributes; and what is wrong."""

from __future__ import annotations

import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import h5py
import numpy as np
import pytest

from isochunk.core.geometry import Box, Spacing
from isochunk.errors import CorruptDataError, NotFoundError, UsageError
from isochunk.storage.access import Access
from isochunk.storage.open import check_supported, open_volume
from isochunk.storage.url import parse_url

SPACING = Spacing.parse("46,4.6,4.6")
GIVEN = Access(spacing=SPACING)
BOX = Box((2, 17, 5), (5, 62, 71))


def voxels(dtype="uint8", shape=(6, 70, 90)):
    return np.random.default_rng(1).integers(0, 100, shape).astype(dtype)


def write(path, data, name="volumes/raw", attributes=None, **options):
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=data, **options).attrs.update(attributes or {})
    return str(path)


LAYOUTS = {
    "contiguous": ({}, (1, 1, 90), "raw"),
    "chunks": ({"chunks": (2, 16, 32)}, (2, 16, 32), "raw"),
    "packed": (
        {"chunks": (4, 32, 32), "compression": "gzip", "shuffle": True},
        (4, 32, 32),
        "gzip",
    ),
    "checksums": ({"chunks": (6, 70, 90), "fletcher32": True}, (6, 70, 90), "fletcher32"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "<u2", ">u2"])
def test_data_sets(tmp_path, layout, dtype):
    options, chunk, encoding = LAYOUTS[layout]
    data = voxels(dtype)
    path = write(tmp_path / "v.h5", data, **options)
    volume = open_volume(f"{path}:/volumes/raw", GIVEN)
    assert volume.spec.format == "hdf5"
    assert volume.spec.url == f"file://{path}:/volumes/raw"
    assert volume.spec.levels[0].chunk == chunk
    assert volume.spec.encoding == encoding
    check_supported(volume.spec)
    for url in (volume.spec.url, path, f"hdf5://{path}", f"{path}|hdf5:volumes/raw"):
        opened = open_volume(url, GIVEN)
        assert opened.spec == volume.spec
        whole = opened.read(opened.spec.box)
        assert whole.dtype == np.dtype(data.dtype.name)  # in this machine's byte order
        assert whole.flags.c_contiguous
        np.testing.assert_array_equal(whole, data)
        np.testing.assert_array_equal(opened.read(BOX), data[BOX.slices((0, 0, 0))])


@pytest.mark.parametrize("name", ["v.hdf5", "v.hdf", "V.H5", "v.mat", "no suffix"])
def test_names_of_files(tmp_path, name):
    data = voxels()
    path = write(tmp_path / name, data)
    volume = open_volume(path, GIVEN)
    assert open_volume(volume.spec.url, GIVEN).spec == volume.spec
    assert parse_url(volume.spec.url).dataset == "volumes/raw"
    np.testing.assert_array_equal(volume.read(BOX), data[BOX.slices((0, 0, 0))])


def test_files_behind_a_block_of_the_user(tmp_path):
    with h5py.File(tmp_path / "v.mat", "w", userblock_size=512) as file:
        file["a"] = voxels()
    volume = open_volume(str(tmp_path / "v.mat"), GIVEN)
    np.testing.assert_array_equal(volume.read(volume.spec.box), voxels())


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
def test_other_voxels_are_opened_and_not_converted(tmp_path, dtype):
    volume = open_volume(write(tmp_path / "v.h5", voxels(dtype)), GIVEN)
    assert volume.read(volume.spec.box).dtype == dtype
    with pytest.raises(UsageError, match=f"holds {dtype}; uint8 and uint16"):
        check_supported(volume.spec)


def test_axes_of_one_are_passed_over(tmp_path):
    data = voxels()
    volume = open_volume(write(tmp_path / "v.h5", data[None, ..., None], chunks=True), GIVEN)
    assert volume.spec.box.shape == data.shape
    np.testing.assert_array_equal(volume.read(BOX), data[BOX.slices((0, 0, 0))])


@pytest.mark.parametrize(
    "attributes",
    [
        {"resolution": [46.0, 4.6, 4.6]},
        {"resolution": np.array([46, 4.6, 4.6], np.float32)},
        {"element_size_um": [0.046, 0.0046, 0.0046]},
        {"element_size_um": np.array([0.046, 0.0046, 0.0046], np.float32)},
        {"voxel_size": [46, 4.6, 4.6], "units": ["nm", "nm", "nm"]},
        {"voxel_size": [0.046, 0.0046, 0.0046], "units": "um"},
    ],
)
def test_voxel_size_in_attributes(tmp_path, attributes):
    path = write(tmp_path / "v.h5", voxels(), attributes=attributes)
    assert open_volume(path).spec.spacing == SPACING
    told = Access(spacing=Spacing.parse("50,5,5"))
    assert open_volume(path, told).spec.spacing == told.spacing


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"resolution": [46.0, 4.6]},
        {"resolution": [0, 4.6, 4.6]},
        {"resolution": [np.nan, 4.6, 4.6]},
        {"resolution": "46 nm"},
        {"voxel_size": [46, 4.6, 4.6], "units": ["voxel", "voxel", "voxel"]},
    ],
)
def test_voxel_size_that_is_not_told(tmp_path, attributes):
    path = write(tmp_path / "v.h5", voxels(), attributes=attributes)
    with pytest.raises(UsageError, match=r"voxel size of file:.*raw is not known; give .*--source"):
        open_volume(path)


def test_offset_of_cremi(tmp_path):
    attributes = {"resolution": [40.0, 4.0, 4.0], "offset": [1520.0, 3644.0, 0.0]}
    path = write(tmp_path / "v.h5", voxels(), attributes=attributes)
    assert open_volume(path).spec.corner_nm == (Fraction(1520), Fraction(3644), Fraction(0))


def test_data_sets_that_are_not_named(tmp_path):
    path = write(tmp_path / "v.h5", voxels())
    write(path, np.zeros((5, 4)), "table")
    write(path, voxels("uint16"), "volumes/labels")
    told = r"/volumes/labels \(6, 70, 90\) uint16, /volumes/raw \(6, 70, 90\) uint8"
    with pytest.raises(UsageError, match=rf"holds 2 data sets of three axes.*: {told}; name one"):
        open_volume(path, GIVEN)
    with pytest.raises(NotFoundError, match=rf"/volumes/rat is not there in .*v.h5; .*: {told}"):
        open_volume(f"{path}:/volumes/rat", GIVEN)
    with pytest.raises(NotFoundError, match=rf"/volumes is a group in .*v.h5; .*: {told}"):
        open_volume(f"{path}:/volumes", GIVEN)
    with pytest.raises(UsageError, match=r"v.h5:/table has 2 axes \(5, 4\) of float64; a data set"):
        open_volume(f"{path}:/table", GIVEN)
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(UsageError, match=r"holds 0 data sets of three axes or more: none"):
        open_volume(str(tmp_path / "empty.h5"), GIVEN)


@pytest.mark.parametrize("shape", [(2, 6, 7, 9), (6, 7, 9, 3)])
def test_channels_are_refused(tmp_path, shape):
    path = write(tmp_path / "v.h5", np.ones(shape, np.uint8))
    with pytest.raises(UsageError, match=r"more than one volume .*; save the one that is meant"):
        open_volume(path, GIVEN)


@pytest.mark.parametrize("named", ["labels", "ilastik"])
def test_each_channel_of_named_axes(tmp_path, named):
    data = np.random.default_rng(0).integers(0, 255, (6, 7, 9, 3), np.uint8)
    path = write(tmp_path / "v.h5", data)
    with h5py.File(tmp_path / "v.h5", "r+") as file:
        dataset = file["volumes/raw"]
        for axis, name in enumerate("zyxc"):
            if named == "labels":
                dataset.dims[axis].label = name
        if named == "ilastik":
            dataset.attrs["axistags"] = json.dumps({"axes": [{"key": name} for name in "zyxc"]})
    for channel in range(3):
        volume = open_volume(path, replace(GIVEN, channel=channel))
        assert volume.spec.channel == channel
        np.testing.assert_array_equal(volume.read(volume.spec.box), data[..., channel])
    with pytest.raises(UsageError, match="has 3 channels; choose one with --channel N"):
        open_volume(path, GIVEN)


def test_voxels_that_are_no_numbers(tmp_path):
    path = write(tmp_path / "v.h5", np.zeros((3, 4, 5), [("a", "u1"), ("b", "u2")]))
    with pytest.raises(UsageError, match=r"integers or floats with axes z, y, x is supported"):
        open_volume(path, GIVEN)


@pytest.mark.parametrize("share", [0, 0.0005, 0.2, 0.9])
def test_files_that_are_cut_short(tmp_path, share):
    path = tmp_path / "v.h5"
    write(path, voxels(), chunks=(2, 16, 16))
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(CorruptDataError, match=r"v.h5.*copy it again"):
        open_volume(str(path), GIVEN)


def test_damaged_chunks(tmp_path):
    path = write(tmp_path / "v.h5", voxels(), chunks=(2, 16, 16), fletcher32=True)
    with h5py.File(path) as file:
        at = file["volumes/raw"].id.get_chunk_info(3).byte_offset
    with open(path, "r+b") as file:  # noqa: PTH123  to be written in its middle
        file.seek(at)
        file.write(b"\xff" * 16)
    volume = open_volume(path, GIVEN)
    with pytest.raises(CorruptDataError, match=rf"reading box {volume.spec.box} of .*v.h5:/vol"):
        volume.read(volume.spec.box)
    volume.read(Box((0, 0, 0), (2, 16, 16)))


def test_filters_that_are_not_installed(tmp_path):
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as file:
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((2, 16, 16))
        settings.set_filter(32_999, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((6, 70, 90))
        h5py.h5d.create(file.id, b"a", h5py.h5t.NATIVE_UINT8, space, settings)
    with pytest.raises(UsageError, match=r"HDF5 filter 32999 .*not installed; pip install hdf5plu"):
        open_volume(str(path), GIVEN)


def test_what_is_no_hdf5(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"\x89PNG\r\n\x1a\n and no HDF5")
    with pytest.raises(UsageError, match=r"a.h5 is no HDF5 file by its content, but something"):
        open_volume(f"{tmp_path}/a.h5:/raw", GIVEN)
    with pytest.raises(NotFoundError, match=r"there is no file .*b.h5; check the path"):
        open_volume(f"{tmp_path}/b.h5:/raw", GIVEN)
    with pytest.raises(UsageError, match=r"is a folder; give one HDF5 file"):
        open_volume(f"hdf5://{tmp_path}", GIVEN)
    with pytest.raises(UsageError, match=r"read from local or shared file systems only"):
        open_volume("s3://bucket/v.h5:/raw", GIVEN)


def test_urls():
    for text in ("/a/v.h5:/b/c", "file:///a/v.h5:/b/c/", "hdf5:///a/v.h5:/b/c", "/a/v.h5|hdf5:b/c"):
        location = parse_url(text)
        assert (location.path, location.dataset) == ("/a/v.h5", "b/c")
        assert location.format == "hdf5"
        assert location.url == "file:///a/v.h5:/b/c"
    assert parse_url("/a/v.mat|hdf5:/b").url == "file:///a/v.mat|hdf5:/b"
    assert parse_url(parse_url("/a/v.mat|hdf5:/b").url).dataset == "b"
    assert parse_url("/a/v.h5").dataset == ""
    assert parse_url("/a:/v.zarr").path == "/a:/v.zarr"


def test_many_threads_read(tmp_path):
    data = voxels("uint16", (12, 70, 90))
    path = write(tmp_path / "v.h5", data, chunks=(4, 16, 16), compression="gzip")
    volume = open_volume(path, GIVEN)
    boxes = [
        Box((z, y, x), (z + 4, y + 30, x + 30)) for z in (0, 5) for y in (0, 35) for x in (1, 9)
    ]
    with ThreadPoolExecutor(8) as pool:
        for box, got in zip(boxes * 8, pool.map(volume.read, boxes * 8), strict=True):
            np.testing.assert_array_equal(got, data[box.slices((0, 0, 0))])


def test_nothing_is_said_of_a_sound_file(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        open_volume(write(tmp_path / "v.h5", voxels()), GIVEN)
    assert not caplog.messages
