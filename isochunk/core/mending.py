"""A section table applied: contrast corrected in float, lost sections filled along z. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from math import ceil

import numpy as np
from numpy.typing import NDArray

from isochunk.core.sections import SectionTable
from isochunk.core.voxels import Voxels
from isochunk.errors import UsageError


@dataclass(frozen=True, slots=True)
class Run:
    """Lost sections in a row, and the good ones that they are filled from."""

    first: int
    """First lost section."""
    end: int
    """One past the last."""
    below: int
    """Nearest good section before them, or after, where there is none before."""
    above: int
    """Nearest good section after them, or before, where there is none after."""

    @classmethod
    def within(cls, first: int, end: int, start: int, stop: int) -> Run:
        """Return lost sections of a volume from ``start`` to ``stop - 1`` that has others."""
        below = first - 1 if first > start else end
        return cls(first, end, below, end if end < stop else below)

    def share_of_above(self, z: int) -> float:
        """Return how much of section ``z`` comes from above; the rest comes from below."""
        return (z - self.below) / (self.above - self.below) if self.above != self.below else 1.0


@dataclass(frozen=True, slots=True)
class Mending:
    """How the sections of one volume are used.

    Values of a section with a contrast of its own become ``gain * v + offset``, unrounded; 0 stays
    0, since it stands for what was not recorded. Lost sections are linear in z between the nearest
    good ones, or equal to the only one there is.
    """

    contrast: Mapping[int, tuple[float, float]]
    """Gain and offset of the sections that have any."""
    runs: tuple[Run, ...]
    """Lost sections, by rising z."""

    @classmethod
    def of(cls, table: SectionTable, start: int, stop: int) -> Mending:
        """Make what a table says of a volume whose z runs from ``start`` to ``stop - 1``.

        Raises:
            UsageError: a section does not exist, or all are lost.
        """
        table.check_inside(start, stop)
        lost = [s.z for s in table.sections if s.lost]
        if len(lost) == stop - start:
            raise UsageError(
                f"the section table calls all {len(lost)} sections of {table.source} lost; there "
                "is nothing to fill them from, so correct it"
            )
        runs = []
        for members in runs_of(lost):
            runs.append(Run.within(members[0], members[-1] + 1, start, stop))
        changed = {
            s.z: (s.gain, s.offset)
            for s in table.sections
            if not s.lost and (s.gain, s.offset) != (1, 0)
        }
        return cls(changed, tuple(runs))

    @property
    def changes(self) -> bool:
        """Whether any section is not used as it is stored."""
        return bool(self.contrast or self.runs)

    @property
    def longest(self) -> int:
        """Sections of the longest run of lost ones: what a read grows by at most on either side."""
        return max((run.end - run.first for run in self.runs), default=0)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Return the sections to read so that ``start`` to ``stop - 1`` can be mended."""
        for run in self._runs_in(start, stop):
            start = min(start, run.below, run.above)
            stop = max(stop, run.below + 1, run.above + 1)
        return start, stop

    def filled_planes(self, start: int, stop: int, factor: Fraction) -> int:
        """Count the target planes from ``start`` to ``stop - 1`` that lie in lost sections.

        Args:
            start: first plane, on the grid of ``factor`` times the source's coordinates.
            stop: one past the last.
            factor: target planes per section.
        """
        spans = self.spans(factor)
        return sum(max(0, min(end, stop) - max(first, start)) for first, end in spans)

    def spans(self, factor: Fraction) -> Iterator[tuple[int, int]]:
        """Yield first and one past the last of the target planes that lie in each run.

        Args:
            factor: target planes per section; planes are on the grid of ``factor`` times the
                source's coordinates.
        """
        for run in self.runs:
            yield ceil(run.first * factor), ceil(run.end * factor)

    def good(self, start: int, stop: int) -> bool:
        """Tell whether no section from ``start`` to ``stop - 1`` is lost."""
        return not any(self._runs_in(start, stop))

    def touches(self, start: int, stop: int) -> bool:
        """Tell whether any section from ``start`` to ``stop - 1`` is not used as it is stored."""
        changed = any(z in self.contrast for z in range(start, stop))
        return changed or not self.good(start, stop)

    def mended(self, stored: Voxels, first: int, start: int, stop: int) -> Voxels:
        """Mend sections.

        Args:
            stored: (z, y, x) of at least the sections that :meth:`needs` names.
            first: which section the first of them is.
            start: first section wanted.
            stop: one past the last.

        Returns:
            float32 of the sections wanted; a view of ``stored`` where they are used as stored.
        """
        wanted = stored[start - first : stop - first]
        if not self.touches(start, stop):
            return wanted
        values = wanted.astype(np.float32)
        for z in self.contrast.keys() & set(range(start, stop)):
            values[z - start] = self._section(stored, first, z)
        for run in self._runs_in(start, stop):
            below, above = (self._section(stored, first, z) for z in (run.below, run.above))
            for z in range(max(run.first, start), min(run.end, stop)):
                share = np.float32(run.share_of_above(z))
                values[z - start] = (1 - share) * below + share * above
        return values

    def _runs_in(self, start: int, stop: int) -> Iterator[Run]:
        return (run for run in self.runs if run.first < stop and start < run.end)

    def _section(self, stored: Voxels, first: int, z: int) -> NDArray[np.float32]:
        """Return one good section, its contrast corrected."""
        section = stored[z - first]
        values: NDArray[np.float32] = section.astype(np.float32)
        if z in self.contrast:
            gain, offset = self.contrast[z]
            values = values * np.float32(gain) + np.float32(offset)
            values[section == 0] = 0
        return values


def runs_of(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Yield rising numbers in groups of those that follow on one another."""
    for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        yield [number for _, number in group]
