"""Degradations against numpy, and augmentation as a seeded, reversible variation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isochunk.errors import UsageError
from isochunk.train.degrade import Augmentation, degrade, input_noise, turn, vary_intensity

torch.set_num_threads(1)


@settings(deadline=None)  # the first call loads torch
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_avg_is_the_mean_of_the_voxels_a_section_covers(factor, sections, seed):
    x = torch.rand((2, 1, factor * sections, 3, 2), generator=torch.Generator().manual_seed(seed))
    made = degrade(x, factor, "avg")
    assert made.shape == (2, 1, sections, 3, 2)
    for i in range(sections):
        covered = x[:, :, i * factor : (i + 1) * factor].mean(2)
        torch.testing.assert_close(made[:, :, i], covered)


@given(st.integers(1, 6), st.integers(1, 5))
def test_skip_takes_the_first_voxel_of_each_section(factor, sections):
    x = torch.arange(factor * sections, dtype=torch.float32).reshape(1, 1, -1, 1, 1)
    assert degrade(x, factor, "skip").flatten().tolist() == [i * factor for i in range(sections)]


def test_gradients_reach_every_voxel_of_a_section():
    x = torch.zeros((1, 1, 8, 2, 2), requires_grad=True)
    degrade(x, 4, "avg").sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.25))


def test_sections_must_be_whole():
    with pytest.raises(UsageError, match=r"multiple, e\.g\. 8"):
        degrade(torch.zeros((1, 1, 10, 2, 2)), 4, "avg")


def test_unknown_degradation_is_refused():
    with pytest.raises(UsageError, match=r"'blur'.*'avg', 'skip'"):
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
