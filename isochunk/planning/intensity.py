"""The one intensity map of a job, measured from a bounded sample of the volume.

Normalising each tile by its own statistics would draw seams, so mean and deviation are measured
once, recorded in the job, and passed on: training, evaluation and every block use the same two
numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from isochunk.core.geometry import Box, Triple, cells, grid_shape, triple
from isochunk.core.spec import Intensity, Normalisation
from isochunk.core.voxels import quantise
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
    level = spec.levels[0]
    boxes = sample_boxes(level.box, level.chunk)
    count, total, squares = _moments(volume, boxes)
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


def _moments(volume: Volume, boxes: Iterator[Box]) -> tuple[int, int, int]:
    """Count nonzero voxels and sum their values and squares until the sample is full."""
    count = total = squares = read_bytes = 0
    dtype = np.dtype(volume.spec.dtype)
    with ThreadPoolExecutor(READERS) as pool:
        while read_bytes < SAMPLE_BYTES and (batch := list(islice(boxes, READERS))):
            for voxels in pool.map(volume.read, batch):
                if voxels.dtype != dtype:  # mended sections: rounded, so that sums stay exact
                    voxels = quantise(voxels, dtype)
                nonzero = np.count_nonzero(voxels)
                if nonzero == 0:
                    continue
                values = voxels.astype(np.uint64).ravel()
                count += int(nonzero)
                total += int(values.sum())
                squares += int(np.dot(values, values))
                read_bytes += voxels.nbytes
    return count, total, squares
