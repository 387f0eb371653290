"""Sections made again of target voxels, and how far they are from those that were read. Pure.

A model restores what sections lost. What they did not lose it should keep: its output, made coarse
as its phase says, ought to be its input. ``mean``: section ``i`` is the mean of target voxels
``[i r, (i + 1) r)``; ``sample``: it is the target at ``i r``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isochunk.core.geometry import Box, ceil_div
from isochunk.core.spec import ModelSpec, Phase
from isochunk.errors import ModelError

PASSED_THROUGH = Fraction(1)
"""Factor of an axis that is left as it is."""

WHOLE = Fraction(0)
"""Offset of sections that lie where their number says."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """How far sections made of the output are from those that were read, over some boxes."""

    voxels: int = 0
    """Source voxels compared."""
    squares: float = 0.0
    """Sum of the squared differences, in grey levels of the source."""
    worst_rms: float = 0.0
    """Root mean square difference in the worst box, in grey levels."""
    worst_box: Box | None = None
    """Where that is, in source voxels."""
    worst_section_rms: float = 0.0
    """Root mean square difference in the worst section of any box."""
    worst_section: int | None = None
    """Source coordinate z of that section."""

    def __add__(self, other: Consistency) -> Consistency:
        """Join two figures."""
        box = max(self, other, key=lambda c: c.worst_rms)
        section = max(self, other, key=lambda c: c.worst_section_rms)
        return Consistency(
            self.voxels + other.voxels,
            self.squares + other.squares,
            box.worst_rms,
            box.worst_box,
            section.worst_section_rms,
            section.worst_section,
        )

    @property
    def rms(self) -> float:
        """Root mean square difference in grey levels; 0 where nothing was compared."""
        return math.sqrt(self.squares / self.voxels) if self.voxels else 0.0

    def summary(self) -> dict[str, Any]:
        """Return the figure as JSON."""
        return {
            "voxels": self.voxels,
            "rms": round(self.rms, 4),
            "worst_rms": round(self.worst_rms, 4),
            "worst_box": None if self.worst_box is None else str(self.worst_box),
            "worst_section_rms": round(self.worst_section_rms, 4),
            "worst_section": self.worst_section,
        }


def compare_sections(made: NDArray[np.floating[Any]], read: NDArray[Any], box: Box) -> Consistency:
    """Compare sections made of the output with those that were read.

    Args:
        made: (z, y, x), grey levels of the source.
        read: as stored, of the same shape.
        box: where they lie, in source voxels.
    """
    squares = np.square(made - read.astype(np.float32)).mean((1, 2), dtype=np.float64)
    worst = int(squares.argmax())
    return Consistency(
        voxels=read.size,
        squares=float(squares.mean()) * read.size,
        worst_rms=math.sqrt(float(squares.mean())),
        worst_box=box,
        worst_section_rms=math.sqrt(float(squares[worst])),
        worst_section=box.lo[0] + worst,
    )


def span_of_sections(lo: int, hi: int, factor: Fraction, phase: Phase) -> tuple[int, int]:
    """Return the first target voxel that sections ``lo..hi`` are made of, and one past the last."""
    if phase == "mean":
        return math.floor(lo * factor), math.ceil(hi * factor)
    return math.floor(lo * factor), math.ceil((hi - 1) * factor) + 1


def sections_of(
    target: NDArray[Any],
    origin: int,
    sections: range,
    factor: Fraction,
    phase: Phase,
    shift: Fraction = WHOLE,
) -> NDArray[np.float32]:
    """Make sections of target voxels.

    ``mean`` weighs voxels by the length of the overlap, ``sample`` interpolates linearly between
    the two around a place that is no whole voxel.

    Args:
        target: (z, y, x), all of :func:`span_of_sections` at least.
        origin: target coordinate z of its first voxel.
        sections: source coordinates z, one by one.
        factor: target voxels per section.
        phase: where sections lie.
        shift: target voxels by which they lie farther along z than their number says.

    Returns:
        (len(sections), y, x).
    """
    # In units of 1 / unit voxel all edges are whole numbers, so nothing is rounded before the end.
    unit = math.lcm(factor.denominator, shift.denominator)
    thick, first = int(factor * unit), int((shift - origin) * unit)
    made = np.zeros((len(sections), *target.shape[1:]), np.float32)
    for section, z in zip(made, sections, strict=True):
        start = z * thick + first
        if phase == "mean":
            voxel = np.arange(max(0, start // unit), min(-(-(start + thick) // unit), len(target)))
            weight = np.minimum(start + thick, (voxel + 1) * unit) - np.maximum(start, voxel * unit)
            share = weight / thick
        else:
            voxel = np.arange(max(0, start // unit), min(-(-start // unit) + 1, len(target)))
            share = 1 - np.abs(voxel * unit - start) / unit
        for k, part in zip(voxel, share.astype(np.float32), strict=True):
            section += part * target[k]
    return made


def why_not_consistent(spec: ModelSpec) -> str:
    """Say why a model's answer cannot be made consistent with its input; empty where it can.

    Args:
        spec: of the model, its factor resolved.
    """
    z, y, x = spec.resolved_factor
    if spec.phase != "mean":
        return "its sections are samples, which it should keep by itself"
    if z == PASSED_THROUGH or z.denominator != 1:
        return f"its factor along z is {z}, not a whole number above 1"
    if (y, x) != (PASSED_THROUGH, PASSED_THROUGH):
        return f"it changes y and x too, by {y} and {x}"
    return ""


def require_consistent(spec: ModelSpec) -> None:
    """Check that a model's answer can be made consistent with its input.

    Raises:
        ModelError: it cannot be.
    """
    if reason := why_not_consistent(spec):
        raise ModelError(
            f"--consistent cannot be done with model {spec.name!r}: {reason}; leave it out, or "
            "choose a model for sections that are means, at a whole factor along z alone"
        )


def whole_sections(target: Box, factor: int) -> tuple[Box, Box]:
    """Extend a target box to the ends of the sections that it touches.

    Args:
        target: any box.
        factor: target voxels per section; y and x have none.

    Returns:
        The target voxels of those sections, and the sections themselves in source voxels.
    """
    (z0, y0, x0), (z1, y1, x1) = target.lo, target.hi
    first, last = z0 // factor, ceil_div(z1, factor)
    whole = Box((first * factor, y0, x0), (last * factor, y1, x1))
    return whole, Box((first, y0, x0), (last, y1, x1))


def add_back(answer: Any, sections: Any, factor: int) -> Any:
    """Add to whole sections of an answer what its means lack of the input, voxel by voxel along z.

    Sums are taken in one order, so that a voxel's answer does not depend on how a volume is cut.

    Args:
        answer: (factor * n, y, x), a float array of numpy or torch.
        sections: (n, y, x), the input on the same scale.
        factor: target voxels per section.

    Returns:
        Shape and type of ``answer``.
    """
    count, height, width = sections.shape
    groups = answer.reshape(count, factor, height, width)
    total = groups[:, 0]
    for k in range(1, factor):
        total = total + groups[:, k]
    return (groups + (sections - total / factor)[:, None]).reshape(answer.shape)
