"""Degradations against numpy, and augmentation as a seeded, reversible variation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from isochunk.core.degradation import PHASES
from isochunk.errors import UsageError
from isochunk.models.degrade import FWHM_SIGMAS, degrade, section_weights
from isochunk.train.augment import Augmentation, input_noise, turn, vary_intensity

torch.set_num_threads(1)

DEGRADATIONS = sorted(PHASES)
RATIOS = st.builds(Fraction, st.integers(5, 60), st.integers(1, 5))


def line(values: object) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1, 1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole_depth(ratio: Fraction, sections: int) -> int:
    """Return a depth of at least so many sections that the ratio takes."""
    return -(-sections * ratio.numerator // ratio.denominator)


@settings(deadline=None)  # the first call loads torch
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_avg_is_the_mean_of_the_voxels_a_section_covers(factor, sections, seed):
    x = torch.rand((2, 1, factor * sections, 3, 2), generator=seeded(seed))
    made = degrade(x, factor, "avg")
    assert made.shape == (2, 1, sections, 3, 2)
    for i in range(sections):
        covered = x[:, :, i * factor : (i + 1) * factor].mean(2)
        torch.testing.assert_close(made[:, :, i], covered)


@given(st.integers(1, 6), st.integers(1, 5))
def test_skip_takes_the_first_voxel_of_each_section(factor, sections):
    x = torch.arange(factor * sections, dtype=torch.float32).reshape(1, 1, -1, 1, 1)
    assert degrade(x, factor, "skip").flatten().tolist() == [i * factor for i in range(sections)]


@settings(deadline=None)
@given(RATIOS, st.integers(1, 9), st.sampled_from(DEGRADATIONS))
def test_every_section_weighs_voxels_by_one_in_all(ratio, sections, degradation):
    weights = section_weights(whole_depth(ratio, sections), ratio, degradation)
    assert weights.shape == (sections, whole_depth(ratio, sections))
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(sections))


@given(RATIOS, st.integers(1, 4), st.integers(0, 99))
def test_avg_preserves_the_mean_at_any_ratio(ratio, repeats, seed):
    x = torch.rand((1, 2, repeats * ratio.numerator, 2, 3), generator=seeded(seed))
    made = degrade(x, ratio, "avg")
    assert made.shape[2] == repeats * ratio.denominator
    torch.testing.assert_close(made.mean(2), x.mean(2))


@given(RATIOS, st.integers(1, 7), st.integers(0, 99))
def test_avg_at_any_ratio_is_a_whole_average_of_voxels_cut_into_parts(ratio, sections, seed):
    depth = whole_depth(ratio, sections)
    x = torch.rand((1, 1, depth, 2, 2), generator=seeded(seed))
    parts = x.repeat_interleave(ratio.denominator, 2)[:, :, : sections * ratio.numerator]
    torch.testing.assert_close(degrade(x, ratio, "avg"), degrade(parts, ratio.numerator, "avg"))


@pytest.mark.parametrize("degradation", ["avg", "skip"])  # a psf looks beyond its section
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_sections_of_repeated_sections_are_the_sections(degradation, factor, sections, seed):
    x = torch.rand((1, 1, sections, 2, 2), generator=seeded(seed))
    again = degrade(x.repeat_interleave(factor, 2), factor, degradation)
    torch.testing.assert_close(again, x)


@pytest.mark.parametrize("degradation", DEGRADATIONS)
@given(RATIOS, st.integers(9, 12))
def test_sections_lie_where_their_phase_says(degradation, ratio, sections):
    depth = whole_depth(ratio, sections)
    places = degrade(line(range(depth)), ratio, degradation).flatten()
    start = 0 if PHASES[degradation] == "sample" else (ratio - 1) / 2
    expected = line([float(start + i * ratio) for i in range(sections)]).flatten()
    inner = slice(3, -3) if degradation == "psf" else slice(None)  # tails are cut at the ends
    # A part of a voxel counts as if it lay in the voxel's middle, and a narrow Gaussian is sampled.
    coarse = degradation != "skip" and ratio.denominator > 1
    off = float(1 / (4 * ratio)) if coarse else 1e-4
    torch.testing.assert_close(places[inner], expected[inner], rtol=1e-5, atol=off)


@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from(["avg", "skip"]), st.integers(0, 99))
def test_whole_ratios_agree_with_their_weights(factor, sections, degradation, seed):
    x = torch.rand((1, 1, factor * sections, 2, 2), generator=seeded(seed))
    weighed = torch.einsum("sz,bczyx->bcsyx", section_weights(x.shape[2], factor, degradation), x)
    torch.testing.assert_close(degrade(x, Fraction(factor), degradation), weighed)


@pytest.mark.parametrize("factor", [3, 5, 9])
def test_psf_is_a_gaussian_one_section_wide_at_half_maximum(factor):
    x = np.random.default_rng(0).random(20 * factor)
    blurred = gaussian_filter1d(x, factor / FWHM_SIGMAS, truncate=8)
    made = degrade(line(x), factor, "psf").flatten().numpy()
    middles = blurred[factor // 2 :: factor]
    np.testing.assert_allclose(made[4:-4], middles[4:-4], rtol=1e-5)
    response = degrade(line(np.eye(20 * factor)[10 * factor + factor // 2]), factor, "psf")
    next_door = degrade(line(np.eye(20 * factor)[11 * factor + factor // 2]), factor, "psf")
    ratio = float(next_door.flatten()[10] / response.flatten()[10])
    assert ratio == pytest.approx(1 / 16, rel=1e-4)  # 1/2 at half a section, so 1/2**4 at one


def test_what_a_rational_ratio_leaves_over_is_in_no_section():
    x = torch.zeros((1, 1, 10, 1, 1))
    x[:, :, -1] = 1.0
    made = degrade(x, Fraction(9, 2), "avg")
    assert made.flatten().tolist() == [0.0, 0.0]


def test_gradients_of_a_rational_average_are_its_weights():
    x = torch.zeros((1, 1, 5, 2, 2), requires_grad=True)
    degrade(x, Fraction(5, 2), "avg")[:, :, 0].sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0, :, 0, 0].tolist() == pytest.approx([0.4, 0.4, 0.2, 0.0, 0.0])


@pytest.mark.parametrize("degradation", DEGRADATIONS)
@pytest.mark.parametrize(("depth", "factor"), [(4, Fraction(9, 2)), (8, Fraction(1, 2)), (8, 0)])
def test_sections_thinner_than_a_voxel_or_thicker_than_all_are_refused(depth, factor, degradation):
    with pytest.raises(UsageError, match=r"must be at least 1|multiple, e\.g\. 5"):
        degrade(torch.zeros((1, 1, depth, 2, 2)), factor, degradation)


def test_gradients_reach_every_voxel_of_a_section():
    x = torch.zeros((1, 1, 8, 2, 2), requires_grad=True)
    degrade(x, 4, "avg").sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.25))


def test_sections_must_be_whole():
    with pytest.raises(UsageError, match=r"multiple, e\.g\. 8"):
        degrade(torch.zeros((1, 1, 10, 2, 2)), 4, "avg")


def test_unknown_degradation_is_refused():
    with pytest.raises(UsageError, match=r"'blur'.*avg, skip, psf"):
        degrade(torch.zeros((1, 1, 4, 2, 2)), 4, "blur")


def test_turning_reaches_all_sixteen_positions_and_never_exchanges_z():
    patch = np.arange(2 * 3 * 3, dtype=np.float32).reshape(2, 3, 3)
    seen = {turn(patch, np.random.default_rng(seed)).tobytes() for seed in range(300)}
    expected = set()
    for flips in np.ndindex(2, 2, 2):
        flipped = np.flip(patch, [axis for axis in range(3) if flips[axis]])
        expected |= {flipped.tobytes(), flipped.transpose(0, 2, 1).tobytes()}
    assert len(expected) == 16
    assert seen == expected


@given(st.integers(0, 1000))
def test_intensity_variation_is_affine_and_bounded(seed):
    much = Augmentation(contrast=0.3, brightness=0.2)
    low, high = vary_intensity(
        np.array([[[0.0, 1.0]]], np.float32), much, np.random.default_rng(seed)
    ).ravel()
    assert -0.2 <= low <= 0.2
    assert np.exp(-0.3) - 1e-6 <= high - low <= np.exp(0.3) + 1e-6


def test_no_augmentation_changes_nothing():
    patch = np.random.default_rng(0).random((4, 5, 5), np.float32)
    none = Augmentation()
    assert np.array_equal(vary_intensity(patch, none, np.random.default_rng(1)), patch)
    assert not input_noise((4, 5), none, np.random.default_rng(1)).any()


def test_noise_deviation_is_drawn_up_to_the_limit():
    loud = Augmentation(noise=0.5)
    sigmas = [
        float(input_noise((20, 20, 20), loud, np.random.default_rng(seed)).std())
        for seed in range(200)
    ]
    assert max(sigmas) == pytest.approx(0.5, abs=0.03)
    assert min(sigmas) == pytest.approx(0.0, abs=0.03)
    assert np.mean(sigmas) == pytest.approx(0.25, abs=0.03)


def test_variations_are_functions_of_the_seed():
    patch = np.random.default_rng(0).random((4, 6, 6), np.float32)
    much = Augmentation(0.3, 0.3, 0.3)

    def vary(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        varied = vary_intensity(turn(patch, rng), much, rng)
        return varied.tobytes() + input_noise((4, 6, 6), much, rng).tobytes()

    assert vary(3) == vary(3)
    assert vary(3) != vary(4)
