"""MRC as others write it: every mode, byte order and header; and what is wrong."""

from __future__ import annotations

import logging
import os

import mrcfile
import numpy as np
import pytest

from isochunk.core.geometry import Box, Spacing
from isochunk.errors import CorruptDataError, NotFoundError, UsageError
from isochunk.storage.access import Access
from isochunk.storage.open import check_supported, open_volume

SPACING = Spacing.parse("46,4.6,4.6")
BOX = Box((2, 17, 5), (5, 62, 71))


def voxels(dtype="uint16", shape=(6, 70, 90)):
    return np.random.default_rng(1).integers(0, 100, shape).astype(dtype)


def write(path, data, extended=b"", **header):
    """Write a volume of 460 x 46 x 46 ångström voxels."""
    with mrcfile.new(path, overwrite=True) as file:
        if extended:
            file.set_extended_header(np.frombuffer(extended, "V1"))
        file.set_data(data)
        if not np.iscomplexobj(data) and data.ndim == 3:
            file.set_volume()
        file.voxel_size = (46, 46, 460)
        for name, value in header.items():
            file.header[name] = value
    return str(path)


@pytest.mark.parametrize("name", ["v.mrc", "v.map", "v.rec", "v.st"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("extended", [b"", b"x" * 2048])
def test_volumes(tmp_path, name, byteorder, extended):
    data = voxels(f"{byteorder}u2")
    path = write(tmp_path / name, data, extended)
    volume = open_volume(path)
    assert volume.spec.format == "mrc"
    assert volume.spec.dtype == "uint16"
    assert volume.spec.spacing == SPACING
    assert volume.spec.levels[0].chunk == (1, 1, 90)
    check_supported(volume.spec)
    for url in (volume.spec.url, f"mrc://{path}", f"{path}|mrc:"):
        opened = open_volume(url)
        assert opened.spec == volume.spec
        whole = opened.read(opened.spec.box)
        assert whole.dtype == np.uint16
        assert whole.dtype.isnative
        np.testing.assert_array_equal(whole, data)
        np.testing.assert_array_equal(opened.read(BOX), data[BOX.slices((0, 0, 0))])
    told = Access(spacing=Spacing.parse("50,5,5"))
    assert open_volume(path, told).spec.spacing == told.spacing


@pytest.mark.parametrize("dtype", ["int8", "int16", "float16", "float32"])
def test_other_voxels_are_opened_and_not_converted(tmp_path, dtype, caplog):
    data = voxels(dtype) - 20
    with caplog.at_level(logging.INFO):
        volume = open_volume(write(tmp_path / "v.mrc", data))
    read = volume.read(volume.spec.box)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, data)
    assert ("mode 0 is read as int8" in caplog.text) == (dtype == "int8")
    with pytest.raises(UsageError, match=f"holds {dtype}; uint8 and uint16"):
        check_supported(volume.spec)


def test_voxel_size_that_is_not_told(tmp_path):
    path = write(tmp_path / "v.mrc", voxels())
    for name, value in (("cella", (0, 0, 0)), ("mz", 0)):
        write(path, voxels(), **{name: value})
        with pytest.raises(
            UsageError, match=r"voxel size of file:.*v.mrc is not known; give .*--so"
        ):
            open_volume(path)
        given = open_volume(path, Access(spacing=SPACING))
        np.testing.assert_array_equal(given.read(given.spec.box), voxels())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"mapc": 3, "maps": 1}, r"along axes \(3, 2, 1\); volumes with axes 1, 2, 3"),
        ({"ispg": 401, "mz": 3}, r"more than one volume \(2 along volumes\)"),
        ({"nz": 0}, r"holds \(0, 70, 90\) voxels"),
    ],
)
def test_volumes_of_another_order(tmp_path, header, message):
    with pytest.raises(UsageError, match=message):
        open_volume(write(tmp_path / "v.mrc", voxels(), **header))


def test_complex_voxels(tmp_path):
    with pytest.raises(UsageError, match=r"v.mrc is of mode 4; 0 \(int8\), .* are supported"):
        open_volume(write(tmp_path / "v.mrc", voxels("complex64")))


@pytest.mark.parametrize("size", [0, 300, 2000, 75_000])
def test_files_that_are_cut_short(tmp_path, size):
    path = write(tmp_path / "v.mrc", voxels())
    os.truncate(path, size)
    with pytest.raises(CorruptDataError, match=r"v.mrc.*copy it again"):
        open_volume(path)


def test_files_that_are_cut_short_while_they_are_read(tmp_path):
    path = write(tmp_path / "v.mrc", voxels())
    volume = open_volume(path)
    os.truncate(path, 40_000)
    volume.read(Box((0, 0, 0), (2, 70, 90)))
    with pytest.raises(CorruptDataError, match=r"v.mrc is cut short: it ends at byte 40000"):
        volume.read(volume.spec.box)
    os.unlink(path)  # noqa: PTH108
    with pytest.raises(NotFoundError, match=r"reading box .*v.mrc is not there; check the path"):
        volume.read(volume.spec.box)


def test_modes_that_are_not_known(tmp_path):
    path = write(tmp_path / "v.mrc", voxels(), mode=101)
    with pytest.raises(UsageError, match=r"v.mrc is of mode 101; .*6 \(uint16\).*convert it to on"):
        open_volume(path)


def test_what_is_no_mrc(tmp_path):
    (tmp_path / "v.rec").write_bytes(b"\0" * 4096)
    with pytest.raises(
        UsageError, match=r"v.rec is no MRC file by its content, but something else"
    ):
        open_volume(str(tmp_path / "v.rec"))
