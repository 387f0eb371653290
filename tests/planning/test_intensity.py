"""The measured intensity map: exact where all is read, bounded and repeatable where it is not."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import write_source

from isochunk.core.geometry import Box, Spacing
from isochunk.core.spec import Intensity, LevelSpec, VolumeSpec
from isochunk.errors import UsageError
from isochunk.planning.intensity import MAX_BOXES, SAMPLE_BYTES, measure_intensity, sample_boxes
from isochunk.storage.open import open_volume

PETABYTE = (100_000, 100_000, 100_000)


@dataclass
class Procedural:
    """A volume of any size whose voxels are computed where they are read."""

    shape: tuple[int, int, int] = PETABYTE
    tissue: int = 1
    """One box in so many holds data; the others are background."""
    read_bytes: int = 0
    boxes: list[Box] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def spec(self) -> VolumeSpec:
        box = Box.from_shape(self.shape)
        level = LevelSpec("0", box, Spacing.parse("40,10,10"), (64, 64, 64), (512, 512, 512))
        zero = (Fraction(0), Fraction(0), Fraction(0))
        return VolumeSpec("memory://procedural", "precomputed", "uint8", "raw", zero, (level,))

    def read(self, box: Box, level: int = 0) -> np.ndarray:
        assert box in self.spec.box
        seed = sum(n * p for n, p in zip(box.lo, (7, 11, 13), strict=True)) // 128
        rng = np.random.default_rng(seed)
        voxels = np.clip(rng.normal(120, 30, box.shape), 1, 255).astype(np.uint8)
        if seed % self.tissue:
            voxels[:] = 0
        with self.lock:
            self.boxes.append(box)
            self.read_bytes += voxels.nbytes if voxels.any() else 0
        return voxels


def test_small_volume_is_read_whole_and_zero_left_out(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 256, (40, 70, 90)).astype(np.uint8)
    voxels[:, :20] = 0
    volume = open_volume(write_source(f"{tmp_path}/part", voxels))
    measured = measure_intensity(volume, "standard")
    seen = voxels[voxels > 0].astype(np.float64)
    assert measured.offset == pytest.approx(seen.mean(), abs=1e-9)
    assert measured.scale == pytest.approx(seen.std(), abs=1e-9)


def test_sixteen_bits_do_not_overflow(tmp_path):
    voxels = np.random.default_rng(1).integers(60_000, 65_536, (64, 64, 64)).astype(np.uint16)
    volume = open_volume(write_source(f"{tmp_path}/bright", voxels))
    measured = measure_intensity(volume, "standard")
    assert measured.offset == pytest.approx(voxels.mean(), rel=1e-12)
    assert measured.scale == pytest.approx(voxels.std(), rel=1e-9)


def test_range_reads_nothing():
    volume = Procedural()
    assert measure_intensity(volume, "range") == Intensity(0.0, 255.0)
    assert volume.boxes == []


def test_petabytes_cost_a_bounded_sample_and_give_the_same_numbers_again():
    first, second = Procedural(), Procedural()
    measured = measure_intensity(first, "standard")
    assert measured == measure_intensity(second, "standard")
    assert SAMPLE_BYTES <= first.read_bytes <= SAMPLE_BYTES + 8 * 128**3
    assert len(set(first.boxes)) == len(first.boxes)
    assert measured.offset == pytest.approx(120, abs=1)
    assert measured.scale == pytest.approx(30, abs=1)


@pytest.mark.slow
def test_background_does_not_count_towards_the_sample():
    sparse = Procedural(tissue=5)
    measured = measure_intensity(sparse, "standard")
    assert sparse.read_bytes >= SAMPLE_BYTES
    assert len(sparse.boxes) > 3 * SAMPLE_BYTES / 128**3
    assert measured.offset == pytest.approx(120, abs=1)


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(*[st.integers(1, 3000)] * 3),
    st.tuples(*[st.integers(-500, 500)] * 3),
    st.tuples(*[st.sampled_from([1, 20, 56, 64, 100, 512])] * 3),
)
def test_sampled_boxes_are_distinct_and_inside(shape, origin, chunk):
    bounds = Box.from_shape(shape, origin)
    boxes = list(sample_boxes(bounds, chunk))
    assert len(set(boxes)) == len(boxes)
    assert all(box in bounds and 0 < box.size <= 128**3 for box in boxes)
    if bounds.size <= SAMPLE_BYTES // 2:
        assert sum(box.size for box in boxes) == bounds.size
    else:
        assert len(boxes) <= MAX_BOXES


@pytest.mark.parametrize(("value", "says"), [(0, "no nonzero voxel"), (9, "constant .* is 9")])
def test_volumes_without_contrast_are_refused(tmp_path, value, says):
    flat = np.full((32, 32, 32), value, np.uint8)
    volume = open_volume(write_source(f"{tmp_path}/flat", flat))
    with pytest.raises(UsageError, match=says):
        measure_intensity(volume, "standard")


def test_measurement_is_finite_for_two_values(tmp_path):
    voxels = np.ones((16, 16, 16), np.uint8)
    voxels[::2] = 3
    measured = measure_intensity(open_volume(write_source(f"{tmp_path}/two", voxels)), "standard")
    assert (measured.offset, measured.scale) == (2.0, 1.0)
    assert math.isfinite(measured.scale)
