"""What is measured of single sections, against what they were made of."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from isochunk.core.section_images import tissue_of
from isochunk.core.section_profile import UNLINKED, profile_sections


def texture(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Structures a few pixels wide, of mean 120 and deviation 20."""
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return 120 + 20 * (field - field.mean()) / field.std()


def stored(values: np.ndarray) -> np.ndarray:
    return np.rint(values).astype(np.uint8)


def test_shares_and_levels_of_the_tissue() -> None:
    section = stored(texture((96, 128)))
    noise = np.random.default_rng(1).integers(-3, 4, section.shape)
    section = (section + noise).astype(np.uint8)
    told = section[:, 64:].copy()
    section[:, :32] = 0
    section[:, 32:64] = 255
    (profile,) = profile_sections([(5, section)])
    assert profile.z == 5
    assert (profile.black, profile.saturated) == (0.25, 0.25)
    assert profile.tissue == pytest.approx(0.5, abs=0.01)
    assert profile.mean == pytest.approx(told.mean(), abs=0.5)
    assert profile.deviation == pytest.approx(told.std(), rel=0.03)
    steps = np.diff(told.astype(float))
    assert profile.roughness == pytest.approx(math.sqrt((steps**2).mean()), rel=0.05)
    assert profile.before == UNLINKED


def test_flat_areas_of_any_grey_level_are_no_tissue_and_single_voxels_are() -> None:
    window = np.random.default_rng(0).integers(90, 110, (1, 40, 40)).astype(np.uint16)
    window[0, 10:20, 10:20] = 4095
    window[0, 30, 30] = 65535
    mask = tissue_of(window)
    assert not mask[0, 11:19, 11:19].any()
    assert mask[0, 30, 30]


@pytest.mark.parametrize("moved", [(0.0, 0.0), (3.0, -7.0), (1.5, 0.25), (-0.75, 20.0)])
def test_displacement_is_measured_in_parts_of_a_pixel(moved: tuple[float, float]) -> None:
    whole = texture((240, 260))
    noise = np.random.default_rng(1).normal(0, 4, (2, 180, 200))
    first = whole[30:210, 30:230]
    later = shift(whole, moved, order=5)[30:210, 30:230]
    _, profile = profile_sections(enumerate(stored(np.stack([first, later]) + noise)), 2)
    assert profile.shift == pytest.approx(moved, abs=0.25)
    assert profile.before[0] > 0.9
    assert np.isnan(profile.before[1:]).all()


def test_agreement_is_between_the_right_sections() -> None:
    """Neighbours share half of what they show, those two apart a quarter, others nothing."""
    a, b, c = (texture((200, 200), seed) - 120 for seed in range(3))
    stack = [a, a, 0.5 * a + math.sqrt(0.75) * b, c]
    *_, third, fourth = profile_sections(enumerate(stored(120 + np.array(stack))), 2)
    assert third.before[:2] == pytest.approx((0.5, 0.5), abs=0.1)
    assert np.abs(fourth.before).max() < 0.1


def test_blank_sections_are_skipped_and_counted() -> None:
    grey = stored(texture((128, 128)))
    profiles = list(profile_sections(enumerate([grey, np.zeros_like(grey), grey])))
    assert profiles[1].blank
    assert not profiles[2].blank
    assert np.isnan(profiles[1].before).all()
    assert np.isnan(profiles[2].before[0])
    assert profiles[2].before[1] == pytest.approx(1)
    assert np.isnan(profiles[2].shift).all()


def test_windows_of_a_section_count_together() -> None:
    whole = texture((2, 300, 300))
    windows = np.stack([whole[:, 20:148, 20:148], whole[:, 150:278, 150:278]], 1)
    moved = shift(whole[0], (2, -3), order=3)
    pair = np.stack([windows[0], np.stack([moved[20:148, 20:148], moved[150:278, 150:278]])])
    _, profile = profile_sections(enumerate(stored(pair)), 2)
    assert profile.shift == pytest.approx((2, -3), abs=0.1)
    assert profile.mean == pytest.approx(pair[1].mean(), abs=0.2)


def test_sections_are_taken_one_by_one() -> None:
    taken = []

    def sections() -> Iterator[tuple[int, np.ndarray]]:
        for z in range(1000):
            taken.append(z)
            yield z, stored(texture((64, 64), z % 3))

    profiles = profile_sections(sections())
    next(profiles)
    next(profiles)
    assert taken == [0, 1]
