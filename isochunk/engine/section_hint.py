"""A look at some sections before a job is planned: whether it seems worth to inspect them all.

Only blank sections and evident steps of brightness are seen, in a small part of each section, with
numpy alone. It reads little, changes nothing, and is no judgement: ``isochunk inspect`` is.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isochunk.core.codec import JsonObject
from isochunk.core.geometry import Box, ceil_div
from isochunk.core.robust import median_around, robust_spread
from isochunk.engine.section_reading import Reading, Slab, cut_slabs, plan_reading
from isochunk.errors import IsochunkError
from isochunk.storage.access import Access
from isochunk.storage.open import open_volume
from isochunk.storage.volume import Volume

log = logging.getLogger(__name__)

SAMPLE_BYTES = 16 * 2**20
"""Voxels read at most, in bytes, but for one column of whole chunks."""
COLUMNS = 4
"""Places of a section that are looked at, where it is not read whole."""
COLUMN_EDGE = 128
"""Edge of such a place, or a chunk's where that is larger."""
RUN = 16
"""Sections of a run, about: whole chunks."""
BESIDE = 4
"""Sections on either side with which one is compared."""
STEP, CERTAIN = 0.5, 8.0
"""Change of the mean that is evident: in deviations of the voxels, and of what is usual."""


@dataclass(frozen=True, slots=True)
class SectionsHint:
    """What a sample of a volume's sections shows."""

    source: str
    """URL of the volume."""
    looked_at: int
    """Sections in the sample."""
    blank: tuple[int, ...]
    """z of those that are of one grey level between others that are not."""
    uneven: tuple[int, ...]
    """z of those that are much darker or brighter than those beside them."""

    def summary(self) -> JsonObject:
        """Return ``sections_hint`` of ``isochunk plan``."""
        return {
            "looked_at": self.looked_at,
            "lost": list(self.blank),
            "uneven": list(self.uneven),
            "command": self.command,
        }

    @property
    def command(self) -> str:
        """What to do about it."""
        return f"isochunk inspect {shlex.quote(self.source)} --out sections.toml"


def hint_of_sections(url: str, access: Access, box: Box | None = None) -> SectionsHint | None:
    """Look at a few MB of sections, and warn where some look lost or uneven.

    Args:
        url: of the source of a job.
        access: how it is read.
        box: source voxels that are converted; None for all.

    Returns:
        What was seen; None where there is nothing to be said, or nothing could be read: what is
        wrong with the source is told by what needs it.
    """
    blank: list[int] = []
    uneven: list[int] = []
    count = 0
    try:
        volume = open_volume(url, access)
        reading = plan_reading(volume.spec, box, None)
        for z, numbers in _measured_runs(volume, reading):
            count += len(numbers)
            lost, changed = _judge(numbers)
            blank += (z + np.flatnonzero(lost)).tolist()
            uneven += (z + np.flatnonzero(changed)).tolist()
    except IsochunkError as error:
        log.info("sections were not looked at: %s", error)
        return None
    if not blank and not uneven:
        return None
    hint = SectionsHint(volume.spec.url, count, tuple(blank), tuple(uneven))
    log.warning(
        "of %d sections looked at, %d look lost and %d uneven, as z = %d; networks do badly there. "
        "This finds all of them: %s",
        count,
        len(blank),
        len(uneven),
        min(blank + uneven),
        hint.command,
    )
    return hint


def _measured_runs(volume: Volume, reading: Reading) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the first z of runs of sections, and mean and deviation of each section there."""
    columns = _columns(reading, volume.spec.levels[reading.level].chunk[1:])
    level, bounds = volume.spec.levels[reading.level], reading.windows[0]
    slabs = cut_slabs(level, bounds.lo[0], bounds.hi[0], max(RUN, min(level.chunk[0], 4 * RUN)))
    for slab in _within(slabs, sum(c.size // c.shape[0] for c in columns) * volume.spec.itemsize):
        parts = [
            volume.read(Box((slab[0], *c.lo[1:]), (slab[1], *c.hi[1:])), reading.level)
            for c in columns
        ]
        sections = np.stack(parts, axis=1).reshape(slab[1] - slab[0], -1)
        yield slab[0], np.stack([_moments(section) for section in sections])


def _moments(section: NDArray[np.unsignedinteger]) -> tuple[float, float]:
    """Return mean and deviation of the voxels that are not 0; 0 where nearly all are."""
    tissue = section[section != 0]
    if tissue.size < section.size / 100:
        return 0.0, 0.0
    return float(tissue.mean(dtype=np.float64)), float(tissue.std(dtype=np.float64))


def _judge(numbers: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell which sections of a run are blank between others, and which are uneven."""
    mean, deviation = numbers.T
    blank = deviation == 0
    tissue = np.flatnonzero(~blank)
    inside = np.zeros(len(numbers), bool)
    if tissue.size:
        inside[tissue[0] : tissue[-1]] = True
    known = np.where(blank, np.nan, mean)
    change = known - median_around(known, BESIDE)
    usual = (
        max(STEP * float(np.median(deviation[~blank])), CERTAIN * robust_spread(change))
        if (tissue.size)
        else np.inf
    )
    return blank & inside, np.abs(change) > usual


def _columns(reading: Reading, chunk: tuple[int, ...]) -> list[Box]:
    """Return parts of the windows that reach through all sections, spread over them."""
    windows = reading.windows
    edges = [c * ceil_div(COLUMN_EDGE, c) for c in chunk]
    if reading.whole:
        (whole,) = windows
        halves = [
            [lo] if n <= 2 * edge else [lo + n // 4 // edge * edge, lo + 3 * n // 4 // edge * edge]
            for lo, n, edge in zip(whole.lo[1:], whole.shape[1:], edges, strict=True)
        ]
        corners = [(y, x) for y in halves[0] for x in halves[1]]
    else:
        corners = [w.lo[1:] for w in windows[:: ceil_div(len(windows), COLUMNS)]]
    return [
        Box((windows[0].lo[0], y, x), (windows[0].hi[0], y + edges[0], x + edges[1]))
        & _hull(windows)
        for y, x in corners
    ]


def _hull(windows: tuple[Box, ...]) -> Box:
    """Return the smallest box that holds all windows."""
    hi = tuple(max(w.hi[axis] for w in windows) for axis in range(3))
    return Box(windows[0].lo, (hi[0], hi[1], hi[2]))


def _within(slabs: list[Slab], section_bytes: int) -> list[Slab]:
    """Choose as many runs as may be read, spread over all, the first and the last among them."""
    longest = max(hi - lo for lo, hi in slabs)
    count = min(len(slabs), max(1, SAMPLE_BYTES // (section_bytes * longest)))
    return [slabs[i] for i in np.linspace(0, len(slabs) - 1, count).round().astype(int).tolist()]
