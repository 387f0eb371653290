"""Tissue of a section, its means of pixels, and how two sections agree and lie on one another.

A section is an array (windows, y, x): one window where it is whole, several of one size where only
some of its chunks are read. No kept library registers such windows together; scikit-image's phase
correlation takes one image, and counts frequencies that hold noise alone as much as any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.signal.windows import tukey

from isochunk.core.voxels import Voxels

Grey: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]
Waves: TypeAlias = NDArray[np.complex64]
Image: TypeAlias = tuple[Grey, Mask]
"""Values, and where they are those of tissue."""

BACKGROUND = 8
"""What is larger than a window over this, such as uneven lighting, does not count as agreement."""
TAPER = 0.25
"""Share of a window over which it falls off before it is transformed, both sides together."""
LEAST_SAMPLES = 64
"""Means of pixels that a correlation or a tile needs."""
TILES = 4
"""Tiles along each side of a section that are measured one by one."""
DISTINCT = 8.0
"""Standard deviations by which a shift must stand out from all others, to be one."""
NOWHERE = (math.nan, math.nan)
"""The shift of sections that do not tell where they lie."""


def tissue_of(windows: Voxels) -> Mask:
    """Return where there is tissue.

    That is everywhere but in voxels of 0, as padding and missing tiles are stored, and in areas of
    one grey level (saturated, painted over, empty resin as some pipelines write it): voxels that
    equal all four neighbours, and those neighbours. Single saturated voxels are tissue.
    """
    flat = np.ones(windows.shape, bool)
    for neighbour in _neighbours(windows):
        flat &= neighbour == windows
    rim = flat.copy()
    for neighbour in _neighbours(flat):
        rim |= neighbour
    mask: Mask = ~rim & (windows != 0)
    return mask


def _neighbours(windows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield what lies above, below, left and right of each voxel; edges are repeated."""
    padded = np.pad(windows, ((0, 0), (1, 1), (1, 1)), mode="edge")
    yield padded[:, :-2, 1:-1]
    yield padded[:, 2:, 1:-1]
    yield padded[:, 1:-1, :-2]
    yield padded[:, 1:-1, 2:]


def pooled(windows: Voxels, mask: Mask, by: int) -> tuple[Grey, Mask]:
    """Average the tissue in squares of ``by`` pixels; what is left over at the ends is left out.

    Returns:
        The means, 0 where less than half of a square is tissue, and where it is not.
    """
    count, height, width = windows.shape
    y, x = height // by, width // by
    cut = (slice(None), slice(0, y * by), slice(0, x * by))
    shape = (count, y, by, x, by)
    inside = mask[cut].reshape(shape)
    sums = np.where(inside, windows[cut].reshape(shape), 0).sum((2, 4), dtype=np.float32)
    counts = inside.sum((2, 4), dtype=np.float32)
    enough = counts * 2 > by * by
    means: Grey = np.where(enough, sums / np.maximum(counts, 1), 0).astype(np.float32)
    return means, enough


def detail_of(means: Grey, mask: Mask) -> Grey:
    """Return means of pixels less what is around them; 0 outside the tissue."""
    size = (1, *(max(3, n // BACKGROUND) for n in means.shape[1:]))
    weight = uniform_filter(mask.astype(np.float32), size, mode="constant")
    around = uniform_filter(means, size, mode="constant") / np.maximum(weight, 1e-6)
    detail: Grey = np.where(mask, means - around, 0).astype(np.float32)
    return detail


def overlap(a: Image, b: Image, shift: tuple[int, int]) -> tuple[Image, Image]:
    """Return what two images have in common, where the second lies ``shift`` from the first."""
    _, height, width = a[0].shape
    (ya, yb), (xa, xb) = (
        (slice(max(0, -s), n - max(0, s)), slice(max(0, s), n - max(0, -s)))
        for s, n in zip(shift, (height, width), strict=True)
    )
    return (a[0][:, ya, xa], a[1][:, ya, xa]), (b[0][:, yb, xb], b[1][:, yb, xb])


def correlation(a: Image, b: Image, shift: tuple[int, int] = (0, 0)) -> float:
    """Return Pearson's correlation of two sections' details where both are tissue.

    Args:
        a: details and tissue.
        b: those of another section.
        shift: how far y and x that one lies from ``a``, in means of pixels.

    Returns:
        NaN where there is too little in common, or no contrast.
    """
    first, second = overlap(a, b, shift)
    return _pearson(first[0], second[0], first[1] & second[1])


def tile_correlations(a: Image, b: Image, shift: tuple[int, int] = (0, 0)) -> tuple[float, ...]:
    """Return what :func:`correlation` does, tile by tile of what both have in common."""
    first, second = overlap(a, b, shift)
    both = first[1] & second[1]
    return tuple(
        _pearson(*parts)
        for parts in zip(*(tiles_of(part) for part in (first[0], second[0], both)), strict=True)
    )


def tiles_of(windows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Cut windows (n, y, x) into about ``TILES`` x ``TILES`` tiles (y, x) together."""
    side = max(1, math.ceil(TILES / math.sqrt(len(windows))))
    for window in windows:
        for rows in np.array_split(window, side):
            yield from np.array_split(rows, side, 1)


def _pearson(a: NDArray[Any], b: NDArray[Any], both: NDArray[Any]) -> float:
    if np.count_nonzero(both) < LEAST_SAMPLES:
        return math.nan
    first, second = (
        values - values.mean() for values in (v[both].astype(np.float64) for v in (a, b))
    )
    norm = math.sqrt(float(first @ first) * float(second @ second))
    return float(first @ second) / norm if norm > 0 else math.nan


def waves_of(windows: Voxels, mask: Mask, mean: float) -> Waves:
    """Return the transforms of the windows, tapered to their edges; no tissue is the mean."""
    height, width = windows.shape[1:]
    taper = np.outer(tukey(height, TAPER), tukey(width, TAPER)).astype(np.float32)
    tapered = np.where(mask, windows.astype(np.float32) - np.float32(mean), 0) * taper
    waves: Waves = np.fft.rfft2(tapered).astype(np.complex64)
    return waves


def shift_between(a: Waves, b: Waves, shape: tuple[int, int], fine: float) -> tuple[float, float]:
    """Return how far y and x the second section lies from the first, by phase correlation.

    Of each frequency only the phase counts, the less the finer it is, and all windows count
    together. The peak is refined by parabolas through its neighbours.

    Args:
        a: transforms of a section.
        b: those of the next.
        shape: y, x of a window.
        fine: pixels; what is much finer is left out.

    Returns:
        y and x in pixels, or NaN where no shift stands out.
    """
    cross = (a.conj() * b).sum(0)
    size = np.abs(cross)
    y, x = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    weight = np.exp(-2 * (math.pi * fine) ** 2 * (y * y + x * x))
    weight[0, 0] = 0
    surface = np.fft.irfft2(np.where(size > 0, cross / np.maximum(size, 1e-12), 0) * weight, shape)
    peak = np.unravel_index(int(surface.argmax()), surface.shape)
    spread = float(surface.std())
    if spread == 0 or surface[peak] < DISTINCT * spread:
        return NOWHERE
    found = []
    for axis, (at, n) in enumerate(zip(peak, shape, strict=True)):
        line = np.take(surface, peak[1 - axis], 1 - axis)
        below, top, above = (float(line[(at + step) % n]) for step in (-1, 0, 1))
        curve = below - 2 * top + above
        part = 0.0 if curve == 0 else (below - above) / (2 * curve)
        found.append(float((at + n // 2) % n - n // 2) + part)
    return found[0], found[1]
