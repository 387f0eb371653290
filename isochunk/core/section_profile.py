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

import numpy as np

from isochunk.core.section_images import (
    LEAST_SAMPLES,
    NOWHERE,
    Grey,
    Mask,
    Waves,
    correlation,
    detail_of,
    pooled,
    shift_between,
    tissue_of,
    waves_of,
)
from isochunk.core.voxels import Voxels

LAGS = 3
"""Sections before it with which one is compared: bridges two lost ones in a row."""
TILES = 4
"""Tiles along each side of a section whose contrast is measured one by one."""
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
    tile_means: tuple[float, ...]
    """Means of the tissue tile by tile."""
    tile_deviations: tuple[float, ...]
    """Standard deviations of the means of pixels tile by tile."""
    before: tuple[float, ...]
    """Correlation with the section before, the one before that, and so on; NaN with blank ones."""
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
    recent: deque[tuple[Grey, Mask] | None] = deque(maxlen=LAGS)
    waves: Waves | None = None
    for z, voxels in sections:
        windows = voxels.reshape(-1, *voxels.shape[-2:])
        mask = tissue_of(windows)
        means, inside = pooled(windows, mask, pool)
        levels = _levels(windows, mask)
        tiles = _tiles(means, inside)
        shares = (
            float(np.mean(mask)),
            float(np.mean(windows == 0)),
            float(np.mean(windows == np.iinfo(windows.dtype).max)),
        )
        if shares[0] < LEAST_TISSUE:
            recent.appendleft(None)
            waves = None
            yield SectionProfile(z, *shares, *levels, *tiles, UNLINKED, NOWHERE)
            continue
        before, waves = waves, waves_of(windows, mask, levels[0])
        y, x = windows.shape[1:]
        shift = NOWHERE if before is None else shift_between(before, waves, (y, x), pool / 2)
        image = (detail_of(means, inside), inside)
        links = _links(recent, image, shift, pool)
        recent.appendleft(image)
        yield SectionProfile(z, *shares, *levels, *tiles, links, shift)


def _levels(windows: Voxels, mask: Mask) -> tuple[float, float, float]:
    """Return mean, deviation and roughness of the tissue."""
    tissue = windows[mask].astype(np.float64)
    both = mask[..., 1:] & mask[..., :-1]
    if not both.any():
        return math.nan, math.nan, math.nan
    steps = windows[..., 1:][both].astype(np.float64) - windows[..., :-1][both]
    return float(tissue.mean()), float(tissue.std()), math.sqrt(float(np.mean(steps * steps)))


def _links(
    recent: deque[tuple[Grey, Mask] | None],
    image: tuple[Grey, Mask],
    shift: tuple[float, float],
    pool: int,
) -> tuple[float, ...]:
    """Correlate a section with those before it, the nearest one also where the shift puts it."""
    links = list(UNLINKED)
    for lag, other in enumerate(recent):
        links[lag] = math.nan if other is None else correlation(other, image)
    if recent and recent[0] is not None and not math.isnan(shift[0]):
        y, x = (round(s / pool) for s in shift)
        if (y, x) != (0, 0):
            links[0] = float(np.fmax(links[0], correlation(recent[0], image, (y, x))))
    return tuple(links)


def _tiles(means: Grey, mask: Mask) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each tile, NaN where there is little tissue."""
    side = max(1, math.ceil(TILES / math.sqrt(len(means))))
    found = []
    for grey, inside in zip(means, mask, strict=True):
        for rows, own in zip(np.array_split(grey, side), np.array_split(inside, side), strict=True):
            for tile, where in zip(
                np.array_split(rows, side, 1), np.array_split(own, side, 1), strict=True
            ):
                values = tile[where]
                enough = values.size >= max(LEAST_SAMPLES, tile.size // 4)
                found.append(
                    (float(values.mean()), float(values.std())) if enough else (math.nan, math.nan)
                )
    averages, deviations = zip(*found, strict=True)
    return averages, deviations
