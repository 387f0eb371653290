"""What networks learnt and how they were measured, in words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType

from isochunk.cli.words.layout import advice, columns, facts, marked
from isochunk.core.amounts import in_bytes, in_time

ENDS = {
    "finished": "finished",
    "terminated": "terminated; the same command goes on there",
    "diverged": "diverged; try a lower --lr",
}
"""How a training ended."""


def train(found: Mapping[str, Any]) -> RenderableType:
    """Say how a training ended."""
    best = found["best_psnr"]
    said = facts(
        (
            ("training", marked(ENDS[found["stopped"]], good=found["stopped"] == "finished")),
            ("steps", f"{found['step']:,} in {in_time(found['wall_s'])} of this call"),
            (
                "best",
                f"step {found['best_step']:,}: {best:.2f} dB, {best - found['cubic_psnr']:+.2f} "
                f"over cubic, {best - found['linear_psnr']:+.2f} over linear"
                if found["best_step"]
                else "nothing was kept",
            ),
            ("checkpoint", found["out"]),
        )
    )
    return Group(said, advice(f"isochunk run SOURCE TARGET --model {shlex.quote(found['out'])}"))


def evaluate(found: Mapping[str, Any]) -> RenderableType:
    """Say how models compare, with a truth or without."""
    return _judged(found) if "source" in found else _compared(found)


def _compared(found: Mapping[str, Any]) -> RenderableType:
    rows = [
        {
            "model": row["model"],
            "PSNR dB": number(row["psnr"], ".2f"),
            "over cubic": number(row["over_cubic"], "+.2f"),
            "95 %": f"{number(row['over_cubic_low'], '+.2f')} to "
            f"{number(row['over_cubic_high'], '+.2f')}",
            "SSIM": number(row["ssim"], ".4f"),
            "FRC nm": number(row["frc_along_nm"], ".1f"),
            "membranes": number(row["membrane_dice"], ".3f"),
            "time": in_time(row["seconds"]),
        }
        for row in found["rows"]
    ]
    head = facts(
        (
            ("truth", found["truth"]),
            (
                "made coarse",
                f"by {found['factor']} along {found['axes']}, {found['degradation'].upper()}; "
                f"voxels {found['spacing_nm']} nm",
            ),
            ("compared", f"{found['compared']}; {found['left_out']}"),
            ("noise", _ceiling(found["ceiling_db"])),
        )
    )
    return Group(head, "", columns(rows, tuple(rows[0])[1:]), advice("\nall figures: --report DIR"))


def _ceiling(limits: Sequence[float | None] | None) -> str:
    if limits is None:
        return ""
    low, high = (number(limit, ".1f") for limit in limits)
    return f"in the truth limits PSNR to about {low} to {high} dB"


def _judged(found: Mapping[str, Any]) -> RenderableType:
    head = facts(
        (
            ("source", found["source"]),
            ("restored", f"by {found['factor']} along z; voxels {found['spacing_nm']} nm"),
            ("looked at", f"{len(found['boxes'])} boxes, {in_bytes(found['bytes_read'])} read"),
            ("limits", found["limits"]),
        )
    )
    tables = [
        part
        for name in ("rows", "consistency", "lateral")
        if found[name]
        for part in ("", named(name), columns([_cells(row) for row in found[name]]))
    ]
    return Group(head, *tables, advice("\nall figures and pictures: --report DIR"))


def named(part: str) -> str:
    """Say what a table is about."""
    return {"rows": "models", "consistency": "made coarse again, grey levels from the source"}.get(
        part, "restoring sections that were made as coarse along y or x"
    )


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        key.replace("_", " "): number(value, ".4g") if isinstance(value, float) else str(value)
        for key, value in row.items()
        if value is not None
    }


def number(value: float | None, form: str) -> str:
    """Write a figure; what is not finite, or was not measured, is a dash."""
    return "-" if value is None else format(value, form)
