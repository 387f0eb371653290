"""What the demo made, beside the truth: a gain in dB, and a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isochunk.core.geometry import Box
from isochunk.core.tissue import truth
from isochunk.engine.sentences import audited
from isochunk.evaluation.metrics import psnr
from isochunk.evaluation.spread import gain, squared_errors
from isochunk.pages.run_page import Shown, page
from isochunk.pages.slices import as_stored
from isochunk.planning.plan import Plan
from isochunk.storage.open import open_volume

EDGE = 2
"""Sections at either end that are not compared: there a network sees no neighbours."""


@dataclass(frozen=True, slots=True)
class Compared:
    """How what was restored compares with the truth."""

    psnr: float
    """dB, data range 255."""
    cubic: float
    """The same of cubic interpolation."""
    over_cubic: float
    """dB of the first more than the second."""
    low: float
    """Below it lie 2.5 % of bootstraps over crops of 32 x 32 x 32 voxels."""
    high: float
    """Above it lie 2.5 %."""


def compare(plan: Plan, cubic: Plan) -> Compared:
    """Compare the output of the demo with the truth, and with what cubic interpolation makes."""
    inner = slice(EDGE, -EDGE)
    known = truth()[inner]
    own, other = (_read(p)[inner] for p in (plan, cubic))
    found = gain(squared_errors(known, own), squared_errors(known, other))
    return Compared(psnr(known, own), psnr(known, other), found.db, found.low, found.high)


def write_page(
    folder: Path, plans: tuple[Plan, Plan], found: Mapping[str, Any], compared: Compared
) -> Path:
    """Write ``index.html`` of the demo into its folder.

    Args:
        folder: of the demo.
        plans: of the network and of cubic interpolation.
        found: the JSON objects ``run`` and ``audit``.
        compared: how they compare.
    """
    plan, cubic = plans
    box: Box = plan.target.box
    shown = (
        Shown("before: sections of 40 nm", as_stored(plan, open_volume(plan.source.url), box)),
        Shown(f"cubic interpolation: {compared.cubic:.2f} dB", _read(cubic)),
        Shown(f"{plan.model.name}: {compared.psnr:.2f} dB", _read(plan)),
        Shown("the truth, as it was recorded", truth()),
    )
    lead = (
        "Medulla of a fly (FlyEM/Janelia, Parag et al. 2015, CC-BY), recorded with voxels of "
        "10 nm. Each four sections were averaged to one of 40 nm, and restored from that. The "
        f"network has a PSNR of {compared.psnr:.2f} dB, {compared.over_cubic:+.2f} over "
        f"cubic interpolation (95 % of bootstraps: {compared.low:+.2f} to {compared.high:+.2f}); "
        "it never saw this tissue."
    )
    written = folder / "index.html"
    written.write_text(
        page(plan, found["run"], box, shown, lead, [audited(found["audit"])]), encoding="utf-8"
    )
    return written


def _read(plan: Plan) -> Any:
    return open_volume(plan.target.url).read(plan.target.box)
