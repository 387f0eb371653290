"""Power along z of what was restored, beside the lateral power of the source.

Isotropic tissue has as much of each frequency along z as along y and x. Sections hold nothing above
half a cycle per section; a model fills that in, or does not. Power says how much is there, and not
whether it is right.

Spectra are Welch's (1967, IEEE Trans. Audio Electroacoust. 15:70), by scipy, over short segments
under a Hann window, so that boxes of any length give curves of one kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import welch

from isochunk.core.geometry import Spacing
from isochunk.core.voxels import Voxels

SEGMENT = 64
"""Voxels of a segment, or as many as there are."""

LEAST_SEGMENT = 8
"""With fewer, there is no spectrum."""

SLAB_VOXELS = 1 << 21
"""Voxels transformed at a time."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Power by frequency along one direction."""

    frequency: tuple[float, ...]
    """Cycles per nm, from the first above zero to the highest that voxels hold."""
    power: tuple[float, ...]
    """Squared grey levels times nm."""

    def band(self, low: float, high: float) -> float:
        """Return the mean power above one frequency and up to another; 0 where none is between."""
        f, power = np.array(self.frequency), np.array(self.power)
        inside = (f > low * (1 + 1e-9)) & (f <= high * (1 + 1e-9))
        return float(power[inside].mean()) if inside.any() else 0.0


def spectrum_along(voxels: Voxels, axis: int, voxel_nm: float) -> Spectrum | None:
    """Measure the power of a box along an axis.

    Args:
        voxels: (z, y, x).
        axis: along which.
        voxel_nm: extent of a voxel there.

    Returns:
        None where the axis is too short.
    """
    segment = min(SEGMENT, voxels.shape[axis]) // 2 * 2
    if segment < LEAST_SEGMENT:
        return None
    other = 1 if axis != 1 else 0
    count = max(1, SLAB_VOXELS * voxels.shape[other] // voxels.size)
    total: NDArray[np.float64] = np.zeros(segment // 2 + 1)
    frequency: NDArray[np.float64] = total
    for start in range(0, voxels.shape[other], count):
        part: Any = [slice(None)] * 3
        part[other] = slice(start, start + count)
        slab = voxels[tuple(part)].astype(np.float32)
        frequency, power = welch(slab, fs=1 / voxel_nm, nperseg=segment, axis=axis)
        lines = np.moveaxis(power, axis, 0).reshape(len(frequency), -1)
        total += lines.mean(1, dtype=np.float64) * slab.shape[other] / voxels.shape[other]
    return Spectrum(tuple(frequency[1:].tolist()), tuple(total[1:].tolist()))


def lateral_spectrum(voxels: Voxels, spacing: Spacing) -> Spectrum | None:
    """Measure the mean power along y and x, at the frequencies of x; None where they are short."""
    y = spectrum_along(voxels, 1, float(spacing.y))
    x = spectrum_along(voxels, 2, float(spacing.x))
    if y is None or x is None:
        return None
    along_y = np.interp(x.frequency, y.frequency, y.power)
    return Spectrum(x.frequency, tuple(((along_y + np.array(x.power)) / 2).tolist()))


def mean_spectrum(spectra: Sequence[Spectrum | None]) -> Spectrum | None:
    """Average over boxes of one shape; None where there is nothing to average."""
    known = [s for s in spectra if s is not None]
    if not known:
        return None
    power = np.mean([s.power for s in known], axis=0)
    return Spectrum(known[0].frequency, tuple(power.tolist()))


def upper_band(section_nm: float, target_nm: float) -> tuple[float, float]:
    """Return the frequencies that the target holds along z and sections do not, in cycles per nm.

    Args:
        section_nm: distance of sections.
        target_nm: distance of target voxels along z.
    """
    return 1 / (2 * section_nm), 1 / (2 * target_nm)


def z_to_xy_power(
    z: Spectrum | None, lateral: Spectrum | None, band: tuple[float, float]
) -> float | None:
    """Return power along z over lateral power, above what sections hold.

    Args:
        z: of what was restored.
        lateral: of the source.
        band: of :func:`upper_band`.

    Returns:
        None where either is unknown, or the source holds nothing there.
    """
    if z is None or lateral is None:
        return None
    below = lateral.band(*band)
    return z.band(*band) / below if below > 0 else None
