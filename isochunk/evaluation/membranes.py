"""How membranes look along the axis that was made up: closer to what users do next than decibels.

A membrane is a dark line in a plane. What answers to one is the largest eigenvalue of the Hessian
of the plane at a small scale, the simplest of ridge detectors (Lindeberg 1998, Int. J. Comput.
Vision 30:117). Where a volume was blurred along z, membranes across its sections fade in xz and yz
planes, and not in xy; where they were made up, they appear in the wrong place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from isochunk.evaluation.metrics import NORMAL, PLANES, ImagePlane, require_same_shape

SIGMA = 1.5
"""Scale in voxels: membranes are three to five wide."""
SHARE = 0.1
"""Share of the truth's pixels, those that answer most, that are taken for membranes."""
MOST_PLANES = 64
"""Planes of each orientation that are looked at, spread evenly."""

Response = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class MembraneFigures:
    """How a prediction's membranes compare with the truth's, in planes of some orientations."""

    strength: float
    """Mean response over the truth's: 1 as clear, less where they fade."""
    dice: float
    """Overlap of what are membranes in both, 2 |A and B| / (|A| + |B|)."""


def response(plane: NDArray[Any]) -> Response:
    """Return how much each pixel of a plane (h, w) looks like a dark line; at least 0.

    Planes are continued by reflection.
    """
    image = plane.astype(np.float32)
    hh, ww, hw = (
        ndimage.gaussian_filter(image, SIGMA, order, mode="mirror")
        for order in ((2, 0), (0, 2), (1, 1))
    )
    largest = (hh + ww) / 2 + np.sqrt(np.square((hh - ww) / 2) + np.square(hw))
    answer: Response = np.maximum(largest, 0, dtype=np.float32)
    return answer


def responses(volume: NDArray[Any], orientations: Iterable[ImagePlane]) -> Response:
    """Return the responses of planes of some orientations, one after another, as (n,)."""
    found = []
    for orientation in orientations:
        stack = np.moveaxis(volume, NORMAL[orientation], 0)
        chosen = np.unique(np.linspace(0, len(stack) - 1, MOST_PLANES).round().astype(int))
        found += [response(stack[i]).ravel() for i in chosen]
    return np.concatenate(found)


def across(degraded_axis: str) -> tuple[ImagePlane, ...]:
    """Return the orientations of planes that contain the axis that was made up."""
    return tuple(plane for plane in PLANES if degraded_axis in plane)


def membrane_figures(
    truth: NDArray[Any], prediction: NDArray[Any], degraded_axis: str
) -> MembraneFigures:
    """Compare the membranes of a prediction with the truth's, in planes of the axis made up.

    Args:
        truth: (z, y, x).
        prediction: the same shape and range.
        degraded_axis: z, or x where y and x were made up.

    Raises:
        UsageError: the shapes differ.
    """
    require_same_shape(truth, prediction)
    wanted = responses(truth, across(degraded_axis))
    found = responses(prediction, across(degraded_axis))
    level = np.quantile(wanted, 1 - SHARE)
    a, b = wanted > level, found > level
    count = int(a.sum()) + int(b.sum())
    total = float(wanted.mean(dtype=np.float64))
    return MembraneFigures(
        strength=float(found.mean(dtype=np.float64)) / total if total else 1.0,
        dice=2 * int((a & b).sum()) / count if count else 1.0,
    )


def membrane_isotropy(volume: NDArray[Any]) -> float | None:
    """Return the mean response in xz and yz planes over that in xy planes; None if there is none.

    1 where membranes are as clear along z as within sections.
    """
    lateral = float(responses(volume, ("xy",)).mean(dtype=np.float64))
    along = float(responses(volume, ("xz", "yz")).mean(dtype=np.float64))
    return along / lateral if lateral else None
