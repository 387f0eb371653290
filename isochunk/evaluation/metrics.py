"""How close a prediction comes to the truth, voxel by voxel: PSNR, wPSNR, SSIM, SNR, RSE and RSP.

All take z, y, x volumes (a 2D image is a volume of one plane) and, where it matters, a data range,
255 for uint8. Where a metric is defined on images, it is taken on the xz planes, the ones that
contain the axis that was made up, unless others are asked for, and averaged over them.

SSIM is scikit-image's. Its PSNR is not used, since it copies both volumes whole, in double
precision, and here they may have 2^32 voxels. No kept library has wPSNR, RSE and RSP.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.optimize import minimize_scalar
from skimage.metrics import structural_similarity

from isochunk.errors import UsageError

Array: TypeAlias = NDArray[Any]
ImagePlane: TypeAlias = Literal["xy", "xz", "yz"]

PLANES: tuple[ImagePlane, ...] = get_args(ImagePlane)
NORMAL: dict[ImagePlane, int] = {"xy": 0, "xz": 1, "yz": 2}
"""The axis along which planes are stacked."""

SSIM_SIGMA = 1.5
SSIM_WINDOW = 11
"""The Gaussian window of Wang et al. 2004 (IEEE Trans. Image Process. 13:600)."""
SSIM_SLAB = 32
"""Window positions along z at a time: the 3D index needs a dozen copies of what it works on."""
DIMENSIONS = 3


def mean_squared_error(truth: Array, prediction: Array) -> float:
    """Return the mean squared difference, accumulated in double precision plane by plane.

    Raises:
        UsageError: the shapes differ, or there is no voxel.
    """
    require_same_shape(truth, prediction)
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
    return decibels(mean_squared_error(truth, prediction) / data_range**2)


def wpsnr(truth: Array, prediction: Array, cubic: Array, data_range: float = 255.0) -> float:
    """Return the weighted PSNR of Heinrich et al. 2017 in dB: harder voxels count more.

    With values scaled to [0, 1], the squared error of a voxel is weighted by
    ``|truth - cubic| + 0.5``, where ``cubic`` is the cubic interpolation. The weights are not
    normalised by their sum, so only figures of one volume compare.

    Raises:
        UsageError: the shapes differ, or there is no voxel.
    """
    require_same_shape(truth, prediction)
    require_same_shape(truth, cubic)
    total = 0.0
    for t, p, c in zip(truth, prediction, cubic, strict=True):
        true = t.astype(np.float64) / data_range
        weight = np.abs(true - c / data_range) + 0.5
        total += float((np.square(true - p / data_range) * weight).sum())
    return decibels(total / truth.size)


def plane_psnr(
    truth: Array, prediction: Array, plane: ImagePlane, data_range: float = 255.0
) -> float:
    """Return the mean over all planes of one orientation of each one's PSNR, in dB.

    Planes that agree perfectly have no finite figure and are left out, unless all do.

    Raises:
        UsageError: the shapes differ, or there is no voxel.
    """
    require_same_shape(truth, prediction)
    pairs = planes(truth, prediction, plane)
    return finite_mean([psnr(a[None], b[None], data_range) for a, b in pairs])


def ssim(
    truth: Array, prediction: Array, data_range: float = 255.0, plane: ImagePlane = "xz"
) -> float:
    """Return the structural similarity index (Wang et al. 2004), mean over planes.

    Gaussian window of 11 x 11 and sigma 1.5, population covariance, and only window positions
    that lie inside the plane.

    Raises:
        UsageError: the shapes differ, or a plane is smaller than the window.
    """
    _require_window(truth, prediction, plane)
    pairs = planes(truth, prediction, plane)
    return float(np.mean([_similarity(a, b, data_range) for a, b in pairs]))


def ssim_3d(truth: Array, prediction: Array, data_range: float = 255.0) -> float:
    """Return the same index with a window of 11 x 11 x 11 voxels, mean over its positions.

    Raises:
        UsageError: the shapes differ, or the volume is smaller than the window.
    """
    for plane in PLANES:
        _require_window(truth, prediction, plane)
    total, positions = 0.0, len(truth) - SSIM_WINDOW + 1
    for start in range(0, positions, SSIM_SLAB):
        count = min(SSIM_SLAB, positions - start)
        slab = slice(start, start + count + SSIM_WINDOW - 1)
        total += count * _similarity(truth[slab], prediction[slab], data_range)
    return total / positions


def snr(image: Array, background: Array) -> float:
    """Return the signal-to-noise ratio of Fang et al. 2021, (max - mean_bg) / deviation_bg.

    Args:
        image: any shape.
        background: voxels that hold no signal, any shape.

    Raises:
        UsageError: the background is empty or constant.
    """
    deviation = float(background.std()) if background.size else 0.0
    if deviation == 0:
        raise UsageError(
            f"the background's {background.size} voxels are all equal, so it has no noise to "
            "measure a signal against; choose another part"
        )
    return (float(image.max()) - float(background.mean())) / deviation


@dataclass(frozen=True, slots=True)
class RescaledFit:
    """How a prediction, scaled and blurred, comes closest to a reference (Culley et al. 2018)."""

    sigma: float
    """Deviation of the Gaussian, in voxels."""
    alpha: float
    """Slope of the intensities."""
    beta: float
    """Intercept of the intensities, in grey levels."""
    rse: float
    """Resolution-scaled error: root mean square of what is left, in grey levels."""
    rsp: float
    """Resolution-scaled Pearson correlation; 0 where the prediction is constant."""


def fit_rescaled(reference: Array, prediction: Array) -> RescaledFit:
    """Find the Gaussian and the line that bring a prediction closest to a reference.

    Minimises the RMSE of ``G(alpha * prediction + beta)`` over all xz planes together; G continues
    planes by half-sample reflection. So what differs in sharpness and contrast alone is no error
    (SQUIRREL; Culley et al. 2018, Nature Methods 15:263).

    Raises:
        UsageError: the shapes differ, or there is no voxel.
    """
    require_same_shape(reference, prediction)
    mean_r, mean_p = float(reference.mean()), float(prediction.mean())
    # The cosine transform turns G into a product, so these sums serve all sigmas.
    power, cross, variance = 0.0, 0.0, 0.0
    for r, p in planes(reference, prediction, "xz"):
        a, b = dctn(p - mean_p, norm="ortho"), dctn(r - mean_r, norm="ortho")
        power, cross, variance = power + a * a, cross + a * b, variance + float((b * b).sum())
    shape = np.shape(power)

    def fit_line(sigma: float) -> tuple[float, float]:
        """Return the slope and the mean square left over."""
        g = _gaussian(shape, sigma)
        own, both = float((g * g * power).sum()), float((g * cross).sum())
        alpha = both / own if own > 0 else 0.0
        return alpha, max(0.0, variance - alpha * both) / reference.size

    tried = np.linspace(0, min(shape) / 4, 33)
    best = int(np.argmin([fit_line(sigma)[1] for sigma in tried]))
    around = (tried[max(0, best - 1)], tried[min(len(tried) - 1, best + 1)])
    found = minimize_scalar(lambda s: fit_line(s)[1], bounds=around, options={"xatol": 1e-4})
    sigma = float(min((tried[best], found.x), key=lambda s: fit_line(s)[1]))
    alpha, left = fit_line(sigma)
    explained = 1 - left * reference.size / variance if variance > 0 else 0.0
    rsp = math.copysign(math.sqrt(max(0.0, explained)), alpha)
    return RescaledFit(
        sigma=sigma,
        alpha=alpha,
        beta=mean_r - alpha * mean_p,
        rse=math.sqrt(left),
        rsp=rsp,
    )


def rescaled_error(reference: Array, prediction: Array, fit: RescaledFit) -> NDArray[np.float64]:
    """Return the error map behind :func:`fit_rescaled`: the difference left, as a volume."""
    require_same_shape(reference, prediction)
    left = []
    for r, p in planes(reference, prediction, "xz"):
        g = _gaussian(p.shape, fit.sigma)
        blurred = idctn(g * dctn(p.astype(np.float64), norm="ortho"), norm="ortho")
        left.append(fit.alpha * blurred + fit.beta - r)
    return np.stack(left, NORMAL["xz"])


def planes(a: Array, b: Array, plane: ImagePlane) -> Iterator[tuple[Array, Array]]:
    """Yield the planes of one orientation of both volumes, side by side."""
    axis = NORMAL[plane]
    return zip(np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0), strict=True)


def finite_mean(figures: list[float]) -> float:
    """Return the mean of what is finite, or infinity where nothing is."""
    finite = [figure for figure in figures if math.isfinite(figure)]
    return float(np.mean(finite)) if finite else math.inf


def decibels(mean_square: float) -> float:
    """Return the peak signal-to-noise ratio of a mean square error of values in [0, 1]."""
    return -10 * math.log10(mean_square) if mean_square > 0 else math.inf


def require_same_shape(a: Array, b: Array) -> None:
    """Check that two volumes compare.

    Raises:
        UsageError: they do not.
    """
    if a.shape != b.shape or a.ndim != DIMENSIONS or a.size == 0:
        raise UsageError(
            f"metrics compare z, y, x volumes of one shape; got {a.shape} and {b.shape}"
        )


def _similarity(a: Array, b: Array, data_range: float) -> float:
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            a.astype(np.float64),
            b.astype(np.float64),
            data_range=data_range,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
        )
    )


def _require_window(truth: Array, prediction: Array, plane: ImagePlane) -> None:
    require_same_shape(truth, prediction)
    height, width = (n for axis, n in enumerate(truth.shape) if axis != NORMAL[plane])
    if min(height, width) < SSIM_WINDOW:
        raise UsageError(
            f"SSIM needs {plane} planes of at least {SSIM_WINDOW} x {SSIM_WINDOW} voxels; got "
            f"{height} x {width}; choose a larger box"
        )


def _gaussian(shape: tuple[int, ...], sigma: float) -> NDArray[np.float64]:
    """Return what a Gaussian multiplies the coefficients of a cosine transform with."""
    square = sum(
        np.square(np.pi * np.arange(n) / n).reshape([-1 if a == axis else 1 for a in range(2)])
        for axis, n in enumerate(shape)
    )
    return np.exp(-0.5 * sigma**2 * square)
