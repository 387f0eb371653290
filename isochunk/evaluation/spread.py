"""How far a gain depends on where one looks: the bootstrap over crops of a volume.

One figure of one volume says nothing of how another part of the tissue would have come out. Crops
are drawn with replacement, as many as there are, again and again, and the gain is computed anew
(Efron 1979, Ann. Statist. 7:1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isochunk.evaluation.metrics import require_same_shape

CROP = 32
"""Edge of a crop in voxels, less at the far ends."""
DRAWS = 2000
SEED = 0
TAILS = (2.5, 97.5)
"""Percentiles between which 95 % of the draws lie."""


@dataclass(frozen=True, slots=True)
class Gain:
    """How much better a prediction is than a reference, in dB of the mean square error."""

    db: float
    """Over all voxels; 0 where both are as far from the truth."""
    low: float
    """Below it lie 2.5 % of the draws."""
    high: float
    """Above it lie 2.5 % of them."""


def squared_errors(truth: NDArray[Any], prediction: NDArray[Any]) -> NDArray[np.float64]:
    """Return the sum of squared errors of each crop.

    Args:
        truth: (z, y, x).
        prediction: the same shape.

    Returns:
        (crops,), in the order of their places.

    Raises:
        UsageError: the shapes differ.
    """
    require_same_shape(truth, prediction)
    edges = [np.arange(0, n, CROP) for n in truth.shape]
    slabs = []
    for start in edges[0]:
        part = slice(start, start + CROP)
        square = np.square(truth[part].astype(np.float32) - prediction[part]).sum(
            0, dtype=np.float64
        )
        slabs.append(np.add.reduceat(np.add.reduceat(square, edges[1], 0), edges[2], 1))
    return np.stack(slabs).ravel()


def gain(own: NDArray[np.float64], reference: NDArray[np.float64]) -> Gain:
    """Return the gain over a reference, and how far it spreads over crops.

    Args:
        own: :func:`squared_errors` of the prediction.
        reference: that of what it is compared with, of the same truth.
    """
    crops = len(own)
    drawn = np.random.default_rng(SEED).integers(crops, size=(DRAWS, crops))
    gains = _decibels(own[drawn].sum(1), reference[drawn].sum(1))
    low, high = np.percentile(gains, TAILS, method="nearest")  # which may be infinite
    return Gain(float(_decibels(own.sum(), reference.sum())), float(low), float(high))


def _decibels(own: Any, reference: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = 10 * np.log10(reference / own)
    return np.where(own == reference, 0.0, found)
