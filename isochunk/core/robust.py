"""What is usual in a row of numbers, and how far they scatter, unmoved by single odd ones."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.float64]

NORMAL = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


def median_around(values: Numbers, reach: int) -> Numbers:
    """Return the median of up to ``reach`` values on either side of each; NaN are left out.

    Args:
        values: numbers (n,), or columns of them (n, k).
        reach: how many on either side; a value itself does not count.

    Returns:
        Medians of the shape of the values, NaN where there is nothing around.
    """
    columns = values.reshape(len(values), -1)
    found = np.full(columns.shape, math.nan)
    for i in range(len(columns)):
        near = np.delete(columns[max(0, i - reach) : i + reach + 1], min(i, reach), 0)
        if len(near):
            near = np.sort(near, 0)  # NaN come last
            known = len(near) - np.isnan(near).sum(0)
            middle = np.stack([np.maximum(known - 1, 0) // 2, known // 2])
            found[i] = np.take_along_axis(near, middle, 0).mean(0)
    return found.reshape(values.shape)


def robust_spread(values: Numbers) -> float:
    """Return the standard deviation around 0 that the middle half of the values has; 0 for none."""
    known = values[~np.isnan(values)]
    return NORMAL * float(np.median(np.abs(known))) if known.size else 0.0
