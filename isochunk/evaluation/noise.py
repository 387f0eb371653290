"""How much of the remaining error is noise that no method can predict.

The truth is signal plus noise, ``v = s + n``, with noise of standard deviation sigma, independent
from voxel to voxel along z. A method sees one section for every ``r`` target voxels, and each
section is a sum of target voxels with known weights. Let the method know the whole signal; then
each section tells it one more sum of the noise. ``N / r`` independent sums of ``N`` independent
values of equal variance fix a part of ``N / r`` dimensions, whatever the weights, and leave
``N - N / r``. So the mean squared error is at least ``sigma^2 (1 - 1/r)``. In particular

- AVG: the mean of the ``r`` noise values under a section is known, and the best guess of each of
  them: of ``sigma^2`` there remains ``sigma^2 - sigma^2 / r``.
- SKIP: one voxel in ``r`` is the section itself and has no error, the others have all of it.

No method exceeds ``10 log10(range^2 / (sigma^2 (1 - 1/r)))`` dB on either, except by chance.
Noise correlated within sections changes nothing as long as its correlation is the same in all of
them; noise correlated across sections is partly predictable, and lifts the ceiling. Rounding the
sections adds at most 1/12 of a squared grey level and is left out.

No real method knows the signal: what lies between a result and the ceiling is signal that the
sections lost as much as it is a shortcoming of the method. And sigma is an estimate. Fine texture
that looks like noise counts as noise, which lowers the ceiling; noise that is correlated along an
axis looks smaller along it, which raises it. So there are two estimates of different kind:

- lags: half the mean squared difference of voxels ``k`` apart is ``D(k) = sigma^2 + R(0) - R(k)``
  with ``R`` the autocovariance of the signal. R is even, and smooth because the microscope
  has a finite resolution. A polynomial in k^2 through k = 1, 2, 3, continued to k = 0, gives
  ``sigma^2 = (15 D(1) - 6 D(2) + D(3)) / 10``.
- planes: the mixed second difference along two axes, whose 3 x 3 mask removes all that is
  linear along either (Immerkaer 1996, Comput. Vis. Image Underst. 64:300).

scikit-image's ``estimate_sigma`` is a third kind, the median of fine wavelet coefficients: it needs
PyWavelets, and does not tell the axis along which noise was smoothed from the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isochunk.core.geometry import AXES
from isochunk.errors import UsageError

LAGS = (1, 2, 3)
EXTRAPOLATION = (1.5, -0.6, 0.1)
"""Weights that continue the half squared differences at the lags to lag 0."""

MAX_PLANES = 128
"""Planes looked at in each direction, evenly spaced."""

MASK_NORM = 36.0
"""Sum of the squares of Immerkaer's mask, the outer product of (1, -2, 1) with itself."""


@dataclass(frozen=True, slots=True)
class NoiseEstimate:
    """Standard deviation of a volume's noise in its own grey levels, estimated six ways."""

    lags: tuple[float, float, float]
    """From differences along z, y, x, continued to lag 0."""
    planes: tuple[float, float, float]
    """From second differences in the planes zy, zx and yx."""

    @property
    def across_sections(self) -> tuple[float, float]:
        """Return both estimates that see z: lags along z, and the larger of zy and zx.

        Noise smoothed along y or x makes the estimate in one of those planes too small.
        """
        return self.lags[0], max(self.planes[:2])


def psnr_limit(sigma: float, factor: Fraction | int, data_range: float = 255.0) -> float:
    """Return the PSNR in dB of a method that knows the signal and its input, see the module.

    Infinite without noise, or where every target voxel is a section.

    Args:
        sigma: standard deviation of the noise in grey levels.
        factor: target voxels per section.
        data_range: largest possible difference.
    """
    unknown = sigma**2 * (1 - 1 / factor)
    return 10 * math.log10(data_range**2 / unknown) if unknown > 0 else math.inf


def noise_ceiling(
    truth: NDArray[Any], factor: Fraction | int, data_range: float = 255.0
) -> tuple[float, float]:
    """Estimate the PSNR in dB that noise lets no method exceed along z.

    Args:
        truth: isotropic volume, (z, y, x).
        factor: target voxels per section.
        data_range: largest possible difference.

    Returns:
        The ceiling by the larger and by the smaller estimate of the noise.

    Raises:
        UsageError: the volume is too small.
    """
    sigmas = estimate_noise(truth).across_sections
    low, high = sorted(psnr_limit(sigma, factor, data_range) for sigma in sigmas)
    return low, high


def estimate_noise(voxels: NDArray[Any]) -> NoiseEstimate:
    """Estimate the standard deviation of a volume's noise along its axes and in its planes.

    Args:
        voxels: (z, y, x), at least four voxels along each axis.

    Raises:
        UsageError: the volume is smaller.
    """
    if voxels.ndim != len(AXES) or min(voxels.shape) <= LAGS[-1]:
        raise UsageError(
            f"noise is estimated from z, y, x volumes of at least {LAGS[-1] + 1} voxels along "
            f"each axis; got {voxels.shape}; choose a larger box"
        )
    z, y, x = (_sigma_from_lags(np.moveaxis(voxels, axis, 0)) for axis in range(3))
    zy, zx, yx = (_sigma_from_masks(np.moveaxis(voxels, axis, 0)) for axis in (2, 1, 0))
    return NoiseEstimate((z, y, x), (zy, zx, yx))


def _sigma_from_lags(voxels: NDArray[Any]) -> float:
    """Estimate along the first axis, from its lags."""
    sums = np.zeros(len(LAGS))
    places = _evenly_spaced(voxels.shape[1])
    for place in places:
        plane = voxels[:, place].astype(np.float64)
        for i, lag in enumerate(LAGS):
            sums[i] += np.square(plane[lag:] - plane[:-lag]).mean() / 2
    variance = float(np.dot(EXTRAPOLATION, sums)) / len(places)
    return math.sqrt(max(0.0, variance))


def _sigma_from_masks(planes: NDArray[Any]) -> float:
    """Estimate in planes of the last two axes, from Immerkaer's mask."""
    total = 0.0
    places = _evenly_spaced(len(planes))
    for place in places:
        plane = planes[place].astype(np.float64)
        total += float(np.abs(np.diff(np.diff(plane, 2, 0), 2, 1)).mean())
    # A normal deviate is sigma sqrt(2 / pi) away from 0 on average.
    return total / len(places) * math.sqrt(math.pi / 2 / MASK_NORM)


def _evenly_spaced(n: int) -> NDArray[np.intp]:
    return np.linspace(0, n - 1, min(n, MAX_PLANES)).astype(np.intp)
