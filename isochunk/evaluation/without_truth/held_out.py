"""The test on held-out sections: every second one left out, restored, and compared.

For samples that is what it seems: the model gets sections twice as far apart. Sections that are
means are not: what is left in has half the thickness that a model for twice the spacing expects, so
it sees more detail and more noise than it should, and the figure is no more than a hint.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from isochunk.core.consistency import sections_of
from isochunk.core.geometry import Triple
from isochunk.core.spec import ModelSpec, Phase, VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.evaluation.ground_truth import EDGE_SECTIONS
from isochunk.evaluation.metrics import decibels
from isochunk.evaluation.restore import predict_volume
from isochunk.evaluation.without_truth.sampling import in_memory
from isochunk.models.interface import Predictor

LEAST_SECTIONS = 4 * EDGE_SECTIONS + 2
"""Sections that a box needs: the first and last two of those left in are not compared between."""

LIMITS = {
    "mean": "Sections are means over their thickness, and those left in are half as thick as "
    "models expect at twice the spacing: held-out figures compare models, and are no PSNR of a "
    "run.",
    "sample": "",
}
"""What to think of the figure, by where sections lie."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Squared differences from sections that were left out."""

    squares: float = 0.0
    """Their sum, in squared grey levels."""
    voxels: int = 0
    """Voxels compared."""

    def __add__(self, other: HeldOut) -> HeldOut:
        """Join two boxes."""
        return HeldOut(self.squares + other.squares, self.voxels + other.voxels)

    def psnr(self, data_range: float) -> float | None:
        """Return the PSNR in dB; None where nothing was compared."""
        if not self.voxels:
            return None
        return decibels(self.squares / self.voxels / data_range**2)


def why_none_held_out(spec: ModelSpec, sections: int, *, fixed: bool) -> str:
    """Say why no sections can be held out for a model; empty where they can.

    Args:
        spec: of the model, its factor resolved.
        sections: that a box has.
        fixed: whether the model takes no other factor.
    """
    factor = spec.resolved_factor[0]
    if fixed:
        return f"it restores factor {factor} alone, and sections left in are {2 * factor} apart"
    if sections < LEAST_SECTIONS:
        return f"boxes have {sections} sections; {LEAST_SECTIONS} are needed"
    return ""


def beyond_training(spec: ModelSpec) -> str:
    """Say that twice the spacing is more than a model was trained for; empty where it is not."""
    twice = 2 * spec.resolved_factor[0]
    taught = spec.trained_factors
    if taught is None or twice <= taught[1]:
        return ""
    return f"measured at factor {twice}, beyond the {taught[0]} to {taught[1]} it was trained for"


def hold_out(
    predictor: Predictor, voxels: Voxels, spec: VolumeSpec, phase: Phase, block: Triple
) -> HeldOut:
    """Restore every second section from the others.

    Args:
        predictor: a model for twice the spacing.
        voxels: (z, y, x), at least :data:`LEAST_SECTIONS` sections.
        spec: of the source.
        phase: where sections lie.
        block: target voxels at a time.
    """
    restored = predict_volume(predictor, in_memory(voxels[::2], spec), block)
    factor: Fraction = predictor.spec.resolved_factor[0] / 2
    # A model for means puts the middle of a thin section where that of a thick one would be.
    shift = factor / 2 if phase == "mean" else Fraction(0)
    first, last = 2 * EDGE_SECTIONS, len(voxels) - 2 * EDGE_SECTIONS
    made = sections_of(restored, 0, range(first, last), factor, phase, shift)
    wanted, found = voxels[first:last][1::2], np.rint(made[1::2])
    squares = np.square(found - wanted.astype(np.float32)).sum(dtype=np.float64)
    return HeldOut(float(squares), wanted.size)
