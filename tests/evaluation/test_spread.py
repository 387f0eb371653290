"""The bootstrap over crops."""

from __future__ import annotations

import numpy as np
import pytest

from isochunk.errors import UsageError
from isochunk.evaluation.metrics import psnr
from isochunk.evaluation.spread import gain, squared_errors

SHAPE = (70, 64, 33)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)


def with_noise(truth: np.ndarray, sigma: float | np.ndarray, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, truth.shape) * sigma
    return (truth + noise).astype(np.float32)


def test_crops_add_up_to_the_volume(truth: np.ndarray) -> None:
    prediction = with_noise(truth, 9)
    errors = squared_errors(truth, prediction)
    assert errors.shape == (3 * 2 * 2,)
    expected = np.square(truth - prediction.astype(np.float64))
    assert errors.sum() == pytest.approx(expected.sum())
    assert errors[-1] == pytest.approx(expected[64:, 32:, 32:].sum())


def test_the_gain_is_the_difference_of_psnr(truth: np.ndarray) -> None:
    good, bad = with_noise(truth, 5), with_noise(truth, 10, 2)
    found = gain(squared_errors(truth, good), squared_errors(truth, bad))
    assert found.db == pytest.approx(psnr(truth, good) - psnr(truth, bad))
    assert found.low < found.db < found.high
    assert found.high - found.low < 0.2


def test_the_spread_is_that_of_crops(truth: np.ndarray) -> None:
    """Where only some crops are better, it depends on which are looked at."""
    sigma = np.full(SHAPE, 10.0)
    sigma[:32] = 2
    reference = squared_errors(truth, with_noise(truth, 10, 2))
    uneven = gain(squared_errors(truth, with_noise(truth, sigma)), reference)
    even = gain(squared_errors(truth, with_noise(truth, 7)), reference)
    assert uneven.high - uneven.low > 10 * (even.high - even.low)
    again = gain(squared_errors(truth, with_noise(truth, sigma)), reference)
    assert again == uneven


def test_a_reference_gains_nothing_over_itself(truth: np.ndarray) -> None:
    errors = squared_errors(truth, with_noise(truth, 3))
    found = gain(errors, errors)
    assert (found.db, found.low, found.high) == (0, 0, 0)
    perfect = gain(np.zeros_like(errors), errors)
    assert perfect.db == np.inf
    assert gain(np.zeros_like(errors), np.zeros_like(errors)).db == 0


def test_shapes_must_agree(truth: np.ndarray) -> None:
    with pytest.raises(UsageError, match="one shape"):
        squared_errors(truth, truth[1:])
