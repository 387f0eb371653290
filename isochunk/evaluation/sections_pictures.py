"""The pictures of an inspection's page: profiles along z, and sections beside their neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from isochunk.core.geometry import Box
from isochunk.core.sections import Section
from isochunk.engine.inspection import Inspection
from isochunk.evaluation.pictures import Image
from isochunk.pages.templates import data_uri
from isochunk.storage.volume import Volume

Grey: TypeAlias = NDArray[np.float32]
Read: TypeAlias = Callable[[int], Grey]
"""Reads the thumbnail of a section by z."""

WORST = 24
"""Sections that are shown at most."""
EDGE = 280
"""Pixels along a thumbnail's longer side, about."""
DEVIATIONS = 2.5
"""Deviations from the mean that are drawn black and white."""
INCHES = (11.0, 2.1)
"""Size of a profile."""
INK, LINE = "#808080", "#2F8FD0"
"""Readable on white and on black."""
MARKS = {"lost": "#D55E00", "corrected": "#009E73", "shifts": "#CC79A7"}
"""Colours of what was found."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A section that differs, as the page shows it."""

    z: int
    """Source voxel coordinate."""
    what: str
    """What is done about it."""
    why: str
    """What was seen."""
    images: tuple[Image, ...]
    """The good one before, itself, the good one after, and what is used instead where it is not."""


def draw_profiles(found: Inspection) -> list[Image]:
    """Draw mean, deviation, agreement and shift of all sections along z."""
    profiles = found.profiles
    shifts = [math.hypot(*p.shift) for p in profiles]
    drawn = {
        "mean of the tissue, grey levels": [p.mean for p in profiles],
        "deviation of the tissue, grey levels": [p.deviation for p in profiles],
        "agreement with the section before": [p.before[0] for p in profiles],
        f"step from the section before, pixels of level {found.reading.level}": shifts,
    }
    return [_draw_profile(found, title, values) for title, values in drawn.items()]


def draw_worst(found: Inspection, volume: Volume) -> list[Shown]:
    """Read the sections that differ most once more, and draw them beside their neighbours.

    Raises:
        StorageError: one cannot be read.
    """
    lost = {s.z for s in found.findings.lost}
    good = [p.z for p in found.profiles if not p.blank and p.z not in lost]
    window = found.reading.windows[0]
    step = max(1, round(max(window.shape[1:]) / EDGE))

    def read(z: int) -> Grey:
        box = Box((z, *window.lo[1:]), (z + 1, *window.hi[1:]))
        return volume.read(box, found.reading.level)[0, ::step, ::step].astype(np.float32)

    means, deviations = zip(*((p.mean, p.deviation) for p in found.profiles), strict=True)
    middle, reach = np.nanmedian(means), DEVIATIONS * np.nanmedian(deviations)
    limits = float(middle - reach), float(middle + reach)
    return [_show(item, good, read, limits) for item in worst_sections(found)]


def worst_sections(found: Inspection) -> list[tuple[Section, str]]:
    """Choose sections to be shown, by rising z: what was found of each kind, the largest first.

    Returns:
        At most ``WORST`` sections and their kinds; a shift as a section that is used as it is.
    """
    findings = found.findings
    blank = {p.z for p in found.profiles if p.blank}
    lost = sorted(findings.lost, key=lambda s: s.z in blank)  # a blank one shows nothing
    corrected = sorted(
        findings.corrected, key=lambda s: -abs(s.offset) - abs(math.log(s.gain)) * 100
    )
    shifts = [
        Section(s.z, why=f"lies {s.y:.1f}, {s.x:.1f} pixels (y, x) from where drift would put it")
        for s in sorted(findings.shifts, key=lambda s: -s.pixels)
    ]
    kinds = {"lost": lost, "corrected": corrected, "shifts": shifts}
    chosen = [(s, kind) for kind, some in kinds.items() for s in some[: WORST // len(kinds)]]
    more = [(s, kind) for kind, some in kinds.items() for s in some[WORST // len(kinds) :]]
    return sorted(chosen + more[: WORST - len(chosen)], key=lambda item: item[0].z)


def _show(
    item: tuple[Section, str], good: Sequence[int], read: Read, limits: tuple[float, float]
) -> Shown:
    section, kind = item
    z = section.z
    before = max((i for i in good if i < z), default=None)
    after = min((i for i in good if i > z), default=None)
    sides = [i for i in (before, after) if i is not None]
    greys = {i: read(i) for i in (*sides, z)}
    names = {before: f"z = {before}", z: f"z = {z}, as stored", after: f"z = {after}"}
    images = [_draw(greys[i], names[i], limits) for i in (before, z, after) if i is not None]
    if kind == "lost" and sides:
        what = "filled from " + " and ".join(f"z = {i}" for i in sides)
        images.append(_draw(_filled(z, sides, greys), "filled", limits))
    elif kind == "corrected":
        sign = "-" if section.offset < 0 else "+"
        what = f"used is {section.gain:.4g} * v {sign} {abs(section.offset):.4g}"
        used = np.float32(section.gain) * greys[z] + np.float32(section.offset)
        images.append(_draw(used, "corrected", limits))
    else:
        what = "used as it is" if kind == "shifts" else "nothing to fill it from"
    return Shown(z, what, section.why, tuple(images))


def _filled(z: int, sides: Sequence[int], greys: dict[int, Grey]) -> Grey:
    """Interpolate along z, or repeat the only neighbour."""
    first, last = greys[sides[0]], greys[sides[-1]]
    share = np.float32(0 if len(sides) == 1 else (z - sides[0]) / (sides[1] - sides[0]))
    return first + share * (last - first)


def _draw(values: Grey, caption: str, limits: tuple[float, float]) -> Image:
    buffer = BytesIO()
    imsave(buffer, values, vmin=limits[0], vmax=limits[1], cmap="gray", format="png")
    return Image(caption, data_uri(buffer, "png"), caption)


def _draw_profile(found: Inspection, title: str, values: Sequence[float]) -> Image:
    figure = Figure(figsize=INCHES, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    z = [p.z for p in found.profiles]
    axes.plot(z, values, color=LINE, linewidth=1.2)
    for kind, colour in MARKS.items():
        named = [s.z for s in getattr(found.findings, kind)]
        marked = np.full(len(named), axes.get_ylim()[0])
        if named:
            axes.plot(named, marked, "^", color=colour, label=kind, clip_on=False, markersize=5)
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.set_xlim(z[0], max(z[-1], z[0] + 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper right", ncols=3)
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Image(title, data_uri(buffer, "svg+xml"))
