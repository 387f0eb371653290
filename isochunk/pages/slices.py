"""Slices of a job's source and of what was made of it, at one place, on one grid."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from isochunk.core.geometry import Box, spread, triple
from isochunk.core.spec import Phase
from isochunk.core.voxels import Voxels
from isochunk.engine.ledger import Ledger
from isochunk.models.interpolation import axis_taps
from isochunk.pages.templates import data_uri
from isochunk.planning.plan import Plan
from isochunk.storage.volume import Volume

EDGE = 192
"""Largest extent of a slice, in target voxels."""
TRIED = 64
"""Blocks looked at for one that is no background."""
PLANES = {"xz": 1, "yz": 2, "xy": 0}
"""Planes that are shown, by the axis that they are cut across; the first two hold z."""
DARKEST, BRIGHTEST = 0.5, 99.5
"""Percentiles that are drawn black and white."""


def shown_box(plan: Plan, ledger: Ledger) -> Box:
    """Choose target voxels to look at: the middle of a block near the middle that is no background.

    Where none is done yet, it is the middle of the target.
    """
    table = ledger.tables[0]
    middle = plan.target.box
    for number in islice(spread(plan.block_count(0)), TRIED):
        if table.done[number] and not table.empty[number]:
            middle = plan.block(0, number).write
            break
    lo = [(a + b - min(EDGE, b - a)) // 2 for a, b in zip(middle.lo, middle.hi, strict=True)]
    return Box(triple(lo), triple(n + EDGE for n in lo)) & plan.target.box


def as_stored(plan: Plan, source: Volume, box: Box) -> Voxels:
    """Read the source under target voxels, each section repeated as often as it is thick.

    Returns:
        (z, y, x), of the target's shape in ``box``; beyond the source its last voxels go on.
    """
    grid = plan.anchored(box)
    phases: tuple[Phase, ...] = (plan.model.phase, "mean", "mean")
    spans = zip(grid.lo, grid.hi, strict=True)
    rows = [
        axis_taps("nearest", span, factor, 0, phase).index[0]
        for span, factor, phase in zip(spans, plan.model.resolved_factor, phases, strict=True)
    ]
    under = Box(triple(r[0] for r in rows), triple(r[-1] + 1 for r in rows)) & source.spec.box
    read = source.read(under)
    taken = [
        np.clip(r - lo, 0, hi - lo - 1) for r, lo, hi in zip(rows, under.lo, under.hi, strict=True)
    ]
    repeated: Voxels = read[np.ix_(*taken)]
    return repeated


@dataclass(frozen=True, slots=True)
class Picture:
    """A slice as an image."""

    caption: str
    """What it shows."""
    source: str
    """Data URI."""
    wide: int
    """Pixels."""
    high: int
    """Pixels."""


def slice_of(volume: Voxels, plane: str) -> Voxels:
    """Return the middle slice of a plane."""
    axis = PLANES[plane]
    taken: Voxels = volume.take(volume.shape[axis] // 2, axis)
    return taken


def greys_of(volume: Voxels) -> tuple[float, float]:
    """Return the stored values that are drawn black and white."""
    known = volume[np.isfinite(volume)] if volume.dtype.kind == "f" else volume
    low, high = np.percentile(known, (DARKEST, BRIGHTEST)) if known.size else (0.0, 1.0)
    return float(low), float(high) if high > low else float(low) + 1


def draw(values: Voxels, greys: tuple[float, float], caption: str) -> Picture:
    """Draw a slice, a pixel for each voxel."""
    low, high = greys
    scaled = np.nan_to_num((values.astype(np.float32) - low) / (high - low))
    pixels: NDArray[np.uint8] = (255 * scaled.clip(0, 1)).round().astype(np.uint8)
    written = BytesIO()
    Image.fromarray(pixels).save(written, "PNG", optimize=True)
    return Picture(caption, data_uri(written, "png"), pixels.shape[1], pixels.shape[0])
