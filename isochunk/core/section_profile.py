"""What each section of a stack looks like, and how far it agrees with those before it.

Sections come one by one and only a few small ones are kept, so a stack may have any length.

Contrast and agreement are taken on means of ``pool`` x ``pool`` pixels. Noise hardly reaches those,
so a noisy section has the contrast of its neighbours, and correlation tells of structures about as
large as sections are thick, which is what neighbours can have in common at all.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isochunk.core.section_images import (
    LEAST_SAMPLES,
    NOWHERE,
    Grey,
    Image,
    Mask,
    Waves,
    correlation,
    detail_of,
    pooled,
    shift_between,
    tile_correlations,
    tiles_of,
    tissue_of,
    waves_of,
)
from isochunk.core.voxels import Voxels

LAGS = 3
"""Sections before it with which one is compared: bridges two lost ones in a row."""
TILE_LAGS = 2
"""Sections before it with which its tiles are compared: bridges one that is damaged in part."""
UNLINKED = (math.nan,) * LAGS
"""The correlations of a section that is compared with none."""
LEAST_TISSUE = 0.004
"""Share of tissue below which a section is blank and compared with none."""


@dataclass(frozen=True, slots=True)
class SectionProfile:
    """One section of a stack. What cannot be told is NaN."""

    z: int
    """Source voxel coordinate."""
    tissue: float
    """Share of voxels that are neither 0 nor part of an area of one grey level."""
    black: float
    """Share of voxels that are 0, as padding and missing tiles are stored."""
    saturated: float
    """Share of voxels with the largest value of their type."""
    mean: float
    """Mean of the tissue in grey levels."""
    deviation: float
    """Standard deviation of the tissue in grey levels, noise included."""
    roughness: float
    """Root mean square of the step from a voxel of tissue to the next along x, in grey levels."""
    contrast: float
    """Standard deviation of the means of pixels, which noise hardly reaches, in grey levels."""
    relief: float
    """Root mean square of the step from a mean of pixels to the next along x, in grey levels."""
    tile_means: tuple[float, ...]
    """Means of the tissue tile by tile."""
    tile_deviations: tuple[float, ...]
    """Standard deviations of the means of pixels tile by tile."""
    before: tuple[float, ...]
    """Correlation with the section before, the one before that, and so on; NaN with blank ones."""
    tiles_before: tuple[tuple[float, ...], ...]
    """The same tile by tile, with the section before and the one before that."""
    shift: tuple[float, float]
    """How far y and x it lies from the section before, in its pixels."""

    @property
    def blank(self) -> bool:
        """Whether it holds no tissue, or next to none."""
        return self.tissue < LEAST_TISSUE


def profile_sections(
    sections: Iterable[tuple[int, Voxels]], pool: int = 1
) -> Iterator[SectionProfile]:
    """Measure sections one after another.

    Args:
        sections: z and its voxels, by rising z: uint8 or uint16, (y, x) or (windows, y, x), all of
            one shape. One is held at a time, and of four the means of pixels.
        pool: pixels along each side of a square whose mean is compared: about as many as a section
            is thick.
    """
    recent: deque[Image | None] = deque(maxlen=LAGS)
    waves: Waves | None = None
    for z, voxels in sections:
        windows = voxels.reshape(-1, *voxels.shape[-2:])
        mask = tissue_of(windows)
        means, inside = pooled(windows, mask, pool)
        tiles = _tiles(means, inside)
        contrast = _contrast(windows, mask, (means, inside), pool)
        levels = (*_levels(windows, mask), *contrast)
        shares = (
            float(np.mean(mask)),
            float(np.mean(windows == 0)),
            float(np.mean(windows == np.iinfo(windows.dtype).max)),
        )
        if shares[0] < LEAST_TISSUE:
            recent.appendleft(None)
            waves = None
            alone = ((math.nan,) * len(tiles[0]),) * TILE_LAGS
            yield SectionProfile(z, *shares, *levels, *tiles, UNLINKED, alone, NOWHERE)
            continue
        before, waves = waves, waves_of(windows, mask, levels[0])
        y, x = windows.shape[1:]
        shift = NOWHERE if before is None else shift_between(before, waves, (y, x), pool / 2)
        image = (detail_of(means, inside), inside)
        links = _links(recent, image, shift, pool, len(tiles[0]))
        recent.appendleft(image)
        yield SectionProfile(z, *shares, *levels, *tiles, *links, shift)


def _levels(windows: Voxels, mask: Mask) -> tuple[float, float, float]:
    """Return mean, deviation and roughness of the tissue."""
    tissue = windows[mask].astype(np.float64)
    roughness = _steps(windows, mask)
    if math.isnan(roughness):
        return math.nan, math.nan, math.nan
    return float(tissue.mean()), float(tissue.std()), roughness


def _steps(windows: NDArray[Any], mask: Mask) -> float:
    """Return the root mean square of the step to the next along x, within the tissue."""
    both = mask[..., 1:] & mask[..., :-1]
    if not both.any():
        return math.nan
    steps = windows[..., 1:][both].astype(np.float64) - windows[..., :-1][both]
    return math.sqrt(float(np.mean(steps * steps)))


def _contrast(windows: Voxels, mask: Mask, image: Image, pool: int) -> tuple[float, float]:
    """Return deviation and steps of means of pixels, at least of two by two."""
    means, inside = image if pool > 1 else pooled(windows, mask, 2)
    if not inside.any():
        return math.nan, math.nan
    return float(means[inside].std()), _steps(means, inside)


def _links(
    recent: deque[Image | None], image: Image, shift: tuple[float, float], pool: int, count: int
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]:
    """Correlate a section with those before it, the nearest one also where the shift puts it."""
    links, tiles = list(UNLINKED), [(math.nan,) * count] * TILE_LAGS
    for lag, other in enumerate(recent):
        if other is None:
            continue
        links[lag] = correlation(other, image)
        if lag < TILE_LAGS:
            tiles[lag] = tile_correlations(other, image)
    nearest = recent[0] if recent else None
    if nearest is not None and not math.isnan(shift[0]):
        y, x = (round(s / pool) for s in shift)
        if (y, x) != (0, 0):
            links[0] = float(np.fmax(links[0], correlation(nearest, image, (y, x))))
            there = tile_correlations(nearest, image, (y, x))
            tiles[0] = tuple(np.fmax(tiles[0], there).tolist())
    return tuple(links), tuple(tiles)


def _tiles(means: Grey, mask: Mask) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each tile, NaN where there is little tissue."""
    found = []
    for tile, where in zip(tiles_of(means), tiles_of(mask), strict=True):
        values = tile[where]
        enough = values.size >= max(LEAST_SAMPLES, tile.size // 4)
        found.append(
            (float(values.mean()), float(values.std())) if enough else (math.nan, math.nan)
        )
    averages, deviations = zip(*found, strict=True)
    return averages, deviations
