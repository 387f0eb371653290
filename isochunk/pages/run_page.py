"""The page of a run, beside its target: what it looks like, what was measured, how it was made.

The words and the look are in ``run_page.html.j2``; here is what it is given. The page fetches
nothing, and holds what ``isochunk run`` reported, which is kept too: :data:`REPORT_KEY`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isochunk import __version__
from isochunk.core.amounts import by, in_bytes, in_percent, in_time, in_voxels
from isochunk.core.geometry import Box
from isochunk.core.sentence import Sentence
from isochunk.core.voxels import Voxels
from isochunk.engine.ledger import Ledger
from isochunk.engine.prepare import provenance
from isochunk.engine.sentences import course, proofs, verdict
from isochunk.errors import NotFoundError
from isochunk.host.files import write_atomically
from isochunk.pages.slices import (
    PLANES,
    Picture,
    as_stored,
    draw,
    greys_of,
    shown_box,
    slice_of,
)
from isochunk.pages.templates import page_templates
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access
from isochunk.storage.open import open_store, open_volume

log = logging.getLogger(__name__)

REPORT_KEY = ".isochunk/report.json"
"""What the last run of a target reported."""
PAGE_KEY = ".isochunk/report.html"
"""The page of it."""
TEMPLATE = "run_page.html.j2"
LARGEST_BAR = 100.0
"""Height of the highest rate."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What else of a place is shown beside source and output."""

    caption: str
    """What it is."""
    voxels: Voxels
    """(z, y, x), of the place."""


def keep_page(plan: Plan, report: Mapping[str, Any]) -> None:
    """Keep a report and its page beside the target; a run succeeds where they cannot be kept."""
    try:
        store = open_store(plan.target.url, Access.for_job(plan.job))
        store.put(REPORT_KEY, json.dumps(report, indent=1).encode())
        store.put(PAGE_KEY, render(plan, report, Ledger(store, plan)).encode())
    except Exception as error:  # noqa: BLE001  (days of work do not fail for want of a page)
        log.warning("the page of this run was not written: %s", error)


def write_page(plan: Plan, out: Path | None = None) -> str:
    """Write the page of a target anew, from what its last run reported.

    Args:
        plan: of the target.
        out: file to write instead of the one beside the target.

    Returns:
        The URL of the page.

    Raises:
        NotFoundError: no run of it has ended yet, or it was made by a version that kept none.
        StorageError: it cannot be read or written.
    """
    store = open_store(plan.target.url, Access.for_job(plan.job))
    kept = store.get(REPORT_KEY)
    if kept is None:
        raise NotFoundError(
            f"{store.url} holds no {REPORT_KEY}: no run of it has ended, or an earlier version "
            "made it; isochunk status tells what is done, the command that made it writes one"
        )
    page = render(plan, json.loads(kept), Ledger(store, plan)).encode()
    if out is not None:
        write_atomically(out, lambda file: file.write(page))
        return out.resolve().as_uri()
    store.put(PAGE_KEY, page)
    return f"{store.url.rstrip('/')}/{PAGE_KEY}"


def render(plan: Plan, report: Mapping[str, Any], ledger: Ledger) -> str:
    """Return the page as HTML, all images inside.

    Raises:
        StorageError: source or target cannot be read.
    """
    access = Access.for_job(plan.job)
    box = shown_box(plan, ledger)
    before = as_stored(plan, open_volume(plan.source.url, access, again=True), box)
    after = open_volume(plan.target.url, access.beside()).read(box)
    shown = (Shown("the source, as it is stored", before), Shown("made isotropic", after))
    return page(plan, report, box, shown)


def page(
    plan: Plan,
    report: Mapping[str, Any],
    box: Box,
    shown: Sequence[Shown],
    lead: str = "",
    proved: Sequence[Sentence] = (),
) -> str:
    """Return the page of some pictures.

    Args:
        plan: what was to be done.
        report: the JSON object of ``isochunk run``.
        box: target voxels that are shown.
        shown: what they are, the first as stored.
        lead: a sentence before the pictures.
        proved: what else can be relied on.
    """
    greys = _greys(shown)
    rates = [row["voxels_per_s"] for row in report["rates"]]
    most = max(rates, default=0.0)
    return (
        page_templates("isochunk.pages")
        .get_template(TEMPLATE)
        .render(
            title=f"Isotropic: {plan.target.url}",
            report=report,
            verdict=verdict(report),
            lead=lead,
            planes=[(plane, _pictures(plane, shown, greys)) for plane in PLANES],
            place=f"Voxels {box} (z, y, x) of {plan.target.spacing} nm.",
            proofs=(*proofs(report), *proved),
            course=tuple(course(report)),
            bars=[LARGEST_BAR * rate / most for rate in rates] if most else [],
            most=f"{in_voxels(most)}/s",
            lasted=in_time(report["wall_s"]),
            slowest=[_slow(plan, row) for row in report["slowest"]],
            made_of=_made_of(plan),
            command=plan.job.command(),
            version=__version__,
        )
    )


def _greys(shown: Sequence[Shown]) -> list[tuple[float, float]]:
    """Choose black and white: those of the last, of all where they are stored alike.

    What was read through a window has other values, so then each has its own.
    """
    if len({s.voxels.dtype for s in shown}) > 1:
        return [greys_of(s.voxels) for s in shown]
    return [greys_of(shown[-1].voxels)] * len(shown)


def _pictures(
    plane: str, shown: Sequence[Shown], greys: Sequence[tuple[float, float]]
) -> list[Picture]:
    return [
        draw(slice_of(s.voxels, plane), ends, s.caption)
        for s, ends in zip(shown, greys, strict=True)
    ]


def _slow(plan: Plan, row: Mapping[str, Any]) -> tuple[str, str, str]:
    box = plan.block(row["stage"], row["block"]).write
    level = f"level {row['stage']}, " if row["stage"] else ""
    return f"{level}{row['block']:,}", str(box), in_time(row["seconds"])


def _made_of(plan: Plan) -> dict[str, str]:
    told = provenance(plan)
    source = plan.source
    read, _ = plan.read_bytes()
    return {
        "source": f"{source.url}, voxels of {source.spacing} nm, {in_bytes(read)} read",
        "region": told["region"],
        "model": f"{told['model']}, sha256 {told['model_sha256'][:12] or 'none'}",
        "trained on": told["model_trained_on"] or "nothing",
        "licence": told["model_licence"] or "not said",
        "precision": told["precision"],
        "blocks": f"{plan.total_blocks:,} of {by(plan.stages[0].block)}, halos of "
        f"{by(plan.model.halo)}, {in_percent(plan.compute_overhead())} more computing for them",
        "software": told["software"],
    }
