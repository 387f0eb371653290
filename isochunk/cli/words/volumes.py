"""What there is, in words: volumes, their sections, models."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from isochunk.cli.words.layout import advice, columns, facts, marked, styled
from isochunk.core.amounts import by, counted, in_bytes
from isochunk.planning.sentences import AXES, listed, volume


def info(found: Mapping[str, Any]) -> RenderableType:
    """Say what a volume is."""
    start = found["offset"]
    return facts(
        (
            *styled(volume(found)),
            ("starts at", by(start).replace(" x ", ", ") if any(start) else ""),
            *((name, f"{found[name]} of several") for name in ("channel", "time") if name in found),
        )
    )


def inspect(found: Mapping[str, Any]) -> RenderableType:
    """Say what is wrong with sections."""
    lost, corrected, shifts = found["lost"], found["corrected"], found["shifts"]
    told = found["suggestion"]
    rows: list[tuple[str, Any]] = [
        ("volume", found["url"]),
        (
            "read",
            f"{counted(found['sections'], 'section')} at level {found['level']}, "
            f"{in_bytes(found['bytes_read'])}",
        ),
        ("lost", f"{len(lost)}: z = {listed(lost)}" if lost else "none"),
        (
            "uneven",
            f"{len(corrected)}: z = {listed([s['z'] for s in corrected])}" if corrected else "none",
        ),
        ("padding", f"z = {listed(found['padding'])}" if found["padding"] else ""),
    ]
    if shifts:
        worst = max(shifts, key=lambda s: s["pixels"])
        rows.append(
            (
                "displaced",
                f"{len(shifts)}: z = {listed([s['z'] for s in shifts])}, "
                f"most by {worst['pixels']:g} pixels at z = {worst['z']}",
            )
        )
    else:
        rows.append(("displaced", "none"))
    rows.append(
        (
            "sections",
            f"{told['factor']:g} times as thick as a pixel is wide, "
            f"{told['degradation'] or 'means or samples'}: {told['reason']}",
        )
    )
    if not (lost or corrected):
        return facts(rows)
    return Group(
        facts(rows),
        "this writes them down; plan and run then take --sections sections.toml:",
        advice(f"isochunk inspect {shlex.quote(found['url'])} --out sections.toml"),
    )


def ratio(model: Mapping[str, Any]) -> str:
    """Say by what a model makes sections thinner."""
    trained, factor = model["trained_factors"], model["factor"][0]
    if trained is None:
        return "any" if factor == "any" else f"{factor:g}"
    low, high = trained
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def models(found: Mapping[str, Any]) -> RenderableType:
    """List models, or say all of one."""
    rows = found["rows"]
    if len(rows) == 1:
        return one_model(rows[0])
    table = columns(
        [
            {
                "name": row["name"],
                "ratio": ratio(row),
                "sections": {"mean": "means", "sample": "samples"}[row["phase"]],
                "sees": "volumes" if row["plane"] == "3d" else f"{row['plane']} slices",
                "halo": by(row["halo"]),
                "parameters": f"{row['parameters']:,}" if row["parameters"] else "",
                "licence": row["licence"],
            }
            for row in rows
        ],
        right=("parameters",),
    )
    return Group(table, advice("\nisochunk models NAME says all of one"))


def _network(model: Mapping[str, Any]) -> str:
    if not model["parameters"]:
        return "none: an interpolation"
    return f"{model['arch']}, {counted(model['parameters'], 'parameter')}"


def one_model(model: Mapping[str, Any]) -> RenderableType:
    """Say all of a model."""
    exact = model["exact"]
    return facts(
        (
            ("name", model["name"]),
            ("network", _network(model)),
            ("ratio", f"{ratio(model)}, along z"),
            (
                "sections",
                "are samples of their thickness (SKIP)"
                if model["phase"] == "sample"
                else "are means over their thickness (AVG)",
            ),
            ("sees", "volumes" if model["plane"] == "3d" else f"{model['plane']} slices"),
            ("halo", f"{by(model['halo'])} source voxels ({AXES})"),
            (
                "tiles",
                marked("join exactly", good=True)
                if exact
                else marked("do not join exactly", good=False),
            ),
            ("trained on", model["trained_on"]),
            ("licence", model["licence"]),
        )
    )
