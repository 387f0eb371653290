"""The worst place of a box in three planes: where sections made of the outputs are least the input.

The place is that of the networks together, so that all models are seen at the same one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from isochunk.core.geometry import Box
from isochunk.core.voxels import Voxels
from isochunk.evaluation.metrics import NORMAL, PLANES, ImagePlane
from isochunk.evaluation.without_truth.results import Place

NEIGHBOURHOOD = 17
"""Edge of the square over which squared differences are averaged, to find a place and no pixel."""

MAX_EDGE = 256
"""Largest edge of a picture, around the place."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A box and what models made of it."""

    box: Box
    """Source voxels."""
    voxels: Voxels
    """(z, y, x)."""
    restored: Mapping[str, Voxels]
    """Target voxels by model, (z, y, x)."""
    made: Mapping[str, NDArray[np.float32]]
    """Sections made of them; those that target voxels cover whole, from the first on."""
    networks: tuple[str, ...]
    """Those of the models that are no interpolations."""


def worst_place(seen: Seen, factor: Fraction) -> Place:
    """Find the worst place of a box and cut its planes out."""
    names = seen.networks or ("cubic",)
    differences = {
        name: np.abs(made - seen.voxels[: len(made)]) for name, made in seen.made.items()
    }
    squares = np.mean([np.square(differences[name]) for name in names], axis=0)
    by_section = squares.mean((1, 2))
    z = int(by_section.argmax())
    around = uniform_filter(squares[z], NEIGHBOURHOOD, mode="reflect")
    y, x = np.unravel_index(int(around.argmax()), around.shape)
    target_z = min(
        int((z + Fraction(1, 2)) * factor), *(len(v) - 1 for v in seen.restored.values())
    )
    fine, coarse = (target_z, int(y), int(x)), (z, int(y), int(x))
    return Place(
        box=seen.box,
        section=seen.box.lo[0] + z,
        rms=math.sqrt(float(by_section[z])),
        source=_repeated(seen.voxels, coarse, factor),
        restored={name: _planes(v, fine) for name, v in seen.restored.items()},
        difference={name: _repeated(v, coarse, factor) for name, v in differences.items()},
    )


def _planes(voxels: NDArray[Any], at: tuple[int, int, int]) -> dict[ImagePlane, NDArray[Any]]:
    """Return the three planes through a voxel, cut around it."""
    around = []
    for n, place in zip(voxels.shape, at, strict=True):
        start = min(max(0, place - MAX_EDGE // 2), max(0, n - MAX_EDGE))
        around.append(slice(start, start + MAX_EDGE))
    planes: dict[ImagePlane, NDArray[Any]] = {}
    for plane in PLANES:
        index: list[Any] = list(around)
        index[NORMAL[plane]] = at[NORMAL[plane]]
        planes[plane] = voxels[tuple(index)].copy()
    return planes


def _repeated(
    sections: NDArray[Any], at: tuple[int, int, int], factor: Fraction
) -> dict[ImagePlane, NDArray[Any]]:
    """Return the three planes through a voxel of sections, repeated to the target's voxels."""
    # In whole numbers, as sections and target voxels meet.
    count = int(len(sections) * factor)
    rows = np.arange(count) * factor.denominator // factor.numerator
    target_z = min(int((at[0] + Fraction(1, 2)) * factor), count - 1)
    return _planes(sections[rows], (target_z, *at[1:]))
