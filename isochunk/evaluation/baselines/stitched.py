"""Sections restored tile by tile with blurred seams, as PSSR does it, to compare halos with.

Fang et al. 2021 (Nature Methods 18:406) and the authors' code: tiles of 1024 restored pixels that
overlap by 5%, each restored alone; half the overlap is cut off, and a Gaussian of sigma 1 is drawn
over five pixels on either side of each seam. The code leaves out the first seam along y, which
looks like an oversight; here every seam is blurred, as the paper says. A tile that reaches beyond
the section is filled by repetition: the authors fill with zeros, but after interpolating the whole
section, and here interpolation is the network's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from isochunk.errors import UsageError

Image: TypeAlias = NDArray[np.float32]
Sharpen: TypeAlias = Callable[[Image], Image]
"""Restores a section: (frames, y, x), neighbouring sections included, to (factor y, factor x)."""


@dataclass(frozen=True, slots=True)
class StitchConfig:
    """How tiles are cut and joined; defaults are the paper's."""

    tile: int = 1024
    """Edge of a tile in restored pixels."""
    overlap: float = 0.05
    """Share of the edge that neighbouring tiles have in common."""
    sigma: float = 1.0
    """Standard deviation of the blur in restored pixels; 0 leaves seams as they are."""
    reach: int = 5
    """Restored pixels blurred on either side of a seam."""


PAPER_CONFIG = StitchConfig()


def restore_stitched(
    sharpen: Sharpen, section: Image, factor: int, config: StitchConfig = PAPER_CONFIG
) -> Image:
    """Restore a section tile by tile and blur the seams.

    Args:
        sharpen: restores a tile.
        section: (frames, y, x) with the frames that ``sharpen`` needs.
        factor: restored pixels per pixel, along y and x.
        config: tiles and blur.

    Returns:
        (factor y, factor x).

    Raises:
        UsageError: the overlap is as large as the tile, or leaves no pixel of it.
    """
    tile, trim = _tile(factor, config)
    step = tile - 2 * trim
    height, width = section.shape[1:]
    result = np.empty((factor * height, factor * width), np.float32)
    starts = [range(0, max(1, n - 2 * trim), step) for n in (height, width)]
    for y, x in product(*starts):
        part = section[:, y : y + tile, x : x + tile]
        beyond = [(0, tile - n) for n in part.shape[1:]]
        restored = sharpen(np.pad(part, [(0, 0), *beyond], mode="edge"))
        kept, target = [], []
        for start, n in ((y, height), (x, width)):
            lo = start + trim if start > 0 else 0
            hi = start + tile - trim if start + tile < n else n
            kept.append(slice(factor * (lo - start), factor * (hi - start)))
            target.append(slice(factor * lo, factor * hi))
        result[tuple(target)] = restored[tuple(kept)]
    if config.sigma:
        _blur_seams(result, seams((height, width), factor, config), config)
    return result


def seams(
    shape: tuple[int, int], factor: int, config: StitchConfig = PAPER_CONFIG
) -> tuple[list[int], list[int]]:
    """Return the restored pixels along y and along x at which a new tile begins.

    Args:
        shape: of the section, (y, x).
        factor: restored pixels per pixel.
        config: tiles.

    Raises:
        UsageError: as :func:`restore_stitched`.
    """
    tile, trim = _tile(factor, config)
    y, x = (
        [factor * (start + trim) for start in range(0, n - 2 * trim, tile - 2 * trim) if start]
        for n in shape
    )
    return y, x


def _tile(factor: int, config: StitchConfig) -> tuple[int, int]:
    """Return the edge of a tile and half the overlap, in pixels of the section."""
    tile = config.tile // factor
    trim = math.floor(tile * config.overlap / 2)
    if tile < 1 or not 0 <= 2 * trim < tile:
        raise UsageError(
            f"tiles of {config.tile} restored pixels with overlap {config.overlap} leave nothing "
            f"of a tile at factor {factor}; choose a larger tile and 0 <= overlap < 1"
        )
    return tile, trim


def _blur_seams(image: Image, seams: tuple[list[int], list[int]], config: StitchConfig) -> None:
    """Blur strips along seams in place, those along x last; each by itself, as the authors do."""
    rows, columns = seams
    for axis, places in ((1, columns), (0, rows)):
        along = np.moveaxis(image, axis, 0)
        for place in places:
            strip = slice(max(0, place - config.reach), place + config.reach)
            along[strip] = gaussian_filter(along[strip], config.sigma, mode="nearest")
