"""Which sections of a stack are lost, uneven or displaced, judged by the stack itself.

Every threshold comes from what is usual in the same volume: medians, and deviations from them that
single bad sections do not move. On a clean volume nothing is found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from isochunk.core.robust import Numbers, median_around, robust_spread
from isochunk.core.section_agreement import disagreeing
from isochunk.core.section_profile import SectionProfile
from isochunk.core.section_texture import blurred_and_noisy
from isochunk.core.sections import Section

BESIDE = 4
"""Good sections on either side with which the contrast of one is compared."""
DRIFT = 3
"""Steps on either side that say how structures drift there."""
PART = 0.75
"""Tissue left, over that on either side, below which a section is half blank."""
MOSTLY = 0.9
"""Share of a blank section that says what it is."""
FEW = 2
"""Blank sections at an end that are damaged, not padding, where they are not 0."""
CERTAIN = 5.0
"""Deviations by which what is judged alone must differ from what is usual."""
LEAST_OFFSET = 0.15
"""Change of the mean, in deviations of the tissue, below which contrast is left as it is."""
LEAST_GAIN = 0.06
"""Change of the deviation, as a share, below which contrast is left as it is."""
LEAST_SHIFT, LEAST_SHIFT_READ = 1.5, 0.25
"""Displacement that is not told, in source pixels, and in pixels of the level that was read. What
is aligned by whole pixels, as slices of an ion beam often are, has displacements of 1."""
LEAST_SECTIONS = 5
"""Sections with tissue below which there is nothing usual."""
LEAST_TILES = 8
"""Tiles in which contrast must be comparable: fewer do not tell how much they scatter."""


@dataclass(frozen=True, slots=True)
class Shift:
    """A section that lies elsewhere than the one before it, more than they drift."""

    z: int
    """Source voxel coordinate of the later one."""
    y: float
    """How far it lies from where drift would put it, in source pixels."""
    x: float
    """The same along x."""

    @property
    def pixels(self) -> float:
        """How far along both."""
        return math.hypot(self.y, self.x)


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found in a stack."""

    lost: tuple[Section, ...]
    """Sections to be filled, by rising z."""
    corrected: tuple[Section, ...]
    """Sections with a gain and an offset, by rising z."""
    shifts: tuple[Shift, ...]
    """Displacements, by rising z."""
    padding: tuple[int, ...]
    """z of blank sections before the first with tissue and after the last."""


def judge_sections(
    profiles: Sequence[SectionProfile], pixel: tuple[float, float] = (1.0, 1.0)
) -> Findings:
    """Judge every section of a stack.

    Lost are: blank sections between others; those that hold much less tissue than both sides; those
    that do not agree with their neighbours, as :func:`disagreeing` tells; those that are blurred or
    noisy and their neighbours are not. Corrected is contrast that differs in all of a section
    alike, more than structures differ. Blank sections at either end are padding, but for up to
    ``FEW`` of one grey level that is not 0: a volume is not padded with that.

    Args:
        profiles: all sections, by rising z.
        pixel: size along y and x of a pixel that was read, in source pixels.
    """
    used = [p for p in profiles if not p.blank]
    if not used:
        return Findings((), (), (), tuple(p.z for p in profiles))
    first, last = used[0].z, used[-1].z
    outside = [[p for p in profiles if p.z < first], [p for p in profiles if p.z > last]]
    padding = [p for end in outside if _is_padding(end) for p in end]
    inside = [p for p in profiles if first <= p.z <= last]
    blank = {p.z: _blank(p) for p in profiles if p.blank and p not in padding}
    lost, ends = blank, (not outside[0], not outside[1])
    if len(used) >= LEAST_SECTIONS:
        lost = blurred_and_noisy(used) | disagreeing(inside) | _half_blank(used, ends) | blank
    good = [p for p in used if p.z not in lost]
    return Findings(
        tuple(Section(z, lost=True, why=why) for z, why in sorted(lost.items())),
        _uneven(good) if len(good) >= LEAST_SECTIONS else (),
        _displaced(used, lost, pixel) if len(good) >= LEAST_SECTIONS else (),
        tuple(p.z for p in padding),
    )


def _is_padding(end: Sequence[SectionProfile]) -> bool:
    """Tell whether blank sections at an end were never recorded; else they are damaged."""
    return len(end) > FEW or any(p.black > MOSTLY for p in end)


def _blank(profile: SectionProfile) -> str:
    if profile.black > MOSTLY:
        return f"{profile.black:.0%} black"
    if profile.saturated > MOSTLY:
        return f"{profile.saturated:.0%} saturated"
    return "one grey level"


def _half_blank(used: Sequence[SectionProfile], ends: tuple[bool, bool]) -> dict[int, str]:
    """Find sections with much less tissue than there is before and after them.

    Args:
        used: sections with tissue.
        ends: whether the first and the last are those of the volume. Then they are compared with
            the others; else padding begins there, and tissue may taper to it.
    """
    tissue = np.array([p.tissue for p in used])
    found = {}
    for i in range(len(used)):
        sides = [tissue[max(0, i - BESIDE) : i], tissue[i + 1 : i + 1 + BESIDE]]
        if i == 0 and ends[0]:
            sides[0] = _continued(sides[1])
        elif i == len(used) - 1 and ends[1]:
            sides[1] = _continued(sides[0][::-1])
        usual = min((float(np.median(side)) for side in sides if len(side)), default=0.0)
        if all(map(len, sides)) and tissue[i] < PART * usual:
            found[used[i].z] = f"tissue in {tissue[i]:.0%} of it beside {usual:.0%}"
    return found


def _continued(tissue: Numbers) -> Numbers:
    """Return how much tissue there is beyond the end where it changes on as it does beside it."""
    return tissue[:1] - (np.max(tissue) - np.min(tissue))


def _uneven(good: Sequence[SectionProfile]) -> tuple[Section, ...]:
    """Find contrast that differs from that of the sections beside.

    Twice: those that were found first are no measure for the others, where enough are left.
    """
    found = [_correction(good, i, set()) for i in range(len(good))]
    suspects = {i for i, section in enumerate(found) if section is not None}
    again = (_correction(good, i, suspects) for i in range(len(good))) if suspects else found
    return tuple(section for section in again if section is not None)


def _correction(good: Sequence[SectionProfile], i: int, suspects: set[int]) -> Section | None:
    """Return what makes the contrast of a section that of those beside it; None if it is so.

    Structures change one tile or another; illumination and staining change all of them. How much
    the tiles disagree on the change says how much of it structures explain. A gain changes steps
    between pixels as much as contrast; blur changes them more, and noise the other way.
    """
    own = good[i]
    near = [j for j in range(max(0, i - BESIDE), min(len(good), i + BESIDE + 1)) if j != i]
    trusted = [j for j in near if j not in suspects]
    beside = [good[j] for j in (trusted if len(trusted) >= BESIDE else near)]
    means, deviations = np.array(own.tile_means), np.array(own.tile_deviations)
    means_beside = np.array([p.tile_means for p in beside])
    enough = (deviations > 0) & (np.sum(~np.isnan(means_beside), 0) > len(beside) / 2)
    rough = float(np.median([p.roughness for p in beside]))
    if np.count_nonzero(enough) < LEAST_TILES or not min(own.roughness, rough) > 0:
        return None
    usual = np.nanmedian(means_beside[:, enough], 0)
    contrast = float(np.median([p.deviation for p in beside]))
    change, error = _common(usual - means[enough])
    moved = abs(change) > max(LEAST_OFFSET * contrast, CERTAIN * error)
    ratios = np.nanmedian(np.array([p.tile_deviations for p in beside])[:, enough], 0)
    stretch, error = _common(np.log(np.maximum(ratios, 1e-6) / deviations[enough]))
    fine = math.log(rough / own.roughness)
    alike = abs(fine - stretch) < max(LEAST_GAIN, abs(stretch) / 2)
    stretched = abs(stretch) > max(LEAST_GAIN, CERTAIN * error) and alike
    if not moved and not stretched:
        return None
    gain = round(math.exp(stretch), 4) if stretched else 1.0
    offset = round(float(np.median(usual - gain * means[enough])), 2)
    why = f"contrast: mean {own.mean:.0f} beside {np.median([p.mean for p in beside]):.0f}"
    if stretched:
        why += f", deviation {own.deviation:.0f} beside {contrast:.0f}"
    return Section(own.z, gain=gain, offset=offset, why=why)


def _common(changes: Numbers) -> tuple[float, float]:
    """Return the change that tiles have in common, and its standard error by their scatter."""
    middle = float(np.median(changes))
    error = math.sqrt(math.pi / 2 / len(changes))  # of a median, over the deviation
    return middle, error * robust_spread(changes - middle)


def _displaced(
    used: Sequence[SectionProfile], lost: dict[int, str], pixel: tuple[float, float]
) -> tuple[Shift, ...]:
    """Find steps between sections that are larger than the drift of structures explains."""
    kept = [
        p.shift if p.z not in lost and before.z not in lost else (math.nan, math.nan)
        for before, p in pairwise(used)
    ]
    steps = np.array(kept) * pixel
    rest = np.stack([column - median_around(column, DRIFT) for column in steps.T], 1)
    spread = max(robust_spread(column) for column in rest.T)
    length = np.hypot(rest[:, 0], rest[:, 1])
    limit = max(LEAST_SHIFT, LEAST_SHIFT_READ * max(pixel), CERTAIN * spread)
    return tuple(
        Shift(used[i + 1].z, float(rest[i, 0]), float(rest[i, 1]))
        for i in np.flatnonzero(length > limit).tolist()
    )
