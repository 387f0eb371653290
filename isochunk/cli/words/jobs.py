"""What a job would do and what it did, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType

from isochunk.cli.words.layout import Fact, advice, columns, facts, marked
from isochunk.cli.words.volumes import listed, volume_lines
from isochunk.core.amounts import (
    by,
    counted,
    in_bytes,
    in_memory,
    in_percent,
    in_time,
    in_voxels,
)
from isochunk.pages.sentences import Sentence, course, proofs, verdict

WORTHWHILE = 0.05
"""Share of the computing that twice the memory must save, to be said."""
SHOWN_ERRORS = 3
"""Errors shown; all are in the JSON object and in the target's records."""


def plan(found: Mapping[str, Any]) -> RenderableType:
    """Say what a run would do."""
    said = facts([*_planned(found), *_cost(found), *_to_mind(found)])
    hint = found.get("sections_hint")
    return Group(said, advice(hint["command"])) if hint else said


def _planned(found: Mapping[str, Any]) -> Iterator[Fact]:
    source, target = found["source"], found["target"]
    thick, thin = source["spacing_nm"][0], target["spacing_nm"][0]
    yield (
        "read",
        [
            *volume_lines(source),
            f"{in_bytes(found['bytes_read'])} in all, what halos read again included",
        ],
    )
    yield (
        "make",
        [
            f"sections of {thin:g} nm from those of {thick:g} nm, by {found['model']}",
            f"{counted(found['blocks'], 'block')} of {by(found['block'])} voxels; halos of "
            f"{by(found['halo'])} add {in_percent(found['compute_overhead'])} to the computing",
        ],
    )
    yield (
        "write",
        [
            *volume_lines(target),
            f"{counted(found['objects_written'], 'object')}, "
            f"{in_bytes(found['bytes_written'])} before compression",
        ],
    )
    yield "memory", f"{in_memory(found['worker_memory_bytes'])} for each worker"
    yield "exact", _exactness(found)


def _exactness(found: Mapping[str, Any]) -> RenderableType:
    if not found["exact"]:
        return marked("no: this model's tiles do not join exactly", good=False)
    same = found["identical_to_fp32"]
    if same is None:
        return "blocks join as if the volume were one"
    share = "every voxel" if same == 1 else f"{in_percent(same)} of voxels"
    return f"blocks join as if the volume were one; {share} as in float32"


def _cost(found: Mapping[str, Any]) -> Iterator[Fact]:
    if "cost" not in found:
        yield "time", advice("--calibrate 3 runs three blocks and says what all take and cost")
        return
    cost, measured = found["cost"], found["calibration"]
    yield (
        "time",
        f"about {in_time(cost['wall_s'])} on {counted(cost['workers'], 'worker')}, "
        f"{in_voxels(measured['voxels_per_s'])}/s",
    )
    money = cost["currency"]
    table = columns(
        [
            {
                "for": f"{row['item']}, {row['unit']}",
                "amount": f"{row['quantity']:,.6g}",
                money: f"{row['cost']:,.2f}",
            }
            for row in (*cost["rows"], *cost["storage"])
            if row["cost"]
        ],
        right=("amount", money),
    )
    total = f"{cost['total']:,.2f} {money} at prices of {cost['prices_as_of']}, storage apart"
    yield "cost", [total, table]


def _to_mind(found: Mapping[str, Any]) -> Iterator[Fact]:
    window, sections, more = found["window"], found["sections"], found["with_twice_the_memory"]
    if window is not None:
        yield "grey levels", f"{window['low']:g} to {window['high']:g} become black to white"
    if sections is not None:
        yield (
            "sections",
            f"{len(sections['lost'])} filled from those around them, "
            f"{sections['corrected']} corrected",
        )
    if found["invented_voxels"]:
        yield "invented", f"{in_voxels(found['invented_voxels'])} in sections that are filled"
    if more and found["compute_overhead"] - more["compute_overhead"] > WORTHWHILE:
        yield (
            "mind",
            f"twice the memory: blocks of {by(more['block'])}, and halos add "
            f"{in_percent(more['compute_overhead'])}",
        )
    if found["padded_because"]:
        yield "mind", f"every tile is padded: {found['padded_because']}"
    if hint := found.get("sections_hint"):
        yield (
            "mind",
            f"of {counted(hint['looked_at'], 'section')} looked at, {len(hint['lost'])} look lost "
            f"(z = {listed(hint['lost']) or 'none'}) and {len(hint['uneven'])} uneven "
            f"(z = {listed(hint['uneven']) or 'none'}):",
        )


def run(found: Mapping[str, Any]) -> RenderableType:
    """Say what a run did, the link last."""
    rows = told_of_run(found)
    if not found["complete"]:
        return Group(facts(rows), advice("the same command goes on where this run ended"))
    link = found["neuroglancer_url"] or found.get("view")
    return Group(facts(rows), advice(link)) if link else facts(rows)


def told_of_run(found: Mapping[str, Any]) -> list[Fact]:
    """Return the facts of a run."""
    rows: list[Fact] = [("result", marked(verdict(found), good=found["complete"]))]
    rows += [(s.label, _styled(s)) for s in (*course(found), *proofs(found))]
    if found["errors"]:
        shown = found["errors"][:SHOWN_ERRORS]
        rows.append(("errors", [marked(error, good=False) for error in shown]))
    return rows


def _styled(sentence: Sentence) -> RenderableType:
    return sentence.said if sentence.good else marked(sentence.said, good=False)
