"""Where a run's consistency is measured: a few boxes of whole sections, spread over the blocks."""

from __future__ import annotations

import math
from itertools import islice

from isochunk.core.consistency import PASSED_THROUGH, span_of_sections
from isochunk.core.geometry import Box, spread
from isochunk.engine.ledger import Ledger
from isochunk.planning.layout import blocks_over
from isochunk.planning.plan import Plan

BOXES = 4
"""Boxes compared, at most one in a block."""

TRIED = 64
"""Blocks looked at for them."""

SECTIONS = 8
"""Sections of a box, or as many as a block holds whole."""

EDGE = 64
"""Largest extent of a box along y and x, in voxels."""


def changes_only_z(plan: Plan) -> bool:
    """Tell whether a plan makes z finer, and leaves y and x."""
    z, y, x = plan.model.resolved_factor
    return z > PASSED_THROUGH and (y, x) == (PASSED_THROUGH, PASSED_THROUGH)


def consistency_boxes(plan: Plan, ledger: Ledger) -> list[Box]:
    """Choose source boxes whose sections are stored whole, in blocks that are not background."""
    if not changes_only_z(plan):
        return []
    table, grid, block = ledger.tables[0], plan.target.box, plan.stages[0].block
    chosen: list[Box] = []
    for number in islice(spread(plan.block_count(0)), TRIED):
        box = _inside(plan, plan.block(0, number).write)
        stored = sections_box(plan, box)
        if not box.size or stored not in grid:
            continue
        if all(table.done[i] and not table.empty[i] for i in blocks_over(grid, block, stored)):
            chosen.append(box)
        if len(chosen) == BOXES:
            break
    return chosen


def sections_box(plan: Plan, box: Box) -> Box:
    """Return the stored target voxels that the sections of a source box are made of."""
    factor, phase = plan.model.resolved_factor[0], plan.model.phase
    lo, hi = span_of_sections(box.lo[0], box.hi[0], factor, phase)
    return Box((lo, *box.lo[1:]), (hi, *box.hi[1:])).shift(plan.shift)


def _inside(plan: Plan, stored: Box) -> Box:
    """Return the middle of a block in source voxels: whole sections, one at least."""
    anchored = plan.anchored(stored)
    factor = plan.model.resolved_factor[0]
    lo, hi = math.ceil(anchored.lo[0] / factor), math.floor(anchored.hi[0] / factor)
    if hi <= lo:  # blocks thinner than sections
        lo = math.floor((anchored.lo[0] + anchored.hi[0]) / (2 * factor))
        hi = lo + 1
    spans = [_middle(lo, hi, SECTIONS)]
    spans += [_middle(*ends, EDGE) for ends in zip(anchored.lo[1:], anchored.hi[1:], strict=True)]
    z, y, x = spans
    return Box((z[0], y[0], x[0]), (z[1], y[1], x[1])) & plan.region


def _middle(lo: int, hi: int, most: int) -> tuple[int, int]:
    """Return the middle of an interval, of a bounded length."""
    length = min(most, hi - lo)
    start = lo + (hi - lo - length) // 2
    return start, start + length
