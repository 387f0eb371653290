"""The noise of a volume, and the PSNR that no method can exceed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from isochunk.core.geometry import Box
from isochunk.errors import UsageError
from isochunk.evaluation.metrics import psnr
from isochunk.evaluation.noise import estimate_noise, noise_ceiling, psnr_limit
from isochunk.storage.open import open_volume


def tissue(shape=(72, 80, 88), seed=0, blur=1.8) -> np.ndarray:
    """Smooth structure with a deviation of 40 grey levels: edges, no noise."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal(shape), 2.5, mode="wrap")
    flat = np.tanh(3 * smooth / smooth.std())  # membranes: steps, which the microscope blurs
    seen = gaussian_filter(flat, blur, mode="wrap")
    return 128 + 40 * seen / seen.std()


@pytest.mark.parametrize("sigma", [3.0, 5.0, 10.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_known_noise_is_recovered_within_a_tenth(sigma, dtype):
    unit = 1 if dtype == np.uint8 else 200
    noise = np.random.default_rng(1).normal(0, sigma, (72, 80, 88))
    noisy = np.rint(unit * (tissue() + noise)).clip(0, np.iinfo(dtype).max).astype(dtype)
    found = estimate_noise(noisy)
    assert found.lags == pytest.approx((unit * sigma,) * 3, rel=0.1)
    assert found.planes == pytest.approx((unit * sigma,) * 3, rel=0.1)


def test_without_noise_the_smallest_tenth_of_structure_is_left():
    found = estimate_noise(tissue())
    assert max(found.lags) < 2
    assert max(found.planes) < 1


def test_noise_smoothed_along_x_is_still_measured_across_sections():
    white = np.random.default_rng(2).normal(0, 1, (72, 80, 88))
    smooth = gaussian_filter(white, (0, 0, 0.7), mode="wrap")
    found = estimate_noise(tissue() + 5 * smooth / smooth.std())
    assert found.lags[2] < 4  # along x it looks smaller than it is
    assert found.across_sections == pytest.approx((5, 5), rel=0.1)


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("degradation", ["avg", "skip"])
def test_who_knows_the_signal_reaches_the_ceiling_and_not_more(factor, degradation):
    signal, sigma = tissue(), 5.0
    noise = np.random.default_rng(3).normal(0, sigma, signal.shape)
    truth = np.rint(signal + noise).clip(0, 255).astype(np.uint8)
    # What the sections show beyond the signal is the noise that can be known.
    of_signal, of_truth = (v.reshape(-1, factor, *v.shape[1:]) for v in (signal, truth))
    best = of_signal.copy()
    if degradation == "avg":
        best += (np.rint(of_truth.mean(1)) - of_signal.mean(1))[:, None]
    else:
        best[:, 0] = of_truth[:, 0]
    reached = psnr(truth, best.reshape(signal.shape))
    assert reached == pytest.approx(psnr_limit(sigma, factor), abs=0.1)  # rounding
    low, high = noise_ceiling(truth, factor)
    assert low - 0.3 < reached < high + 0.3


def test_the_ceiling_by_hand():
    assert psnr_limit(4.0, 2) == pytest.approx(10 * math.log10(255**2 / 8))
    assert psnr_limit(4.0, 2, 65535.0) == pytest.approx(10 * math.log10(65535**2 / 8))
    assert psnr_limit(0.0, 4) == psnr_limit(3.0, 1) == math.inf


def test_real_tissue_has_noise_of_four_to_six_grey_levels(shared_data):
    truth = open_volume(f"{shared_data}/medulla_fibsem_250.ome.zarr")
    voxels = truth.read(Box.from_shape((120, 120, 120), (60, 60, 60)))
    noise = estimate_noise(voxels)
    assert all(4 < sigma < 6 for sigma in noise.across_sections)
    assert noise.lags[2] < noise.lags[0]  # x is the axis along which it is smoothed
    low, high = noise_ceiling(voxels, 4)
    assert 33 < low <= high < 38


def test_a_volume_too_small_to_measure_is_refused():
    with pytest.raises(UsageError, match="at least 4 voxels"):
        estimate_noise(np.zeros((3, 9, 9), np.uint8))
