"""The one intensity map of a job, measured from a bounded sample of the volume.

Normalising each tile by its own statistics would draw seams, so mean and deviation are measured
once, recorded in the job, and passed on: training, evaluation and every block use the same two
numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isochunk.core.geometry import Box, Triple, cells, grid_shape, triple
from isochunk.core.spec import Intensity, Normalisation
from isochunk.core.voxels import Voxels, quantise
from isochunk.errors import UsageError
from isochunk.storage.volume import Volume

SAMPLE_BYTES = 64 * 2**20
"""Voxels read to measure a volume, in bytes; boxes of pure background do not count."""
MAX_BOXES = 2048
"""Boxes tried before giving up on finding more data in a sparse volume."""
BOX_EDGE = 128
"""Edge of a sampled box, rounded down to whole chunks where chunks are smaller."""
READERS = 8
"""Boxes read at the same time."""


def measure_intensity(volume: Volume, normalisation: Normalisation) -> Intensity:
    """Measure the affine map between a volume's stored values and a model's values.

    For ``standard``, the mean of the nonzero voxels maps to 0 and one standard deviation to 1.
    Zero is what segmentation masks, missing tiles and padding are stored as, so it is left out.
    A volume of up to 32 million voxels is read whole; of a larger one, 64 MB in whole chunks at
    places drawn with a fixed seed. The sums are exact integers: the same volume always gives
    the same numbers.

    Args:
        volume: what to measure, at its finest level.
        normalisation: ``range`` needs no measurement and reads nothing.

    Raises:
        UsageError: every sampled voxel is zero, or all nonzero ones are equal.
        StorageError: a sampled box cannot be read.
    """
    spec = volume.spec
    if normalisation == "range":
        return Intensity.full_range(spec.dtype)
    count, total, squares = _moments(volume)
    if count == 0:
        raise UsageError(
            f"{spec.url} holds no nonzero voxel in the sampled boxes; intensity cannot be "
            "normalised; check the volume, or use a model with normalisation 'range'"
        )
    variance = (squares * count - total * total) / (count * count)
    if variance <= 0:
        raise UsageError(
            f"{spec.url} is constant (every nonzero voxel is {total // count}); intensity cannot "
            "be normalised; check the volume, or use a model with normalisation 'range'"
        )
    return Intensity(offset=total / count, scale=math.sqrt(variance))


def sample_boxes(bounds: Box, chunk: Triple, seed: int = 0) -> Iterator[Box]:
    """Yield boxes of whole chunks in a seeded order, each at most once.

    All of them, in grid order, where the volume is no larger than the sample; otherwise up to
    ``MAX_BOXES`` at random places. Nothing is materialised, however large the volume.
    """
    cell = triple(BOX_EDGE if c > BOX_EDGE else BOX_EDGE // c * c for c in chunk)
    if bounds.size <= SAMPLE_BYTES // 2:  # fits whole even at two bytes per voxel
        yield from cells(bounds, cell)
        return
    grid = grid_shape(bounds.shape, cell)
    n = math.prod(grid)
    for flat in random.Random(seed).sample(range(n), min(n, MAX_BOXES)):
        z, rest = divmod(flat, grid[1] * grid[2])
        y, x = divmod(rest, grid[2])
        lo = triple(a + i * c for a, i, c in zip(bounds.lo, (z, y, x), cell, strict=True))
        yield Box.from_shape(cell, lo) & bounds


def sampled(volume: Volume, counting: Callable[[Voxels], NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Yield what counts of sampled boxes, until the sample is full.

    Args:
        volume: what is sampled.
        counting: returns the values of a box that count; a box of none is no part of the sample.
    """
    level, read_bytes = volume.spec.levels[0], 0
    boxes = sample_boxes(level.box, level.chunk)
    with ThreadPoolExecutor(READERS) as pool:
        while read_bytes < SAMPLE_BYTES and (batch := list(islice(boxes, READERS))):
            for voxels in pool.map(volume.read, batch):
                values = counting(voxels)
                if values.size:
                    read_bytes += voxels.size * volume.spec.itemsize
                    yield values


def _moments(volume: Volume) -> tuple[int, int, int]:
    """Count the nonzero voxels of the sample, and sum their values and squares."""
    dtype = np.dtype(volume.spec.dtype)

    def nonzero(voxels: Voxels) -> NDArray[np.uint64]:
        # What is mended or seen through a window is rounded, so that sums stay exact.
        whole = voxels if voxels.dtype == dtype else quantise(voxels, dtype)
        values: NDArray[np.uint64] = whole[whole != 0].astype(np.uint64)
        return values

    count = total = squares = 0
    for values in sampled(volume, nonzero):
        count += values.size
        total += int(values.sum())
        squares += int(np.dot(values, values))
    return count, total, squares
