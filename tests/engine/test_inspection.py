"""Which voxels stand for the sections of a volume, and what is read of them."""

from __future__ import annotations

import logging
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zarr
from jobs import noise, write_source

import isochunk
from isochunk.core.geometry import Box, Spacing
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.engine.inspection import inspect_volume, pooling, profile_part
from isochunk.engine.section_reading import SECTION_VOXELS, cut_slabs, plan_reading
from isochunk.errors import UsageError

ZERO = (Fraction(0), Fraction(0), Fraction(0))


def level(
    shape: tuple[int, int, int], nm: str, chunk: tuple[int, int, int] = (64, 64, 64)
) -> LevelSpec:
    origin = (10, 0, 0)
    return LevelSpec(nm, Box.from_shape(shape, origin), Spacing.parse(nm), chunk, None)


PYRAMID = VolumeSpec(
    "s3://lab/em",
    "precomputed",
    "uint16",
    "raw",
    ZERO,
    (
        level((100, 4000, 6000), "40,8,8"),
        level((100, 2000, 3000), "40,16,16"),
        level((100, 1000, 1000), "40,32,32"),
        level((100, 500, 500), "40,64,64"),
        level((50, 250, 250), "80,128,128"),
    ),
)


def test_the_finest_level_of_small_sections_is_read() -> None:
    reading = plan_reading(PYRAMID, None, None)
    assert (reading.level, reading.whole) == (2, True)
    assert reading.bytes_read == 100 * 1000 * 1000 * 2
    assert plan_reading(PYRAMID, None, 3).bytes_read == 100 * 500 * 500 * 2
    boxed = plan_reading(PYRAMID, Box((20, 96, 100), (40, 256, 900)), 2)
    assert boxed.windows == (Box((20, 24, 25), (40, 64, 225)),)
    assert plan_reading(PYRAMID, Box((20, 0, 0), (40, 500, 600)), None).level == 0


def test_levels_without_every_section_are_refused() -> None:
    with pytest.raises(UsageError, match=r"level 4 .* choose --level from 0, 1, 2, 3"):
        plan_reading(PYRAMID, None, 4)
    with pytest.raises(UsageError, match=r"--box .* is not inside s3://lab/em"):
        plan_reading(PYRAMID, Box((0, 0, 0), (20, 100, 100)), None)


@pytest.mark.parametrize("chunk", [(64, 64, 64), (1, 2048, 2048), (16, 100, 300)])
@pytest.mark.parametrize("box", [None, Box((20, 77, 33), (40, 3900, 5555))])
def test_without_a_pyramid_windows_of_chunks_are_read(
    chunk: tuple[int, int, int], box: Box | None
) -> None:
    spec = replace(PYRAMID, levels=(level((100, 4000, 6000), "40,8,8", chunk),))
    reading = plan_reading(spec, box, None)
    assert not reading.whole
    shapes = {w.shape for w in reading.windows}
    assert len(shapes) == 1
    (shape,) = shapes
    assert SECTION_VOXELS / 3 < len(reading.windows) * shape[1] * shape[2] <= SECTION_VOXELS
    assert all(w in (box or spec.box) for w in reading.windows)
    assert all(w.lo[1] % chunk[1] == w.lo[2] % chunk[2] == 0 for w in reading.windows)
    overlaps = [a & b for a in reading.windows for b in reading.windows if a != b]
    assert all(o.size == 0 for o in overlaps)
    ends = max(w.hi[1] for w in reading.windows), max(w.hi[2] for w in reading.windows)
    assert chunk[1] > 1000 or (ends[0] > 3000 and ends[1] > 4500)


def test_windows_of_a_real_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes are told before they are read, each section is read once, and damage is found."""
    monkeypatch.setattr("isochunk.engine.section_reading.SECTION_VOXELS", 4 * 128 * 128)
    voxels = np.repeat(noise((1, 512, 512)), 20, 0)
    voxels[13] = 0
    url = write_source(f"file://{tmp_path}/in", voxels, offset=(5, 0, 0))
    volume = isochunk.open(url)
    with caplog.at_level(logging.INFO):
        found = inspect_volume(volume)
    assert len(found.reading.windows) == 4
    assert f"20 sections of {url} at level 0, 4 windows of each: {20 * 4 * 128 * 128} bytes" in (
        caplog.text
    )
    assert [p.z for p in found.profiles] == list(range(5, 25))
    assert found.profiles[0].mean == pytest.approx(voxels[0].mean(), abs=1)
    assert [s.z for s in found.findings.lost] == [18]
    boxed = isochunk.inspect(url, "10:22,0:128,0:128")
    assert [p.z for p in boxed.profiles] == list(range(10, 22))
    assert [s.z for s in boxed.table.sections] == [18]


def test_what_cannot_be_inspected_is_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "in", shape=(4, 64, 64), dtype="float32")
    with pytest.raises(UsageError, match="holds float32"):
        isochunk.inspect(str(tmp_path / "in"), source_spacing="40,8,8")


def test_a_table_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    found = isochunk.inspect(write_source(f"file://{tmp_path}/in", noise((4, 64, 64))))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be written: .*; choose another --out"):
        found.write(f"{tmp_path}/file/sections.toml")


@pytest.mark.parametrize(("spacing", "factor"), [("10,10,10", 1), ("46,4.6,4.6", 10)])
def test_the_suggestion_does_not_invent(tmp_path: Path, spacing: str, factor: int) -> None:
    url = write_source(f"file://{tmp_path}/in", noise((4, 64, 64)), spacing)
    told = isochunk.inspect(url).summary()["suggestion"]
    assert (told["degradation"], told["factor"]) == (None, factor)
    assert ("isotropic already" in told["reason"]) == (factor == 1)


def test_slabs_end_where_chunks_meet() -> None:
    own = level((100, 400, 400), "40,8,8", (24, 64, 64))  # from 10 on
    assert cut_slabs(own, 10, 110, 64) == [(10, 58), (58, 106), (106, 110)]
    assert cut_slabs(own, 30, 70, 64) == [(30, 58), (58, 70)]
    assert cut_slabs(own, 10, 40, 10) == [(10, 20), (20, 30), (30, 40)]


def test_parts_are_measured_as_among_all(tmp_path: Path) -> None:
    volume = isochunk.open(write_source(f"file://{tmp_path}/in", noise((20, 96, 96))))
    found = inspect_volume(volume)
    assert pooling(volume.spec.levels[0], (20, 96, 96)) == 2
    cuts = [(0, 2), (2, 11), (11, 20)]
    parts = [profile_part(volume, found.reading, cut, 2) for cut in cuts]
    assert repr(tuple(p for part in parts for p in part)) == repr(found.profiles)
