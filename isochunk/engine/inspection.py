"""Every section of a volume read once, coarsely, and judged: what is lost, uneven or displaced."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np

from isochunk.core.codec import JsonObject
from isochunk.core.geometry import Box, Triple, ceil_div, triple
from isochunk.core.section_judging import Findings, judge_sections
from isochunk.core.section_profile import SectionProfile, profile_sections
from isochunk.core.sections import SectionTable
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import UsageError
from isochunk.host.files import write_atomically
from isochunk.storage.open import check_supported
from isochunk.storage.volume import Volume

log = logging.getLogger(__name__)

SECTION_VOXELS = 1 << 20
"""Voxels read of a section at most, but for one window of a chunk."""
WINDOW_EDGE = 128, 1024
"""Edge of a window where only some of a section is read: whole chunks, but for larger ones."""
SLAB = 64
"""Sections held at most, where chunks are thicker."""
LEAST_POOLED = 48
"""Means of pixels along a window's edge that are left when noise is averaged away."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What the sections seem to be of what an isotropic volume would hold."""

    degradation: str | None
    """``avg``, ``skip`` or ``psf``; None where it cannot be told."""
    factor: Fraction
    """Thickness of a section over the width of a pixel."""
    reason: str
    """Why, for people."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Which voxels stand for the sections of a volume."""

    level: int
    """Level of the volume, as deep along z as the finest."""
    windows: tuple[Box, ...]
    """Boxes of that level, of one size, that reach through all sections."""
    whole: bool
    """Whether they are all of the sections."""
    bytes_read: int
    """Voxels in them, in bytes before compression."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in a volume."""

    url: str
    """The volume."""
    reading: Reading
    """What was read of it."""
    profiles: tuple[SectionProfile, ...]
    """Every section as measured."""
    findings: Findings
    """Every section as judged."""
    suggestion: Suggestion
    """What its sections are."""

    @property
    def table(self) -> SectionTable:
        """The sections that should not be used as they are stored."""
        named = (*self.findings.lost, *self.findings.corrected)
        return SectionTable(self.url, tuple(sorted(named, key=lambda s: s.z)))

    def write(self, path: str) -> None:
        """Write the section table as TOML, for people to look through.

        Raises:
            UsageError: the file cannot be written.
        """
        content = self.table.text(len(self.profiles)).encode()
        try:
            write_atomically(Path(path), lambda file: file.write(content))
        except OSError as error:
            raise UsageError(
                f"{path} cannot be written: {error.strerror}; choose another --out"
            ) from error

    def summary(self) -> JsonObject:
        """Return the JSON object of ``isochunk inspect``; shifts in source pixels."""
        found, told = self.findings, self.suggestion
        return {
            "url": self.url,
            "sections": len(self.profiles),
            "level": self.reading.level,
            "bytes_read": self.reading.bytes_read,
            "lost": [s.z for s in found.lost],
            "corrected": [{"z": s.z, "gain": s.gain, "offset": s.offset} for s in found.corrected],
            "shifts": [
                {"z": s.z, "y": round(s.y, 2), "x": round(s.x, 2), "pixels": round(s.pixels, 2)}
                for s in found.shifts
            ],
            "suggestion": {
                "degradation": told.degradation,
                "factor": float(told.factor),
                "reason": told.reason,
            },
        }


def inspect_volume(volume: Volume, box: Box | None = None, level: int | None = None) -> Inspection:
    """Read every section of a volume, coarsely, and judge each by the others.

    A slab of chunks is held at a time, of up to ``SLAB`` sections of ``SECTION_VOXELS``.

    Args:
        volume: what to inspect.
        box: source voxels to look at; None for all.
        level: which level to read; None for the finest on which a section is small, or else the
            coarsest there is of all sections.

    Raises:
        UsageError: the voxels are of a type that cannot be made isotropic, the box is outside, or
            the level does not hold every section.
        StorageError: a box cannot be read.
    """
    spec = volume.spec
    check_supported(spec)
    reading = plan_reading(spec, box, level)
    chosen = spec.levels[reading.level]
    depth = reading.windows[0].shape[0]
    log.info(
        "reading %d sections of %s at level %d, %s: %d bytes before compression",
        depth,
        spec.url,
        reading.level,
        "whole" if reading.whole else f"{len(reading.windows)} windows of each",
        reading.bytes_read,
    )
    pool = pooling(chosen, reading.windows[0].shape)
    profiles = tuple(profile_sections(_sections(volume, reading), pool))
    pixel = _pixel(spec, chosen)
    findings = judge_sections(profiles, (float(pixel[0]), float(pixel[1])))
    if findings.padding:
        log.info("%d blank sections at the ends are taken as padding", len(findings.padding))
    for section in (*findings.lost, *findings.corrected):
        log.debug("section %d: %s", section.z, section.why)
    return Inspection(spec.url, reading, profiles, findings, suggest(spec))


def plan_reading(spec: VolumeSpec, box: Box | None, level: int | None) -> Reading:
    """Choose the level and the windows that stand for a volume's sections.

    Args:
        spec: the volume.
        box: source voxels to look at; None for all.
        level: which level; None for the finest whose sections have at most ``SECTION_VOXELS``, or
            else for the coarsest, of which windows of whole chunks are read, spread evenly.

    Raises:
        UsageError: the box is outside, or the level does not hold every section.
    """
    whole = spec.box if box is None else box
    if whole not in spec.box or whole.size == 0:
        raise UsageError(f"--box {whole} is not inside {spec.url}, {spec.box}; choose one that is")
    complete = [
        i
        for i, own in enumerate(spec.levels)
        if own.spacing.z == spec.spacing.z
        and (own.box.lo[0], own.box.hi[0]) == (spec.box.lo[0], spec.box.hi[0])
    ]
    boxes = {i: _on_level(whole, spec, spec.levels[i]) for i in complete}
    if level is None:
        small = [i for i in complete if boxes[i].shape[1] * boxes[i].shape[2] <= SECTION_VOXELS]
        level = small[0] if small else complete[-1]
    elif level not in complete:
        raise UsageError(
            f"level {level} of {spec.url} does not hold every section; choose --level from "
            f"{', '.join(map(str, complete))}, or leave it out"
        )
    windows = spread_windows(boxes[level], spec.levels[level])
    size = sum(w.size for w in windows) * spec.itemsize
    return Reading(level, windows, windows == (boxes[level],), size)


def spread_windows(box: Box, level: LevelSpec) -> tuple[Box, ...]:
    """Return boxes of one size that reach through all sections and hold few voxels of each.

    The whole box where a section of it has at most ``SECTION_VOXELS``; otherwise as many whole
    chunks as that, spread evenly, or a part of one where chunks are larger still.
    """
    _, height, width = box.shape
    if height * width <= SECTION_VOXELS:
        return (box,)
    least, most = WINDOW_EDGE
    cells = [c * ceil_div(least, c) for c in level.chunk[1:]]
    edges = [min(c, n, most) for c, n in zip(cells, (height, width), strict=True)]
    across = max(1, int(math.sqrt(SECTION_VOXELS / (edges[0] * edges[1]))))
    axes = zip(box.lo[1:], box.hi[1:], level.box.lo[1:], cells, edges, strict=True)
    starts = [_spread(range(lo, hi), grid, cell, edge, across) for lo, hi, grid, cell, edge in axes]
    return tuple(
        Box((box.lo[0], y, x), (box.hi[0], y + edges[0], x + edges[1])) for y, x in product(*starts)
    )


def _spread(axis: range, grid: int, cell: int, edge: int, count: int) -> list[int]:
    """Return where up to ``count`` windows start: on cells of a grid, if a whole one is inside."""
    aligned = grid + ceil_div(axis.start - grid, cell) * cell
    starts = range(aligned, axis.stop - edge + 1, cell) or range(axis.start, axis.start + 1)
    wanted = min(count, len(starts))
    return [starts[(2 * i + 1) * len(starts) // (2 * wanted)] for i in range(wanted)]


def pooling(level: LevelSpec, window: Triple) -> int:
    """Return how many pixels are as wide as a section is thick, or fewer in small windows."""
    thick = round(level.spacing.z / max(level.spacing.y, level.spacing.x))
    return max(1, min(thick, min(window[1:]) // LEAST_POOLED))


def _pixel(spec: VolumeSpec, level: LevelSpec) -> tuple[Fraction, Fraction]:
    """Return the size along y and x of a level's pixel, in source pixels."""
    return level.spacing.y / spec.spacing.y, level.spacing.x / spec.spacing.x


def _on_level(box: Box, spec: VolumeSpec, level: LevelSpec) -> Box:
    """Return the voxels of a level of whole sections that a source box overlaps."""
    scale = (Fraction(1), *_pixel(spec, level))
    lo = triple(math.floor(a / s) for a, s in zip(box.lo, scale, strict=True))
    hi = triple(math.ceil(b / s) for b, s in zip(box.hi, scale, strict=True))
    return Box(lo, hi) & level.box


def _sections(volume: Volume, reading: Reading) -> Iterator[tuple[int, Voxels]]:
    """Yield each z and its windows; chunks are read once, a slab of them at a time."""
    first = reading.windows[0]
    thick = min(SLAB, volume.spec.levels[reading.level].chunk[0])
    start = volume.spec.levels[reading.level].box.lo[0]
    for slab in _slabs(first.lo[0], first.hi[0], thick, start):
        stack = np.stack(
            [
                volume.read(Box((slab[0], *w.lo[1:]), (slab[1], *w.hi[1:])), reading.level)
                for w in reading.windows
            ],
            axis=1,
        )
        yield from zip(range(*slab), stack, strict=True)


def _slabs(lo: int, hi: int, thick: int, origin: int) -> Iterator[tuple[int, int]]:
    """Cut z where chunks meet."""
    while lo < hi:
        end = min(hi, origin + ((lo - origin) // thick + 1) * thick)
        yield lo, end
        lo = end


def suggest(spec: VolumeSpec) -> Suggestion:
    """Say what is known of what the sections are."""
    factor = spec.spacing.z / max(spec.spacing.y, spec.spacing.x)
    if factor <= 1:
        return Suggestion(None, factor, "isotropic already: sections are no thicker than pixels")
    return Suggestion(
        None,
        factor,
        "not measured: grey levels of coarse sections do not tell a mean over the thickness (avg) "
        "from a sample of it (skip); the microscope does",
    )
