"""What was judged without a truth, written down: ``evaluation.json`` and ``evaluation.md``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from isochunk.evaluation.tables import INFINITE, FigureFormat, table_line
from isochunk.evaluation.without_truth.results import JudgedFigures, Judgement

FIGURES: Mapping[str, FigureFormat] = {
    "consistency_rms": FigureFormat("consistency, grey levels", ".2f", "lower"),
    "lateral_psnr": FigureFormat("lateral PSNR dB", ".2f"),
    "lateral_over_cubic": FigureFormat("over cubic dB", "+.2f"),
    "heldout_psnr": FigureFormat("held-out PSNR dB", ".2f"),
    "z_to_xy_power": FigureFormat("z to xy power", ".3f", None),
    "membranes": FigureFormat("membranes", ".2f", None),
    "seconds": FigureFormat("seconds", ".1f", None),
}
"""Figures of a model in the order of tables, by field of :class:`JudgedFigures`."""


def write_judgement(judgement: Judgement, folder: Path) -> None:
    """Write ``evaluation.json`` and ``evaluation.md`` into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**judgement.summary(), "curves": judgement.curves()}, indent=1)
    (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    (folder / "evaluation.md").write_text(as_markdown(judgement), encoding="utf-8")


def as_markdown(judgement: Judgement) -> str:
    """Return the figures as a table, with what they stand for."""
    lines = [
        f"`{judgement.source}`, voxels of {judgement.spacing} nm (z,y,x), x{judgement.factor} "
        f"along z, {judgement.degradation.upper()}; {describe_boxes(judgement)}.",
        "",
        table_line("model", *(figure.heading for figure in FIGURES.values())),
        f"|{'---|' * (len(FIGURES) + 1)}",
    ]
    for figures in judgement.figures:
        lines.append(table_line(figures.model, *(format_judged(figures, n) for n in FIGURES)))
    lines += ["", *(f"- {m.model}, {m.figure}: {m.reason}" for m in judgement.not_measured)]
    if judgement.limits:
        lines += ["", judgement.limits]
    return "\n".join(lines).rstrip() + "\n"


def format_judged(figures: JudgedFigures, name: str) -> str:
    """Write one figure of a model for people."""
    value = getattr(figures, name)
    text = "-" if value is None else f"{value:{FIGURES[name].number_format}}"
    return text.replace("inf", INFINITE)


def describe_boxes(judgement: Judgement) -> str:
    """Say what was read."""
    boxes = "; ".join(map(str, judgement.boxes))
    passed = f", {judgement.passed_over} of background passed over" if judgement.passed_over else ""
    return f"boxes {boxes} ({judgement.bytes_read:,} bytes read{passed})"
