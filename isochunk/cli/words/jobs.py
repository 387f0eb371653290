"""What a job would do and what it did, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType

from isochunk.cli.words.layout import Fact, advice, columns, facts, marked, styled
from isochunk.core.amounts import counted, in_time, in_voxels
from isochunk.engine.sentences import course, proofs, verdict
from isochunk.planning.sentences import planned, to_mind

SHOWN_ERRORS = 3
"""Errors shown; all are in the JSON object and in the target's records."""


def plan(found: Mapping[str, Any]) -> RenderableType:
    """Say what a run would do."""
    said = facts([*styled(planned(found)), *_cost(found), *styled(to_mind(found))])
    hint = found.get("sections_hint")
    return Group(said, advice(hint["command"])) if hint else said


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


def run(found: Mapping[str, Any]) -> RenderableType:
    """Say what a run did, the link last."""
    rows = told_of_run(found)
    if "page" in found:
        rows.append(("page", found["page"]))
    if not found["complete"]:
        return Group(facts(rows), advice("the same command goes on where this run ended"))
    link = found["neuroglancer_url"] or found.get("view")
    return Group(facts(rows), advice(link)) if link else facts(rows)


def told_of_run(found: Mapping[str, Any]) -> list[Fact]:
    """Return the facts of a run."""
    rows: list[Fact] = [("result", marked(verdict(found), good=found["complete"]))]
    rows += styled((*course(found), *proofs(found)))
    if found["errors"]:
        shown = found["errors"][:SHOWN_ERRORS]
        rows.append(("errors", [marked(error, good=False) for error in shown]))
    return rows
