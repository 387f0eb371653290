"""The figures of an evaluation written down: ``evaluation.json`` and ``evaluation.md``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isochunk.core.geometry import AXES
from isochunk.evaluation.config import NO_AVERAGE
from isochunk.evaluation.results import Evaluation, ModelFigures, PlaneFigures

INFINITE = "\N{INFINITY}"


@dataclass(frozen=True, slots=True)
class FigureFormat:
    """How a figure is written in tables."""

    heading: str
    """Its name and unit."""
    number_format: str
    """As :func:`format` takes it."""
    better: Literal["higher", "lower"] | None = "higher"
    """Which figure is the best one; None where it says nothing about quality."""


FIGURES: Mapping[str, FigureFormat] = {
    "psnr": FigureFormat("PSNR dB", ".2f"),
    "over_cubic": FigureFormat("over cubic dB", "+.2f"),
    "over_cubic_low": FigureFormat("95 % from", "+.2f", None),
    "over_cubic_high": FigureFormat("to", "+.2f", None),
    "ssim": FigureFormat("SSIM", ".4f"),
    "wpsnr": FigureFormat("wPSNR dB", ".2f"),
    "cf_psnr": FigureFormat("CF-PSNR dB", ".2f"),
    "frc_nm": FigureFormat("FRC nm", ".1f", "lower"),
    "frc_along_nm": FigureFormat("FRC along nm", ".1f", "lower"),
    "fsc_nm": FigureFormat("FSC nm", ".1f", "lower"),
    "rse": FigureFormat("RSE", ".2f", "lower"),
    "rsp": FigureFormat("RSP", ".4f"),
    "membranes": FigureFormat("membranes", ".2f", None),
    "membrane_dice": FigureFormat("membrane Dice", ".3f"),
    "snr": FigureFormat("SNR", ".1f", None),
    "seconds": FigureFormat("seconds", ".1f", None),
}
"""Figures of a model in the order of tables, by field of :class:`ModelFigures`."""


def write_tables(evaluation: Evaluation, folder: Path) -> None:
    """Write ``evaluation.json`` and ``evaluation.md`` into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**evaluation.summary(), "curves": evaluation.curves()}, indent=1)
    (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    (folder / "evaluation.md").write_text(as_markdown(evaluation), encoding="utf-8")


def as_markdown(evaluation: Evaluation) -> str:
    """Return the figures as tables, with what they stand for."""
    names = measured_figures(evaluation)
    lines = [
        f"`{evaluation.truth}`{describe_average(evaluation)}, box {evaluation.compared}, "
        f"{describe_degradation(evaluation)}; left out: {evaluation.left_out}."
    ]
    if ceiling := describe_noise_ceiling(evaluation):
        lines.append(ceiling)
    lines += ["", table_line("model", *(FIGURES[name].heading for name in names))]
    lines += [f"|{'---|' * (len(names) + 1)}"]
    lines += [
        table_line(figures.model, *(format_figure(figures, name) for name in names))
        for figures in evaluation.figures
    ]
    lines += ["", table_line("model", "plane", "PSNR dB", "SSIM"), "|---|---|---|---|"]
    lines += [
        table_line(
            plane.model, plane.plane, format_figure(plane, "psnr"), format_figure(plane, "ssim")
        )
        for result in evaluation.results
        for plane in result.planes
    ]
    return "\n".join(lines) + "\n"


def measured_figures(evaluation: Evaluation) -> tuple[str, ...]:
    """Return the names of the figures that some model has."""
    return tuple(
        name
        for name in FIGURES
        if any(getattr(figures, name) is not None for figures in evaluation.figures)
    )


def format_figure(figures: ModelFigures | PlaneFigures, name: str) -> str:
    """Write one figure of a model for people."""
    value = getattr(figures, name)
    text = "-" if value is None else f"{value:{FIGURES[name].number_format}}"
    return text.replace("inf", INFINITE)


def describe_degradation(evaluation: Evaluation) -> str:
    """Say how the truth was degraded, as ``x4 along z, AVG``."""
    parts = [f"x{r} along {a}" for a, r in zip(AXES, evaluation.factor, strict=True) if r != 1]
    return f"{', '.join(parts) or 'x1'}, {evaluation.degradation.upper()}"


def describe_average(evaluation: Evaluation) -> str:
    """Say that the truth was averaged first; empty where it was not."""
    z, y, x = evaluation.average
    return "" if evaluation.average == NO_AVERAGE else f" (mean of {z} x {y} x {x} voxels)"


def describe_noise_ceiling(evaluation: Evaluation) -> str:
    """Say in a sentence what PSNR noise allows; empty where that is not known."""
    ceiling = evaluation.noise_ceiling_db
    if ceiling is None or not math.isfinite(ceiling[1]):
        return ""
    low, high = ceiling
    return f"Noise in the ground truth limits PSNR to about {low:.1f} to {high:.1f} dB."


def table_line(*cells: str) -> str:
    """Write a row of a table."""
    return f"| {' | '.join(cells)} |"
