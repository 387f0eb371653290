"""Metrics against values worked out by hand and against scikit-image and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.signal.windows import tukey
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from isochunk.errors import UsageError
from isochunk.evaluation.metrics import (
    fit_rescaled,
    mean_squared_error,
    plane_psnr,
    psnr,
    rescaled_error,
    snr,
    ssim,
    ssim_3d,
    wpsnr,
)
from isochunk.evaluation.spectra import CF_RADII, cf_psnr, frc, fsc


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    waves = np.sin(np.arange(40)[:, None, None] / 5) + np.cos(np.arange(36) / 3)
    truth = np.clip(128 + 50 * waves + rng.normal(0, 5, (40, 12, 36)), 0, 255)
    noisy = np.clip(truth + rng.normal(0, 9, truth.shape), 0, 255)
    return truth.astype(np.uint8), noisy.astype(np.uint8)


def test_psnr_by_hand():
    truth = np.zeros((2, 2, 2), np.uint8)
    off_by_one = truth + 1
    assert psnr(truth, off_by_one) == pytest.approx(20 * math.log10(255), abs=1e-12)
    one_of_eight = truth.copy()
    one_of_eight[1, 0, 1] = 255
    assert psnr(truth, one_of_eight) == pytest.approx(10 * math.log10(8), abs=1e-12)
    assert psnr(truth, truth) == math.inf


def test_unsigned_differences_do_not_wrap():
    dark, bright = np.full((1, 1, 1), 3, np.uint8), np.full((1, 1, 1), 7, np.uint8)
    assert mean_squared_error(dark, bright) == mean_squared_error(bright, dark) == 16


def test_psnr_agrees_with_skimage(pair):
    truth, noisy = pair
    assert psnr(truth, noisy) == pytest.approx(
        peak_signal_noise_ratio(truth, noisy, data_range=255), abs=1e-9
    )


def test_psnr_of_uint16_takes_its_own_range():
    truth = np.zeros((1, 2, 2), np.uint16)
    assert psnr(truth, truth + 65535, data_range=65535) == pytest.approx(0, abs=1e-9)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM by its formula: 11-wide Gaussian window, population covariance, no rim."""
    x, y = a.astype(np.float64), b.astype(np.float64)

    def mean(v: np.ndarray) -> np.ndarray:
        return gaussian_filter(v, 1.5, radius=5)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    variance = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    covariance = mean(x * y) - mean(x) * mean(y)
    index = (2 * mean(x) * mean(y) + c1) / (mean(x) ** 2 + mean(y) ** 2 + c1)
    index *= (2 * covariance + c2) / (variance + c2)
    return float(index[(slice(5, -5),) * x.ndim].mean())


@pytest.mark.parametrize(("plane", "axis"), [("xy", 0), ("xz", 1), ("yz", 2)])
def test_ssim_by_its_formula_on_each_plane(pair, plane, axis):
    truth, noisy = (np.moveaxis(v, axis, 0) for v in pair)
    planes = [similarity(a, b) for a, b in zip(truth, noisy, strict=True)]
    assert ssim(*pair, plane=plane) == pytest.approx(np.mean(planes), abs=1e-9)


def test_ssim_of_the_volume_does_not_depend_on_slabs(pair):
    truth, noisy = (np.concatenate([v, v[:, ::-1]]) for v in pair)  # 70 positions: three slabs
    assert ssim_3d(truth, noisy) == pytest.approx(similarity(truth, noisy), abs=1e-9)
    assert ssim_3d(truth, truth) == pytest.approx(1)
    theirs = structural_similarity(
        truth, noisy, data_range=255, gaussian_weights=True, use_sample_covariance=False
    )
    assert ssim_3d(truth, noisy) == pytest.approx(theirs, abs=1e-9)


def test_psnr_of_planes_is_the_mean_of_theirs(pair):
    truth, noisy = pair
    half = noisy.copy()
    half[:, :, 0] = truth[:, :, 0]  # perfect, so left out
    by_hand = [psnr(truth[:, :, i : i + 1], half[:, :, i : i + 1]) for i in range(1, 36)]
    assert plane_psnr(truth, half, "yz") == pytest.approx(np.mean(by_hand), abs=1e-9)
    assert plane_psnr(truth, truth, "xy") == math.inf


def test_ssim_is_near_torchmetrics(pair):
    # torchmetrics averages over the padded rim too, so the figures agree only closely.
    truth, noisy = (torch.from_numpy(v.astype(np.float64)).transpose(0, 1)[:, None] for v in pair)
    theirs = structural_similarity_index_measure(noisy, truth, data_range=255.0, sigma=1.5)
    assert ssim(*pair) == pytest.approx(float(theirs), abs=0.01)


def test_ssim_needs_room_for_its_window():
    with pytest.raises(UsageError, match="11 x 11"):
        ssim(np.zeros((10, 20, 20)), np.zeros((10, 20, 20)))


def test_wpsnr_by_hand():
    # Voxel 1: error 51/255 = 0.2, cubic off by 0.4: weight 0.9. Voxel 2: no error.
    truth = np.array([[[102, 204]]], np.uint8)
    prediction = np.array([[[153, 204]]], np.uint8)
    cubic = np.array([[[204, 0]]], np.uint8)
    wmse = 0.2**2 * 0.9 / 2
    assert wpsnr(truth, prediction, cubic) == pytest.approx(-10 * math.log10(wmse), abs=1e-9)


def test_wpsnr_of_a_perfect_cubic_is_three_decibels_over_psnr():
    # Where cubic is perfect every weight is 0.5, whatever is compared.
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 256, (4, 5, 6)).astype(np.uint8)
    other = rng.integers(0, 256, (4, 5, 6)).astype(np.uint8)
    gain = wpsnr(truth, other, truth) - psnr(truth, other)
    assert gain == pytest.approx(10 * math.log10(2), abs=1e-9)


def test_cf_psnr_of_everything_is_psnr():
    rng = np.random.default_rng(2)
    truth, other = rng.integers(0, 256, (2, 17, 1, 24))  # one plane, so that means agree
    assert cf_psnr(truth, other, (100,))[0] == pytest.approx(psnr(truth, other), abs=1e-9)


@given(st.integers(0, 11), st.integers(0, 9))
def test_cf_psnr_sees_a_wave_exactly_inside_its_circle(cycles_z, cycles_x):
    z, x = np.mgrid[:24, :20]
    wave = np.cos(2 * np.pi * (cycles_z * z / 24 + cycles_x * x / 20))[:, None]
    flat = np.zeros_like(wave)
    radius = math.hypot(cycles_z, cycles_x)
    (inside,) = cf_psnr(flat, wave, (radius,), data_range=1)
    assert inside == pytest.approx(psnr(flat, wave, data_range=1), abs=1e-6)
    if radius >= 1:  # rounding leaves about 1e-30 of the power elsewhere
        assert cf_psnr(flat, wave, (radius - 0.01,), data_range=1)[0] > 250


def test_cf_psnr_by_the_formula_of_the_paper(pair):
    # 20 log10(MAX H W) - 10 log10 sum |L(F(p) - F(g))|^2 with the spectrum shifted.
    truth, noisy = (v.astype(np.float64) for v in pair)
    height, width = truth.shape[0], truth.shape[2]
    z, x = np.mgrid[:height, :width]
    keep = (z - height // 2) ** 2 + (x - width // 2) ** 2 <= 7**2
    figures = []
    for y in range(truth.shape[1]):
        error = np.fft.fftshift(np.fft.fft2(noisy[:, y]) - np.fft.fft2(truth[:, y])) * keep
        power = (np.abs(error) ** 2).sum()
        figures.append(20 * np.log10(255 * height * width) - 10 * np.log10(power))
    assert cf_psnr(truth, noisy, (7,))[0] == pytest.approx(np.mean(figures), abs=1e-9)


def test_cf_psnr_leaves_perfect_planes_out(pair):
    truth, noisy = pair
    half = noisy.copy()
    half[:, 0] = truth[:, 0]
    assert cf_psnr(truth, half) == pytest.approx(cf_psnr(truth[:, 1:], noisy[:, 1:]), abs=1e-12)
    assert cf_psnr(truth, truth) == (math.inf,)


def test_sweep_falls_as_more_frequencies_count(pair):
    radii = (2.0, 5.0, 10.0, 25.0)
    sweep = cf_psnr(*pair, radii)
    assert sweep == tuple(cf_psnr(*pair, (r,))[0] for r in radii)
    assert list(sweep) == sorted(sweep, reverse=True)


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4), (0, 3, 3)])
def test_shapes_that_do_not_compare_are_refused(shape):
    other = np.zeros((2, 3, 5) if shape != (0, 3, 3) else shape)
    with pytest.raises(UsageError, match="one shape"):
        psnr(np.zeros(shape), other)


def test_cf_psnr_default_sweep_is_the_papers():
    assert (len(CF_RADII), CF_RADII[0], CF_RADII[-1]) == (64, 2, 90)


def white(shape, seed):
    return np.random.default_rng(seed).normal(0, 1, shape)


@pytest.mark.parametrize("correlate", [frc, fsc])
def test_correlation_of_a_volume_with_itself_is_one(pair, correlate):
    curve = correlate(pair[0], pair[0])
    assert np.allclose(curve.value, 1, atol=1e-6)
    assert curve.frequency[-1] == 0.5
    assert curve.resolution() == 2  # nothing finer fits


@pytest.mark.parametrize("correlate", [frc, fsc])
def test_correlation_of_independent_noise_is_zero(correlate):
    a, b = white((64, 64, 64), 0), white((64, 64, 64), 1)
    values = np.array(correlate(a, b).value)
    values = values[5:]  # the first rings hold few samples
    assert abs(values.mean()) < 0.02
    assert np.abs(values).max() < 0.15


def test_correlation_ignores_contrast_but_not_sign(pair):
    truth, noisy = (v.astype(np.float64) for v in pair)
    same = frc(truth, noisy).value
    assert np.allclose(frc(truth, 3 * noisy + 40).value, same, atol=1e-4)
    assert np.allclose(frc(truth, -noisy).value, np.negative(same), atol=1e-4)


def test_ring_correlation_by_hand():
    # One plane of 20 x 15 pixels: padded to 20 x 20, all rings summed pixel by pixel.
    rng = np.random.default_rng(3)
    images = rng.normal(0, 1, (2, 20, 15)) + rng.normal(0, 1, (20, 15))
    window = tukey(20, 0.25)[:, None] * tukey(15, 0.25)
    spectra = [np.fft.fft2((i - i.mean()) * window, (20, 20)) for i in images]
    sums = np.zeros((3, 11))
    for ky in range(-10, 10):
        for kx in range(-10, 10):
            ring = round(math.hypot(ky, kx))
            if 1 <= ring <= 10:
                a, b = (f[ky, kx] for f in spectra)
                sums[:, ring] += (a * b.conjugate()).real, abs(a) ** 2, abs(b) ** 2
    expected = sums[0, 1:] / np.sqrt(sums[1, 1:] * sums[2, 1:])
    curve = frc(*(np.expand_dims(i, 1) for i in images))
    assert np.allclose(curve.value, expected, atol=1e-5)
    assert np.allclose(curve.frequency, np.arange(1, 11) / 20)


def seen_twice(correlate, transfer, noise):
    """White noise put through a filter, seen twice with fresh noise of a given deviation."""
    shape, axes = ((96, 96, 96), (0, 1, 2)) if correlate is fsc else ((128, 24, 128), (0, 2))
    square = sum(
        np.square(np.fft.fftfreq(shape[a])).reshape([-1 if b == a else 1 for b in range(3)])
        for a in axes
    )
    spectrum = np.fft.fftn(white(shape, 2), axes=axes) * transfer(np.sqrt(square))
    signal = np.fft.ifftn(spectrum, axes=axes).real
    return signal + noise * white(shape, 3), signal + noise * white(shape, 4)


@pytest.mark.parametrize("correlate", [frc, fsc])
@pytest.mark.parametrize("limit", [0.12, 0.3])
def test_band_limited_signal_is_resolved_to_its_band(correlate, limit):
    found = correlate(*seen_twice(correlate, lambda f: f <= limit, noise=0.5))
    # The window smears the edge over two rings.
    assert 1 / found.resolution() == pytest.approx(limit, abs=2 / 96)


@pytest.mark.parametrize("correlate", [frc, fsc])
@pytest.mark.parametrize("limit", [0.12, 0.3])
def test_curve_crosses_where_power_of_signal_and_noise_say(correlate, limit):
    # Correlation is S / (S + N): 1/7 where S is N / 6. Here S = exp(-(2 pi sigma f)^2), N = 1/4.
    sigma = math.sqrt(math.log(24)) / (2 * math.pi * limit)
    gauss = seen_twice(correlate, lambda f: np.exp(-0.5 * (2 * np.pi * sigma * f) ** 2), noise=0.5)
    curve = correlate(*gauss)
    assert 1 / curve.resolution() == pytest.approx(limit, rel=0.06)
    power = np.exp(-((2 * np.pi * sigma * np.array(curve.frequency)) ** 2))
    assert np.allclose(curve.value[8:], (power / (power + 0.25))[8:], atol=0.1)


def test_correlation_along_an_axis_sees_that_axis_alone():
    truth = white((64, 24, 64), 7)
    blurred = gaussian_filter(truth, (2, 0, 0)) + 0.1 * white(truth.shape, 8)
    z, x, both = (frc(truth, blurred, along=axis) for axis in ("z", "x", None))
    assert x.resolution() == 2
    assert z.resolution() > 3
    assert np.mean(z.value) + 0.2 < np.mean(both.value) < np.mean(x.value) - 0.2
    turned = (v.transpose(2, 1, 0) for v in (truth, blurred))
    assert np.allclose(frc(*turned, along="x").value, z.value, atol=1e-5)
    with pytest.raises(UsageError, match="xz planes have no axis 'y'"):
        frc(truth, blurred, along="y")


def test_correlation_of_blank_volumes_resolves_nothing():
    blank = np.full((16, 16, 16), 7, np.uint8)
    assert frc(blank, blank).resolution() == math.inf


def test_snr_of_a_constructed_image():
    # Background 10 +- 2, brightest voxel 110: (110 - 10) / 2.
    image = np.full((8, 8, 8), 60, np.uint8)
    image[0] = np.tile([8, 12], 32).reshape(8, 8)
    image[4, 4, 4] = 110
    assert snr(image, image[0]) == pytest.approx(50)
    with pytest.raises(UsageError, match="512 voxels are all equal"):
        snr(image, np.zeros((8, 8, 8)))


@pytest.fixture(scope="module")
def sharp():
    return gaussian_filter(white((70, 6, 80), 5), (0.7, 0, 0.7)) * 40 + 120


@pytest.mark.parametrize("sigma", [0.8, 1.7, 3.5])
def test_rescaling_finds_blur_and_contrast(sharp, sigma):
    blurred = gaussian_filter(sharp, (sigma, 0, sigma), mode="reflect", truncate=8)
    fit = fit_rescaled(0.6 * blurred + 13, sharp)
    assert fit.sigma == pytest.approx(sigma, abs=0.02)
    assert fit.alpha == pytest.approx(0.6, abs=0.01)
    assert fit.rse < 0.05
    assert fit.rsp == pytest.approx(1, abs=1e-3)


def test_error_map_is_what_the_error_says(sharp):
    reference = gaussian_filter(sharp, (1.5, 0, 1.5)) + white(sharp.shape, 6) * 3
    fit = fit_rescaled(reference, sharp)
    error = rescaled_error(reference, sharp, fit)
    assert error.shape == sharp.shape
    assert np.sqrt(np.mean(error**2)) == pytest.approx(fit.rse, rel=1e-6)
    restored = error + reference
    assert np.corrcoef(restored.ravel(), reference.ravel())[0, 1] == pytest.approx(fit.rsp)
    assert fit.rse == pytest.approx(3, abs=0.1)  # the noise alone
    # No other blur does better.
    for sigma in (0, 1, 1.4, 1.6, 2, 4):
        other = gaussian_filter(sharp, (sigma, 0, sigma))
        line = np.polyfit(other.ravel(), reference.ravel(), 1)
        left = np.polyval(line, other) - reference
        assert np.sqrt(np.mean(left**2)) > fit.rse - 1e-3


def test_rescaling_of_extremes(sharp):
    same = fit_rescaled(sharp, sharp)
    assert (same.sigma, same.rsp) == (pytest.approx(0, abs=1e-3), pytest.approx(1))
    assert fit_rescaled(sharp, -sharp).rsp == pytest.approx(-1)
    flat = fit_rescaled(sharp, np.zeros_like(sharp))
    assert (flat.rse, flat.rsp) == (pytest.approx(sharp.std()), 0)
    nothing = fit_rescaled(np.zeros_like(sharp), sharp)
    assert (nothing.rse, nothing.rsp) == (pytest.approx(0), 0)
