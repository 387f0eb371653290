"""What has been written, in words: status, audit, repair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from isochunk.cli.words import jobs
from isochunk.cli.words.layout import Fact, advice, columns, facts, marked
from isochunk.core.amounts import counted, in_percent, in_voxels
from isochunk.engine.sentences import audited
from isochunk.planning.sentences import listed

SHOWN_HOLES = 10
"""Objects named one by one; all are in the JSON object."""


def status(found: Mapping[str, Any]) -> RenderableType:
    """Say what is done of a target."""
    blocks, last, sections = found["blocks"], found["last_event"], found["sections"]
    done, total = blocks["done"], blocks["total"]
    said = f"{done:,} of {counted(total, 'block')} done ({in_percent(done / total)})"
    if blocks["empty"]:
        said += f", {blocks['empty']:,} of them all background"
    rows: list[Fact] = [
        ("target", found["target"]),
        ("blocks", marked(said, good=True) if found["complete"] else said),
        ("last", f"{last['event']}, {last['time']}" if last else "nothing is recorded yet"),
    ]
    if sections:
        rows.append(
            (
                "sections",
                f"filled: z = {listed(sections['lost'])}; {sections['corrected']} corrected",
            )
        )
    if found["invented_voxels"]:
        rows.append(("invented", f"{in_voxels(found['invented_voxels'])} in filled sections"))
    return facts(rows)


def audit(found: Mapping[str, Any]) -> RenderableType:
    """Say whether a target is complete, and what is not as it should be."""
    told = audited(found)
    if found["complete"]:
        return marked(told.said, good=True)
    holes = [
        {
            "object": h["object"],
            "box": h["box"],
            "block": f"{h['block']}",
            "why": h["reason"] or kind,
        }
        for kind in ("missing", "corrupt")
        for h in found[kind]
    ]
    said: list[RenderableType] = [marked(told.said, good=False), columns(holes[:SHOWN_HOLES])]
    if len(holes) > SHOWN_HOLES:
        said.append(f"and {len(holes) - SHOWN_HOLES:,} more, all with --json")
    return Group(*said, advice("isochunk repair TARGET computes them again"))


def report(found: Mapping[str, Any]) -> RenderableType:
    """Say where the page is."""
    return advice(found["page"])


def repair(found: Mapping[str, Any]) -> RenderableType:
    """Say what was found, and what was done about it."""
    before = found["found"]
    holes = len(before["missing"]) + len(before["corrupt"])
    if not holes:
        return audit(before)
    return Group(f"found {counted(holes, 'object')} missing or corrupt", jobs.run(found))
