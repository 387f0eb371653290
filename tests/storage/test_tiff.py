"""TIFF as others write it: folders of sections, stacks of pages, ImageJ, OME; and what is wrong."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
from PIL import Image

from isochunk.core.geometry import Box, Spacing
from isochunk.errors import (
    AccessError,
    CorruptDataError,
    NotFoundError,
    StorageError,
    UsageError,
)
from isochunk.storage.access import Access
from isochunk.storage.open import check_supported, open_volume

SPACING = Spacing.parse("46,4.6,4.6")
GIVEN = Access(spacing=SPACING)
BOX = Box((2, 17, 5), (5, 62, 71))
"""Cuts tiles of 16 and 32, and strips of 7."""


def sections(dtype="uint8", shape=(6, 70, 90)):
    """Smooth enough for compression to matter, different in each section."""
    values = np.random.default_rng(1).integers(0, 100, shape).cumsum(axis=2) // 40
    return values.astype(dtype)


def write_folder(folder, data, name="s_{:04d}.tif", first=0, **options):
    folder.mkdir(exist_ok=True)
    for z, section in enumerate(data):
        tifffile.imwrite(folder / name.format(z + first), section, **options)
    return str(folder)


def check_reads(volume, data):
    """The whole, a part across tiles and strips, and single voxels; and again by its own URL."""
    assert volume.spec.box == Box.from_shape(data.shape)
    assert volume.spec.dtype == data.dtype.name
    for opened in (volume, open_volume(volume.spec.url, Access(spacing=volume.spec.spacing))):
        assert opened.spec == volume.spec
        whole = opened.read(opened.spec.box)
        assert whole.dtype == np.dtype(data.dtype.name)  # in this machine's byte order
        assert whole.flags.c_contiguous
        np.testing.assert_array_equal(whole, data)
        np.testing.assert_array_equal(opened.read(BOX), data[BOX.slices((0, 0, 0))])
        last = Box((5, 69, 89), (6, 70, 90))
        np.testing.assert_array_equal(opened.read(last), data[5:, 69:, 89:])


def read_all(url):
    volume = open_volume(url, GIVEN)
    return volume.read(volume.spec.box)


ZYX = {"axes": "ZYX"}

LAYOUTS = {
    "one strip": ({}, (1, 1, 90), "raw"),
    "strips": ({"rowsperstrip": 7}, (1, 1, 90), "raw"),
    "packed strips": ({"rowsperstrip": 7, "compression": "zlib"}, (1, 7, 90), "adobe_deflate"),
    "tiles": ({"tile": (32, 16)}, (1, 32, 16), "raw"),
    "packed tiles": ({"tile": (16, 32), "compression": "zlib"}, (1, 16, 32), "adobe_deflate"),
    "big": ({"bigtiff": True, "tile": (16, 16)}, (1, 16, 16), "raw"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_folders(tmp_path, layout, byteorder, dtype):
    options, chunk, encoding = LAYOUTS[layout]
    data = sections(dtype)
    folder = write_folder(tmp_path / "in", data, byteorder=byteorder, **options)
    volume = open_volume(folder, GIVEN)
    assert volume.spec.format == "tiff"
    assert volume.spec.spacing == SPACING
    assert volume.spec.levels[0].chunk == chunk
    assert volume.spec.encoding == encoding
    check_supported(volume.spec)
    check_reads(volume, data)
    check_reads(open_volume(f"tiff://{folder}", GIVEN), data)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("kind", ["pages", "tifffile", "ome"])
def test_stacks_of_pages(tmp_path, layout, byteorder, kind):
    options, chunk, _ = LAYOUTS[layout]
    data = sections("uint16")
    path = tmp_path / "stack.tif"
    described = {
        "pages": {"metadata": None},
        "tifffile": {},
        "ome": {"ome": True, "metadata": ZYX},
    }[kind]
    tifffile.imwrite(
        path, data, byteorder=byteorder, photometric="minisblack", **options, **described
    )
    volume = open_volume(str(path), GIVEN)
    assert volume.spec.levels[0].chunk == chunk
    check_reads(volume, data)


@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate", "packbits", "lzma"])
@pytest.mark.parametrize("predictor", [1, 2])
def test_pages_of_libtiff(tmp_path, compression, predictor):
    first, *rest = [Image.fromarray(section) for section in sections()]
    path = tmp_path / "stack.tiff"
    tags = {317: predictor} if compression in ("tiff_adobe_deflate", "lzma") else {}
    first.save(path, save_all=True, append_images=rest, compression=compression, tiffinfo=tags)
    check_reads(open_volume(str(path), GIVEN), sections())


def test_wide_rows_are_not_read_whole(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, (2, 9, 40_000), np.uint8)
    tifffile.imwrite(tmp_path / "wide.tif", data)
    volume = open_volume(str(tmp_path / "wide.tif"), GIVEN)
    assert volume.spec.levels[0].chunk == (1, 1, 4096)
    box = Box((0, 3, 12_345), (2, 8, 12_400))
    np.testing.assert_array_equal(volume.read(box), data[box.slices((0, 0, 0))])


@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_other_voxels_are_opened_and_not_converted(tmp_path, dtype, compression):
    data = sections(dtype) - 20
    tifffile.imwrite(tmp_path / "s.tif", data, compression=compression)
    volume = open_volume(str(tmp_path / "s.tif"), GIVEN)
    check_reads(volume, data.astype(dtype))
    with pytest.raises(UsageError, match=f"holds {dtype}; uint8 and uint16"):
        check_supported(volume.spec)


def test_voxel_size_of_imagej(tmp_path):
    data = sections()
    tifffile.imwrite(
        tmp_path / "s.tif",
        data,
        imagej=True,
        resolution=(217391304 / 10**6, 217391304 / 10**6),
        metadata={"spacing": 0.046, "unit": "um", "axes": "ZYX"},
    )
    volume = open_volume(str(tmp_path / "s.tif"))
    assert volume.spec.spacing == SPACING
    check_reads(volume, data)
    told = Access(spacing=Spacing.parse("50,5,5"))
    assert open_volume(str(tmp_path / "s.tif"), told).spec.spacing == told.spacing


@pytest.mark.parametrize(("unit", "size"), [("nm", 46), ("µm", 0.046), ("Å", 460)])
def test_voxel_size_of_ome(tmp_path, unit, size):
    metadata = {"axes": "ZYX"}
    for axis, length in (("X", size / 10), ("Y", size / 10), ("Z", size)):
        metadata |= {f"PhysicalSize{axis}": length, f"PhysicalSize{axis}Unit": unit}
    tifffile.imwrite(tmp_path / "s.ome.tif", sections(), ome=True, metadata=metadata)
    assert open_volume(str(tmp_path / "s.ome.tif")).spec.spacing == SPACING


def test_voxel_size_that_is_not_told(tmp_path):
    folder = write_folder(tmp_path / "in", sections())
    with pytest.raises(UsageError, match=r"voxel size of file:.*in is not known; give .*--source"):
        open_volume(folder)
    tifffile.imwrite(
        tmp_path / "one.tif",
        sections()[0],
        imagej=True,
        resolution=(250, 250),
        metadata={"unit": "micron"},
    )
    known = r"not known \(only 4 nm along y and 4 nm along x\); give"
    with pytest.raises(UsageError, match=known):
        open_volume(str(tmp_path / "one.tif"))


def test_absent_sections_are_black_and_named_once(tmp_path, caplog):
    data = sections()
    folder = write_folder(tmp_path / "in", data, "sec{:03d}_raw.tif", first=7)
    for number in (9, 10):
        (tmp_path / "in" / f"sec{number:03d}_raw.tif").unlink()
    data[2:4] = 0
    with caplog.at_level(logging.WARNING):
        volume = open_volume(folder, GIVEN)
        for _ in range(3):
            np.testing.assert_array_equal(volume.read(volume.spec.box), data)
    (told,) = caplog.messages
    assert "2 of 6 sections of" in told
    assert "have no file (sec009_raw.tif, sec010_raw.tif); they are lost and read as black" in told
    with pytest.raises(NotFoundError, match=r"sec009_raw.tif.*restore them, or drop --missing"):
        open_volume(folder, Access(spacing=SPACING, missing="error"))


def test_sections_are_ordered_by_number(tmp_path):
    data = sections(shape=(12, 70, 90))
    folder = write_folder(tmp_path / "in", data, "s{}.tif")
    (tmp_path / "in" / "notes.txt").write_text("10 kV")
    (tmp_path / "in" / ".hidden.png").write_bytes(b"")
    np.testing.assert_array_equal(open_volume(folder, GIVEN).read(Box.from_shape(data.shape)), data)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (np.zeros((70, 91), np.uint8), r"70 x 91 uint8, and the first section 70 x 90 uint8"),
        (np.zeros((70, 90), np.uint16), r"70 x 90 uint16, and the first section 70 x 90 uint8"),
        (np.zeros((70, 90, 3), np.uint8), r"3 along channels\); save the one"),
    ],
)
@pytest.mark.parametrize("count", [6, 40])
def test_sections_that_differ(tmp_path, odd, message, count):
    """When it is opened, or in a long stack when they are read."""
    folder = write_folder(tmp_path / "in", np.zeros((count, 70, 90), np.uint8))
    photometric = "rgb" if odd.ndim == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "in" / "s_0004.tif", odd, photometric=photometric)
    with pytest.raises(UsageError, match=rf"s_0004.tif.*{message}"):
        read_all(folder)
    if count > 16:
        open_volume(folder, GIVEN).read(Box((0, 0, 0), (4, 70, 90)))  # those before it


def test_sections_of_several_pages(tmp_path):
    folder = write_folder(tmp_path / "in", [sections(), sections()])
    with pytest.raises(UsageError, match=r"s_0000.tif holds 6 pages; in a folder each file is one"):
        open_volume(folder, GIVEN)


def test_pages_that_differ(tmp_path):
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for rows in (40, 40, 41):
            writer.write(np.zeros((rows, 50), np.uint8), metadata=None)
    with pytest.raises(
        UsageError, match=r"holds 2 stacks, or pages that differ in .*\(2x40x50.*41x50"
    ):
        open_volume(str(tmp_path / "s.tif"), GIVEN)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((9, 9, 3), {"photometric": "rgb"}, r"3 along channels\); save the one"),
        (
            (4, 2, 9, 9),
            {"imagej": True, "metadata": {"axes": "ZCYX"}},
            "has 2 channels; choose one with --channel N, from 0 to 1",
        ),
        (
            (4, 2, 9, 9),
            {"ome": True, "metadata": {"axes": "ZCYX"}},
            "has 2 channels; choose one with --channel N",
        ),
        (
            (3, 4, 9, 9),
            {"imagej": True, "metadata": {"axes": "TZYX"}},
            "has 3 time points; choose one with --time N, from 0 to 2",
        ),
        ((3, 4, 9, 9), {"photometric": "minisblack"}, "axes QQYX of .*one stack of sections"),
    ],
)
def test_channels_and_times_are_refused(tmp_path, shape, options, message):
    tifffile.imwrite(tmp_path / "s.tif", np.ones(shape, np.uint8), **options)
    with pytest.raises(UsageError, match=message):
        open_volume(str(tmp_path / "s.tif"), GIVEN)


@pytest.mark.parametrize("axes", ["TZCYX", "ZCYX", "CZYX", "TCYX"])
@pytest.mark.parametrize(
    "options", [{"imagej": True}, {"ome": True}, {"ome": True, "compression": "zlib"}]
)
def test_each_channel_and_time(tmp_path, axes, options):
    """Pages lie in any order, one after the other or packed."""
    if options.get("imagej") and axes not in ("TZCYX", "ZCYX"):
        pytest.skip("ImageJ has one order")
    sizes = {"T": 2, "C": 3, "Z": 5, "Y": 9, "X": 11}
    data = np.random.default_rng(0).integers(0, 255, [sizes[a] for a in axes], np.uint8)
    path, url = tmp_path / "s.tif", str(tmp_path / "s.tif")
    tifffile.imwrite(path, data, photometric="minisblack", metadata={"axes": axes}, **options)
    for time in range(2 if "T" in axes else 1):
        for channel in range(3):
            at = {"T": time, "C": channel}
            wanted = data[tuple(at.get(a, slice(None)) for a in axes)]
            access = replace(GIVEN, channel=channel, time=time)
            volume = open_volume(url, access)
            assert (volume.spec.channel, volume.spec.time) == (
                channel,
                time if "T" in axes else None,
            )
            np.testing.assert_array_equal(
                volume.read(volume.spec.box), wanted.reshape(-1, *wanted.shape[-2:])
            )
    with pytest.raises(UsageError, match="has 3 channels, and --channel is 3"):
        open_volume(url, replace(GIVEN, channel=3, time=0))


def test_a_channel_of_one(tmp_path):
    folder = write_folder(tmp_path / "in", sections())
    assert open_volume(folder, replace(GIVEN, channel=0)).spec.channel is None
    with pytest.raises(UsageError, match="has 1 channel, and --channel is 1; leave it out"):
        open_volume(folder, replace(GIVEN, channel=1))


def test_pyramids_are_passed_over(tmp_path):
    """Smaller copies, as sub-directories of OME-TIFF and as further pages of a section."""
    data = sections(shape=(6, 64, 96))
    options = {"tile": (32, 32), "compression": "zlib", "photometric": "minisblack"}
    with tifffile.TiffWriter(tmp_path / "s.ome.tif", ome=True) as writer:
        writer.write(data, subifds=1, metadata=ZYX, **options)
        writer.write(data[:, ::2, ::2], subfiletype=1, **options)
    np.testing.assert_array_equal(read_all(str(tmp_path / "s.ome.tif")), data)
    (tmp_path / "in").mkdir()
    for z, section in enumerate(data):
        with tifffile.TiffWriter(tmp_path / "in" / f"{z}.tif") as writer:
            writer.write(section, metadata=None, **options)
            writer.write(section[::2, ::2], subfiletype=1, metadata=None, **options)
    np.testing.assert_array_equal(read_all(str(tmp_path / "in")), data)


def test_tiles_that_nobody_wrote(tmp_path):
    data = sections(shape=(3, 64, 96))
    folder = write_folder(tmp_path / "in", data, tile=(32, 32))
    with tifffile.TiffFile(tmp_path / "in" / "s_0002.tif", mode="r+") as file:
        sizes = list(file.pages.first.databytecounts)
        sizes[1] = 0
        file.pages.first.tags["TileByteCounts"].overwrite(sizes)
    data[2, :32, 32:64] = 0
    np.testing.assert_array_equal(read_all(folder), data)


def test_single_bits_are_refused(tmp_path):
    Image.fromarray(np.eye(16, dtype=bool)).save(tmp_path / "mask.tif")
    with pytest.raises(UsageError, match=r"mask.tif holds pages of 1 bits"):
        open_volume(str(tmp_path / "mask.tif"), GIVEN)


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="imagecodecs is installed")
@pytest.mark.parametrize("place", ["stack", "folder"])
@pytest.mark.parametrize("codec", ["lzw", "jpeg"])
def test_codecs_that_are_not_installed(tmp_path, place, codec):
    (tmp_path / "in").mkdir()
    Image.fromarray(sections()[0]).save(
        tmp_path / "in" / "s_0.tif", compression={"lzw": "tiff_lzw"}.get(codec, codec)
    )
    url = tmp_path / "in" if place == "folder" else tmp_path / "in" / "s_0.tif"
    with pytest.raises(UsageError, match=rf"s_0.tif is stored as {codec}.*pip install imagecodecs"):
        open_volume(str(url), GIVEN)


def cut(path, share):
    os.truncate(path, int(path.stat().st_size * share))


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"compression": "zlib"}])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_sections_that_are_cut_short(tmp_path, options, share):
    folder = write_folder(tmp_path / "in", sections(), **options)
    cut(tmp_path / "in" / "s_0003.tif", share)
    with pytest.raises(CorruptDataError, match=r"s_0003.tif.*copy it again"):
        read_all(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"metadata": None},
        {"metadata": None, "compression": "zlib"},
        {},
        {"compression": "zlib"},
        {"imagej": True},
        {"ome": True, "metadata": ZYX},
        {"ome": True, "metadata": ZYX, "tile": (16, 16)},
    ],
)
@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.999])
def test_stacks_that_are_cut_short(tmp_path, options, share):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, sections(), photometric="minisblack", **options)
    cut(path, share)
    with pytest.raises(CorruptDataError, match=r"s.tif.*copy it again"):
        read_all(str(path))


@pytest.mark.parametrize("pages", [1, 3, 5])
def test_stacks_of_libtiff_that_are_cut_between_pages(tmp_path, pages):
    first, *rest = [Image.fromarray(section) for section in sections()]
    path = tmp_path / "s.tif"
    first.save(path, save_all=True, append_images=rest)
    with tifffile.TiffFile(path) as file:
        end = file.pages[pages].offset
    os.truncate(path, end)
    with pytest.raises(CorruptDataError, match=r"s.tif.*copy it again"):
        open_volume(str(path), GIVEN)


def test_damaged_tiles(tmp_path):
    folder = write_folder(tmp_path / "in", sections(), tile=(16, 16), compression="zlib")
    path = tmp_path / "in" / "s_0002.tif"
    with tifffile.TiffFile(path) as file:
        at, size = file.pages.first.dataoffsets[3], file.pages.first.databytecounts[3]
    content = bytearray(path.read_bytes())
    content[at : at + size] = b"\xff" * size
    path.write_bytes(content)
    volume = open_volume(folder, GIVEN)
    with pytest.raises(CorruptDataError, match=rf"reading box {volume.spec.box} of .*s_0002.tif"):
        volume.read(volume.spec.box)
    volume.read(Box((2, 0, 0), (3, 16, 16)))  # only what is wanted is read


def test_what_is_no_tiff(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"not a TIFF file at all")
    with pytest.raises(UsageError, match=r"a.tif is no TIFF file by its content, but something"):
        open_volume(str(tmp_path / "a.tif"), GIVEN)
    with pytest.raises(StorageError, match=r"a.tif.*copy it again"):
        open_volume(str(tmp_path), GIVEN)
    with pytest.raises(NotFoundError, match=r"there is no file .*b.tif; check the path"):
        open_volume(str(tmp_path / "b.tif"), GIVEN)
    (tmp_path / "c.tif").write_bytes(b"")
    with pytest.raises(CorruptDataError, match=r"c.tif is empty"):
        open_volume(str(tmp_path / "c.tif"), GIVEN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"no file of .*empty ends in .tif or .tiff"):
        open_volume(f"tiff://{tmp_path}/empty", GIVEN)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path):
    folder = write_folder(tmp_path / "in", sections())
    (tmp_path / "in" / "s_0000.tif").chmod(0)
    with pytest.raises(AccessError, match=r"s_0000.tif: access refused; check the owner"):
        open_volume(folder, GIVEN)


def test_a_folder_of_another_volume_is_that(tmp_path):
    folder = write_folder(tmp_path / "in", sections())
    (tmp_path / "in" / "info").write_text("{}")
    with pytest.raises(CorruptDataError, match=r"info is not a precomputed volume"):
        open_volume(folder, GIVEN)
    with pytest.raises(UsageError, match=r"holds info of a volume in another format besides TIFF"):
        open_volume(f"tiff://{folder}", GIVEN)


@pytest.mark.parametrize("scheme", ["s3", "gs", "https"])
def test_buckets_are_refused(scheme):
    with pytest.raises(UsageError, match=r"read from local or shared file systems only; copy it"):
        open_volume(f"tiff://{scheme}://bucket/s.tif")


def test_missing_files_in_buckets(s3):
    with pytest.raises(
        NotFoundError, match=r"no precomputed.*at s3://.*/s.tif: .*file systems onl"
    ):
        open_volume(f"{s3}/s.tif")


def test_many_threads_read(tmp_path):
    data = sections("uint16", (12, 70, 90))
    folder = write_folder(tmp_path / "in", data, tile=(16, 16), compression="zlib")
    small = Access(spacing=SPACING, cache_bytes=5000)  # nine tiles: they push each other out
    volume = open_volume(folder, small)
    boxes = [
        Box((z, y, x), (z + 4, y + 30, x + 30)) for z in (0, 5) for y in (0, 35) for x in (1, 9)
    ]
    with ThreadPoolExecutor(8) as pool:
        for box, got in zip(boxes * 8, pool.map(volume.read, boxes * 8), strict=True):
            np.testing.assert_array_equal(got, data[box.slices((0, 0, 0))])


@pytest.mark.skipif(
    find_spec("imagecodecs") is not None or find_spec("compression") is not None,
    reason="Zstandard is installed",
)
def test_codecs_that_are_looked_for_late(tmp_path):
    Image.fromarray(sections()[0]).save(tmp_path / "s.tif", compression="zstd")
    with pytest.raises(UsageError, match=r"s.tif is stored as zstd.*pip install imagecodecs"):
        open_volume(str(tmp_path / "s.tif"), GIVEN)
