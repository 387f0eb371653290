"""Sections that do not agree with their neighbours, while these agree with each other.

Agreement falls with distance, and structures differ, so how much is usual comes from the sections
around. What two sections apart agree tells a bad section from a gap in the stack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isochunk.core.robust import Numbers, median_around, robust_spread
from isochunk.core.section_profile import LAGS, SectionProfile

AROUND = 20
"""Sections on either side that say what agreement is usual."""
AGREES, AT_ALL = 0.7, 0.5
"""Agreement, over the usual one, below which two sections do not agree; and where that one link
decides, not even a little."""
UNUSUAL, CERTAIN = 3.0, 5.0
"""Deviations by which it must differ from what is usual, with other signs and alone."""
TOLD = 2.0
"""Deviations above which a value can be told from nothing."""
TILE_AGREES, TILE_BRIDGED = 0.5, 0.6
"""The same for tiles, which scatter more: below the first there is none, above the second there
is some two sections apart."""
TILE_LEAST = 0.05
"""Agreement two sections apart that is usual in a tile, below which it tells nothing."""
TILES_BAD = 0.15
"""Share of a section's tiles that are bad where it is damaged in part; single ones are structures
that end."""


@dataclass(frozen=True, slots=True)
class _Links:
    """Agreement of sections with those before them: rows are sections, columns how far apart."""

    z: tuple[int, ...]
    """Source voxel coordinates."""
    table: Numbers
    """Correlations (sections, ``LAGS``)."""
    usual: Numbers
    """Medians of those around."""
    spread: Numbers
    """How far they scatter around that, the same in each row."""
    low: NDArray[np.bool_]
    """Whether they do not agree."""
    none: NDArray[np.bool_]
    """Whether they certainly do not."""
    near: NDArray[np.bool_]
    """Whether they agree as usual."""
    clear: NDArray[np.bool_]
    """Whether what is usual can be told from nothing."""
    deaf: NDArray[np.bool_]
    """Whether what is usual scatters too much for any section to be low."""

    def reversed(self) -> _Links:
        """Return the same links of the sections from the last to the first."""
        arrays = (getattr(self, f.name) for f in fields(self)[1:])
        return _Links(self.z[::-1], *(_reversed(array) for array in arrays))

    def says(self, whom: str, later: int, lag: int = 0) -> str:
        """Write how much a section agrees with one before it, and what is usual."""
        return f"{self.table[later, lag]:.2f} {whom}, usual is {self.usual[later, lag]:.2f}"


def disagreeing(profiles: Sequence[SectionProfile]) -> dict[int, str]:
    """Find sections that are foreign to their place.

    These are: a section that agrees with neither neighbour, where these agree with each other, also
    two in a row; neighbours that have changed places; the first and the last section, or the two,
    where they agree with none of those next to them; and sections of which some tiles do so.

    Args:
        profiles: all sections, by rising z.

    Returns:
        Why, by z.
    """
    links = _links_of(profiles)
    found: dict[int, str] = {}
    i = 1
    while i < len(profiles) - 1:
        named = _swapped(links, i) or _single(links, i) or _pair(links, i) or {}
        found |= named
        i += max(1, len(named))
    return _torn(profiles) | _ends(links) | found


def _links_of(profiles: Sequence[SectionProfile]) -> _Links:
    table = np.array([p.before for p in profiles])
    usual = median_around(table, AROUND)
    spread = np.array([robust_spread(column) for column in (table - usual).T])
    return _Links(
        tuple(p.z for p in profiles),
        table,
        usual,
        np.tile(spread, (len(table), 1)),
        low=(table < AGREES * usual) & (table < usual - UNUSUAL * spread),
        none=(table < AT_ALL * usual) & (table < usual - CERTAIN * spread),
        near=table >= np.maximum(AGREES * usual - spread, usual - UNUSUAL * spread),
        clear=usual > TOLD * spread,
        deaf=usual < (UNUSUAL + 1) * spread,
    )


def _reversed(table: NDArray[Any]) -> NDArray[Any]:
    """Turn a table of links round: each link moves to the row of its other section."""
    found = np.full_like(table, math.nan if table.dtype.kind == "f" else False)
    for column in range(table.shape[1]):
        lag = column + 1
        found[lag:, column] = table[::-1, column][: len(table) - lag]
    return found


def _swapped(links: _Links, i: int) -> dict[int, str] | None:
    """Tell whether sections ``i`` and ``i + 1`` agree better with each other's neighbours."""
    if i + 2 >= len(links.z):
        return None
    table, usual, z = links.table, links.usual, links.z
    falls = usual[i, 0] - usual[i, 1]
    before, after = table[i + 1, 1] - table[i, 0], table[i + 2, 1] - table[i + 2, 0]
    # Where agreement hardly falls with distance, scatter alone would exchange sections.
    if not (falls > TOLD * links.spread[i, 0] and min(before, after) > falls / 4):
        return None
    text = "seems to have changed places with section"
    return {z[i]: f"{text} {z[i + 1]}", z[i + 1]: f"{text} {z[i]}"}


def _single(links: _Links, i: int) -> dict[int, str] | None:
    """Tell whether section ``i`` disagrees with both neighbours, and these agree."""
    if not (links.low[i, 0] and links.low[i + 1, 0] and links.near[i + 1, 1]):
        return None
    better = i if links.table[i, 0] > links.table[i + 1, 0] else i + 1
    between = links.table[i + 1, 1]
    why = f"agrees {links.says('with its neighbours', better)}; they agree {between:.2f}"
    return {links.z[i]: f"{why} with each other"}


def _pair(links: _Links, i: int) -> dict[int, str] | None:
    """Tell whether two sections agree with none around, and these agree across.

    Where sections three apart have too little in common to tell that, they must not agree at all.
    """
    if i + 2 >= len(links.z):
        return None
    low, none, apart = links.low, links.none, links.low | links.deaf
    alone = low[i, 0] and low[i + 2, 0] and apart[i + 1, 1] and apart[i + 2, 1]
    certain = none[i, 0] and none[i + 2, 0]
    bridged = links.near[i + 2, 2] if links.clear[i + 2, 2] else certain
    if not (alone and bridged):
        return None
    beside = "with the section beside this pair"
    across = links.says("across it", i + 2, 2)
    return {
        links.z[j]: f"agrees {links.says(beside, link)}; those on its sides agree {across}"
        for j, link in ((i, i), (i + 1, i + 2))
    }


def _ends(links: _Links) -> dict[int, str]:
    """Find a first and a last section, or the two, that agree with none of those next to them."""
    return _start(links) | _start(links.reversed())


def _start(links: _Links) -> dict[int, str]:
    """Tell whether the first section, or the first two, agree with none, and the next ones do.

    One neighbour tells less than two, so they must not agree at all. A first pair that agrees with
    itself is taken for the other side of a gap.
    """
    none, low, near = links.none, links.low | links.deaf, links.near
    if len(links.z) > LAGS and none[1, 0] and low[2, 1] and near[2, 0]:
        count = 1
    elif len(links.z) > LAGS + 1 and none[1, 0] and none[2, 0] and low[3, 1] and near[3, 0]:
        count = 2
    else:
        return {}
    why = f"agrees {links.says('with the section next to it', 1)}; it has no other"
    return dict.fromkeys(links.z[:count], why)


def _torn(profiles: Sequence[SectionProfile]) -> dict[int, str]:
    """Find sections of which some tiles agree with neither neighbour, where these agree."""
    near, across = (
        np.array([p.tiles_before[lag] for p in profiles], dtype=float) for lag in range(2)
    )
    share = near / median_around(near, AROUND)
    usual = median_around(across, AROUND)
    bridged = (across > TILE_BRIDGED * usual) & (across > TILE_LEAST) & (usual > TILE_LEAST)
    bad = (np.maximum(share[1:-1], share[2:]) < TILE_AGREES) & bridged[2:]
    return {
        profiles[i + 1].z: f"{bad[i].mean():.0%} of it agrees with neither neighbour; "
        "these agree with each other there"
        for i in np.flatnonzero(bad.mean(1) > TILES_BAD).tolist()
    }
