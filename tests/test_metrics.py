"""Metrics against values worked out by hand and against scikit-image and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from isochunk.errors import UsageError
from isochunk.metrics import cf_psnr, cf_psnr_sweep, mean_squared_error, psnr, ssim, wpsnr


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


def test_ssim_agrees_with_skimage_per_xz_plane(pair):
    truth, noisy = pair
    planes = [
        structural_similarity(
            truth[:, y],
            noisy[:, y],
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for y in range(truth.shape[1])
    ]
    assert ssim(truth, noisy) == pytest.approx(np.mean(planes), abs=1e-9)


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
    # Where cubic is perfect every weight is 0.5, whatever is judged.
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 256, (4, 5, 6)).astype(np.uint8)
    other = rng.integers(0, 256, (4, 5, 6)).astype(np.uint8)
    gain = wpsnr(truth, other, truth) - psnr(truth, other)
    assert gain == pytest.approx(10 * math.log10(2), abs=1e-9)


def test_cf_psnr_of_everything_is_psnr():
    rng = np.random.default_rng(2)
    truth, other = rng.integers(0, 256, (2, 17, 1, 24))  # one plane, so that means agree
    assert cf_psnr(truth, other, radius=100) == pytest.approx(psnr(truth, other), abs=1e-9)


@given(st.integers(0, 11), st.integers(0, 9))
def test_cf_psnr_sees_a_wave_exactly_inside_its_circle(cycles_z, cycles_x):
    z, x = np.mgrid[:24, :20]
    wave = np.cos(2 * np.pi * (cycles_z * z / 24 + cycles_x * x / 20))[:, None]
    flat = np.zeros_like(wave)
    radius = math.hypot(cycles_z, cycles_x)
    inside = cf_psnr(flat, wave, radius=radius, data_range=1)
    assert inside == pytest.approx(psnr(flat, wave, data_range=1), abs=1e-6)
    if radius >= 1:  # rounding leaves about 1e-30 of the power elsewhere
        assert cf_psnr(flat, wave, radius=radius - 0.01, data_range=1) > 250


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
    assert cf_psnr(truth, noisy, radius=7) == pytest.approx(np.mean(figures), abs=1e-9)


def test_cf_psnr_leaves_perfect_planes_out(pair):
    truth, noisy = pair
    half = noisy.copy()
    half[:, 0] = truth[:, 0]
    assert cf_psnr(truth, half) == pytest.approx(cf_psnr(truth[:, 1:], noisy[:, 1:]), abs=1e-12)
    assert cf_psnr(truth, truth) == math.inf


def test_sweep_falls_as_more_frequencies_count(pair):
    radii = (2.0, 5.0, 10.0, 25.0)
    sweep = cf_psnr_sweep(*pair, radii)
    assert sweep == tuple(cf_psnr(*pair, radius=r) for r in radii)
    assert list(sweep) == sorted(sweep, reverse=True)


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4), (0, 3, 3)])
def test_shapes_that_do_not_compare_are_refused(shape):
    other = np.zeros((2, 3, 5) if shape != (0, 3, 3) else shape)
    with pytest.raises(UsageError, match="one shape"):
        psnr(np.zeros(shape), other)
