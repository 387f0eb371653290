"""How close a prediction comes to the truth, frequency by frequency: CF-PSNR, FRC and FSC.

As in :mod:`isochunk.evaluation.metrics`, volumes are z, y, x, and what is defined on images is
taken on the xz planes. No kept library correlates rings or shells of anisotropic tapered planes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import rfftn
from scipy.signal.windows import tukey

from isochunk.errors import UsageError
from isochunk.evaluation.metrics import (
    Array,
    decibels,
    finite_mean,
    planes,
    require_same_shape,
)

CF_RADIUS = 25.0
"""Default cut-off of CF-PSNR in cycles per image (Troidl et al. 2024)."""
CF_RADII = tuple(float(r) for r in np.linspace(2, 90, 64))
"""Default sweep of the same paper."""

TAPER = 0.25
"""Share of an image over which the Tukey window falls off, both sides together."""
RESOLVED_CORRELATION = 1 / 7
"""Correlation below which nothing counts as resolved (Rosenthal and Henderson 2003)."""
WEDGE_COSINE = math.cos(math.radians(30))
"""Cosine of the widest angle to an axis that counts as along it."""
MAX_CUBE_EDGE = 256
"""Largest edge of the cube on which shells are correlated: transforms are held in memory."""


def cf_psnr(
    truth: Array,
    prediction: Array,
    radii: tuple[float, ...] = (CF_RADIUS,),
    data_range: float = 255.0,
) -> tuple[float, ...]:
    """Return the cut-off-frequency PSNR of Troidl et al. 2024 (niiv), mean over xz planes, in dB.

    Only the error inside a circle around zero frequency counts, so noise at high frequency, which
    no method can predict, does not. Planes that agree perfectly there have no finite figure and
    are left out, unless all do.

    Args:
        truth: z, y, x.
        prediction: z, y, x.
        radii: of circles, in samples of each plane's discrete Fourier transform; rims are included.
        data_range: largest possible difference.

    Returns:
        A figure per radius.

    Raises:
        UsageError: the shapes differ, or there is no voxel.
    """
    require_same_shape(truth, prediction)
    height, width = truth.shape[0], truth.shape[2]
    y = np.fft.fftfreq(height, 1 / height)[:, None]
    x = np.fft.fftfreq(width, 1 / width)[None, :]
    distance = np.hypot(y, x).ravel()
    outwards = np.argsort(distance)
    inside = np.searchsorted(distance[outwards], radii, side="right") - 1
    figures: list[list[float]] = []
    for a, b in planes(truth, prediction, "xz"):
        power = np.square(np.abs(np.fft.fft2(a.astype(np.float64) - b))).ravel()
        # By Parseval the power of an unnormalised transform is (h w)^2 times the mean square.
        errors = np.cumsum(power[outwards])[inside] / (height * width * data_range) ** 2
        figures.append([decibels(float(error)) for error in errors])
    return tuple(finite_mean(list(figure)) for figure in zip(*figures, strict=True))


@dataclass(frozen=True, slots=True)
class Correlation:
    """How well two volumes agree at each frequency."""

    frequency: tuple[float, ...]
    """Cycles per voxel, rising to the Nyquist frequency, 1/2."""
    value: tuple[float, ...]
    """Correlation there, between -1 and 1; 0 where a volume holds nothing."""

    def resolution(self) -> float:
        """Return 1 / f where the curve first falls below 1/7, in voxels.

        2, the finest that voxels can hold, where it never does; infinity where it starts below.
        """
        below = [v < RESOLVED_CORRELATION for v in self.value]
        if True not in below:
            return 1 / self.frequency[-1]
        i = below.index(True)
        if i == 0:
            return math.inf
        (f0, f1), (v0, v1) = self.frequency[i - 1 : i + 1], self.value[i - 1 : i + 1]
        return 1 / (f0 + (f1 - f0) * (v0 - RESOLVED_CORRELATION) / (v0 - v1))


def frc(truth: Array, prediction: Array, along: str | None = None) -> Correlation:
    """Return the Fourier ring correlation of all xz planes.

    Each plane loses its mean, is tapered by a Tukey window and padded with zeros to an even square.
    Sums over rings one frequency sample wide are added over the planes before they are divided.
    Whole rings mix the axis that was made up with the one that was recorded; with ``along``, only
    frequencies within 30 degrees of an axis count (as in Koho et al. 2019, Nat. Commun. 10:3103).

    Args:
        truth: z, y, x.
        prediction: z, y, x.
        along: z or x; None for whole rings.

    Raises:
        UsageError: the shapes differ, there is no voxel, or the axis is not in the plane.
    """
    require_same_shape(truth, prediction)
    if along not in (None, "z", "x"):
        raise UsageError(f"xz planes have no axis {along!r}; choose z or x")
    axis = None if along is None else "zx".index(along)
    return _correlation(list(planes(truth, prediction, "xz")), axis)


def fsc(truth: Array, prediction: Array) -> Correlation:
    """Return the Fourier shell correlation of the middle of two volumes, up to 256 voxels long.

    As :func:`frc`, with shells of a cube for rings of a square.

    Raises:
        UsageError: the shapes differ, or there is no voxel.
    """
    require_same_shape(truth, prediction)
    starts = [max(0, (n - MAX_CUBE_EDGE) // 2) for n in truth.shape]
    middle = tuple(slice(start, start + MAX_CUBE_EDGE) for start in starts)
    return _correlation([(truth[middle], prediction[middle])])


def _correlation(pairs: list[tuple[Array, Array]], axis: int | None = None) -> Correlation:
    """Correlate pairs of images or volumes of one shape, ring by ring, or near one axis only."""
    shape = pairs[0][0].shape
    side = max(shape) + max(shape) % 2
    window: NDArray[np.float32] = np.ones((), np.float32)
    for n in shape:
        window = window[..., None] * tukey(n, TAPER).astype(np.float32)
    rings, weights = _rings(side, len(shape), axis)
    sums = np.zeros((3, side // 2 + 1))
    for pair in pairs:
        fa, fb = (rfftn((v - v.mean()).astype(np.float32) * window, (side,) * v.ndim) for v in pair)
        for total, product in zip(sums, ((fa, fb), (fa, fa), (fb, fb)), strict=True):
            power = (product[0] * product[1].conj()).real * weights
            total += np.bincount(rings.ravel(), power.ravel(), rings.max() + 1)[: total.size]
    cross, own = sums[0], np.sqrt(sums[1] * sums[2])
    value = np.divide(cross, own, out=np.zeros_like(cross), where=own > 0)
    frequency = np.arange(1, side // 2 + 1) / side
    return Correlation(tuple(frequency.tolist()), tuple(value[1:].tolist()))


def _rings(
    side: int, dimensions: int, axis: int | None
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the ring of every sample of a real transform, and how often the sample counts.

    The ring is the distance from zero, rounded. Samples count twice where the half of the spectrum
    that is left out mirrors them, and not at all where they lie too far from the axis.
    """
    axes = [np.fft.fftfreq(side, 1 / side).astype(np.float32)] * (dimensions - 1)
    last = np.fft.rfftfreq(side, 1 / side).astype(np.float32)
    grid = np.meshgrid(*axes, last, indexing="ij", sparse=True)
    distance = np.sqrt(sum(np.square(f) for f in grid))
    weights = np.full(side // 2 + 1, 2, np.float32)
    weights[[0, -1]] = 1
    if axis is not None:
        weights = weights * (np.abs(grid[axis]) >= WEDGE_COSINE * distance)
    return np.rint(distance).astype(np.intp), weights
