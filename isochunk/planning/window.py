"""The one window of a job, measured from the same bounded sample as its intensity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isochunk.core.voxels import Voxels
from isochunk.core.window import Window
from isochunk.errors import UsageError
from isochunk.planning.intensity import sampled
from isochunk.storage.volume import Volume

PERCENTILES = (0.1, 99.9)
"""Percentiles of the sampled values that become black and white."""


def measure_window(volume: Volume) -> Window:
    """Measure the values of a volume that become black and white.

    Zero is what padding and missing tiles are stored as, so it is left out, and so are values that
    are no numbers. Of a volume of more than 32 million voxels, 64 MB are read at places drawn with
    a fixed seed; both ends are values of the sample, so the same volume always gives the same two
    numbers.

    Args:
        volume: what to measure, at its finest level, as stored.

    Raises:
        UsageError: every sampled value is zero or no number, or they are all equal.
        StorageError: a sampled box cannot be read.
    """
    level, url = volume.spec.levels[0], volume.spec.url
    values = np.concatenate([*sampled(volume, _numbers), np.empty(0, volume.spec.dtype)])
    if values.size == 0:
        raise UsageError(
            f"{url} holds no value other than zero in the sampled boxes of {level.box}; give the "
            "window as two numbers"
        )
    low, high = (float(v) for v in np.percentile(values, PERCENTILES, method="nearest"))
    if low == high:
        low, high = float(values.min()), float(values.max())
    if low == high:
        raise UsageError(
            f"{url} is constant (every sampled value but zero is {low:g}); give the window as two "
            "numbers"
        )
    return Window(low, high)


def _numbers(voxels: Voxels) -> NDArray[Any]:
    """Return the values of a box that count."""
    counts = voxels != 0
    if voxels.dtype.kind == "f":
        counts &= np.isfinite(voxels)
    values: NDArray[Any] = voxels[counts]
    return values
