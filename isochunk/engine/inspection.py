"""Every section of a volume read once, coarsely, and judged: what is lost, uneven or displaced."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

from isochunk.core.codec import JsonObject
from isochunk.core.geometry import Box, Triple
from isochunk.core.section_judging import Findings, judge_sections
from isochunk.core.section_profile import LAGS, SectionProfile, profile_sections
from isochunk.core.sections import SectionTable
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.engine.section_reading import (
    Reading,
    Slab,
    pixel_of,
    plan_reading,
    read_sections,
)
from isochunk.errors import UsageError
from isochunk.host.files import write_atomically
from isochunk.storage.open import check_supported
from isochunk.storage.volume import Volume

log = logging.getLogger(__name__)

LEAST_POOLED = 48
"""Means of pixels along a window's edge that are left when noise is averaged away."""


Measure: TypeAlias = Callable[[Reading, int], tuple[SectionProfile, ...]]
"""Measures what is to be read, with means of so many pixels along each side."""


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
            "padding": list(found.padding),
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


def inspect_volume(
    volume: Volume,
    box: Box | None = None,
    level: int | None = None,
    measure: Measure | None = None,
) -> Inspection:
    """Read every section of a volume, coarsely, and judge each by the others.

    Two slabs of chunks are held at a time, of up to ``SLAB`` sections of ``SECTION_VOXELS``.

    Args:
        volume: what to inspect.
        box: source voxels to look at; None for all.
        level: which level to read; None for the finest on which a section is small, or else the
            coarsest there is of all sections.
        measure: measures all sections, elsewhere; None for this process.

    Raises:
        UsageError: the voxels are of a type that cannot be made isotropic, the box is outside, or
            the level does not hold every section.
        StorageError: a box cannot be read.
    """
    spec = volume.spec
    check_supported(spec)
    reading = plan_reading(spec, box, level)
    chosen = spec.levels[reading.level]
    log.info(
        "reading %d sections of %s at level %d, %s: %d bytes before compression",
        reading.windows[0].shape[0],
        spec.url,
        reading.level,
        "whole" if reading.whole else f"{len(reading.windows)} windows of each",
        reading.bytes_read,
    )
    pool = pooling(chosen, reading.windows[0].shape)
    if measure is None:
        profiles = tuple(profile_sections(read_sections(volume, reading), pool))
    else:
        profiles = measure(reading, pool)
    pixel = pixel_of(spec, chosen)
    findings = judge_sections(profiles, (float(pixel[0]), float(pixel[1])))
    if findings.padding:
        log.info("%d blank sections at the ends are taken as padding", len(findings.padding))
    for section in (*findings.lost, *findings.corrected):
        log.debug("section %d: %s", section.z, section.why)
    return Inspection(spec.url, reading, profiles, findings, suggest(spec))


def profile_part(
    volume: Volume, reading: Reading, part: Slab, pool: int
) -> tuple[SectionProfile, ...]:
    """Measure some sections as they are measured among all: those before them are read too.

    Raises:
        StorageError: a box cannot be read.
    """
    lo = max(reading.windows[0].lo[0], part[0] - LAGS)
    sections = read_sections(volume, reading, (lo, part[1]))
    return tuple(p for p in profile_sections(sections, pool) if p.z >= part[0])


def pooling(level: LevelSpec, window: Triple) -> int:
    """Return how many pixels are as wide as a section is thick, or fewer in small windows."""
    thick = round(level.spacing.z / max(level.spacing.y, level.spacing.x))
    return max(1, min(thick, min(window[1:]) // LEAST_POOLED))


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
