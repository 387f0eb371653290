"""How close a prediction comes to the truth: PSNR, SSIM, wPSNR and CF-PSNR.

All take z, y, x volumes (a 2D image is a volume of one plane) and a data range, 255 for uint8.
Where a metric is defined on images, it is taken on the xz planes, the ones that contain the axis
that was made up, and averaged over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from isochunk.errors import UsageError

Array: TypeAlias = NDArray[Any]

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
"""The 11 x 11 Gaussian window of Wang et al. 2004 (IEEE Trans. Image Process. 13:600)."""
SSIM_K1, SSIM_K2 = 0.01, 0.03
"""The stabilising constants of the same paper."""
CF_RADIUS = 25.0
"""Default cut-off of CF-PSNR in cycles per image (Troidl et al. 2024)."""
DIMENSIONS = 3


def mean_squared_error(truth: Array, prediction: Array) -> float:
    """Return the mean squared difference, accumulated in double precision plane by plane.

    Raises:
        UsageError: the shapes differ, or there is no voxel.
    """
    _require_same_shape(truth, prediction)
    total = 0.0
    for a, b in zip(truth, prediction, strict=True):
        total += float(np.square(a.astype(np.float64) - b).sum())
    return total / truth.size


def psnr(truth: Array, prediction: Array, data_range: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio, 10 log10(range^2 / MSE), in dB.

    Infinite where both are equal.

    Raises:
        UsageError: the shapes differ, or there is no voxel.
    """
    return _decibels(mean_squared_error(truth, prediction) / data_range**2)


def wpsnr(truth: Array, prediction: Array, cubic: Array, data_range: float = 255.0) -> float:
    """Return the weighted PSNR of Heinrich et al. 2017 in dB: harder voxels count more.

    With values scaled to [0, 1], the squared error of a voxel is weighted by
    ``|truth - cubic| + 0.5``, where ``cubic`` is the cubic interpolation. The weights are not
    normalised by their sum, so only figures of one volume compare.

    Raises:
        UsageError: the shapes differ, or there is no voxel.
    """
    _require_same_shape(truth, prediction)
    _require_same_shape(truth, cubic)
    total = 0.0
    for t, p, c in zip(truth, prediction, cubic, strict=True):
        true = t.astype(np.float64) / data_range
        weight = np.abs(true - c / data_range) + 0.5
        total += float((np.square(true - p / data_range) * weight).sum())
    return _decibels(total / truth.size)


def ssim(truth: Array, prediction: Array, data_range: float = 255.0) -> float:
    """Return the structural similarity index (Wang et al. 2004), mean over the xz planes.

    Gaussian window of 11 x 11 and sigma 1.5, population covariance, and only window positions
    that lie inside the plane.

    Raises:
        UsageError: the shapes differ, or a plane is smaller than the window.
    """
    _require_same_shape(truth, prediction)
    window = 2 * SSIM_RADIUS + 1
    if min(truth.shape[0], truth.shape[2]) < window:
        raise UsageError(
            f"SSIM needs xz planes of at least {window} x {window} voxels; got "
            f"{truth.shape[0]} x {truth.shape[2]}; choose a larger box"
        )
    return float(np.mean([_ssim_plane(a, b, data_range) for a, b in _planes(truth, prediction)]))


def cf_psnr(
    truth: Array,
    prediction: Array,
    radius: float = CF_RADIUS,
    data_range: float = 255.0,
) -> float:
    """Return the cut-off-frequency PSNR of Troidl et al. 2024 (niiv), mean over xz planes, in dB.

    Only the error inside a circle of ``radius`` around zero frequency counts, so noise at high
    frequency, which no method can predict, does not. Planes that agree perfectly there have no
    finite figure and are left out, unless all do.

    Args:
        truth: z, y, x.
        prediction: z, y, x.
        radius: in samples of each plane's discrete Fourier transform; the rim is included.
        data_range: largest possible difference.

    Raises:
        UsageError: the shapes differ, or there is no voxel.
    """
    return cf_psnr_sweep(truth, prediction, (radius,), data_range)[0]


def cf_psnr_sweep(
    truth: Array,
    prediction: Array,
    radii: tuple[float, ...],
    data_range: float = 255.0,
) -> tuple[float, ...]:
    """Return :func:`cf_psnr` at several radii from one Fourier transform per plane."""
    _require_same_shape(truth, prediction)
    height, width = truth.shape[0], truth.shape[2]
    y = np.fft.fftfreq(height, 1 / height)[:, None]
    x = np.fft.fftfreq(width, 1 / width)[None, :]
    inside = [np.hypot(y, x) <= radius for radius in radii]
    figures: list[list[float]] = [[] for _ in radii]
    for a, b in _planes(truth, prediction):
        power = np.square(np.abs(np.fft.fft2(a.astype(np.float64) - b)))
        for figure, mask in zip(figures, inside, strict=True):
            # By Parseval the power of an unnormalised transform is (h w)^2 times the mean square.
            error = float(power[mask].sum()) / (height * width) ** 2
            figure.append(_decibels(error / data_range**2))
    return tuple(_finite_mean(figure) for figure in figures)


def _ssim_plane(a: Array, b: Array, data_range: float) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _window(x), _window(y)
    var_x = _window(x * x) - mean_x * mean_x
    var_y = _window(y * y) - mean_y * mean_y
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    rim = slice(SSIM_RADIUS, -SSIM_RADIUS)
    return float((luminance * structure)[rim, rim].mean())


def _window(x: NDArray[np.float64]) -> NDArray[np.float64]:
    smooth: NDArray[np.float64] = gaussian_filter(x, SSIM_SIGMA, radius=SSIM_RADIUS)
    return smooth


def _planes(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """Yield the xz planes of both."""
    for y in range(a.shape[1]):
        yield a[:, y], b[:, y]


def _finite_mean(figures: list[float]) -> float:
    finite = [figure for figure in figures if math.isfinite(figure)]
    return float(np.mean(finite)) if finite else math.inf


def _decibels(mean_square: float) -> float:
    return -10 * math.log10(mean_square) if mean_square > 0 else math.inf


def _require_same_shape(a: Array, b: Array) -> None:
    if a.shape != b.shape or a.ndim != DIMENSIONS or a.size == 0:
        raise UsageError(
            f"metrics compare z, y, x volumes of one shape; got {a.shape} and {b.shape}"
        )
