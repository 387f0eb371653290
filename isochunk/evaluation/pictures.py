"""The pictures of the page: plots of curves, and slices beside their errors, as data URIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import cycle, product
from typing import Literal, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave

from isochunk.evaluation.metrics import PLANES, Array, rescaled_error
from isochunk.evaluation.results import Evaluation, ModelResult
from isochunk.evaluation.spectra import CF_RADII, RESOLVED_CORRELATION
from isochunk.pages.templates import data_uri

Curve: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Values along x and y."""

INCHES = (6.2, 3.9)
"""Size of a plot."""

GREY_LINES = {"nearest": ":", "linear": "--", "cubic": "-"}
"""Interpolations are drawn grey, with these lines."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""All others; told apart by colour-blind readers too (Okabe and Ito 2008)."""
DASHES = ("-", "--", "-.", ":")
"""The next is taken where all colours have been."""

DARKEST, BRIGHTEST = 0.5, 99.5
"""Percentiles of the truth that are drawn black and white."""
LARGEST_ERROR = 99.5
"""Percentile of cubic's errors at which colours of error maps end."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the page."""

    description: str
    """Shown in its place to who cannot see it."""
    source: str
    """Data URI."""
    caption: str = ""
    """Shown below it."""


@dataclass(frozen=True, slots=True)
class Palette:
    """How values become colours."""

    colours: str
    """Name of a matplotlib colour map."""
    low: float
    """Value of the first colour."""
    high: float
    """Value of the last one."""


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves of all models in one plot."""

    title: str
    """What is plotted."""
    x_label: str
    """Of the x axis."""
    y_label: str
    """Of the y axis; empty for a correlation."""
    curves: Mapping[str, Curve]
    """By model."""
    sampled: float | None = None
    """Highest frequency that the degraded axis holds, in units of x, marked; None for none."""
    references: Mapping[str, Curve] = field(default_factory=dict)
    """What models are to be compared with, by name; drawn black."""
    kind: Literal["figure", "correlation", "power"] = "figure"
    """Correlations are drawn from 0 to 1, with 1/7 marked; power on a logarithmic scale."""


@dataclass(frozen=True, slots=True)
class SliceGrid:
    """Slices of one orientation, a model per column, after the truth's."""

    plane: str
    """xy, xz or yz."""
    rows: Sequence[Sequence[Image | None]]
    """Slices, errors and, for xz, rescaled errors; None where there is nothing to show."""


def draw_curves(evaluation: Evaluation) -> list[Image]:
    """Draw all curves: CF-PSNR by cut-off, and correlations with the truth by frequency."""
    results = evaluation.results
    axis = "x" if evaluation.factor[0] == 1 else "z"
    frequency = f"cycles per voxel of {evaluation.spacing_nm.split(',')[-1]} nm"
    sampled = 1 / (2 * float(max(evaluation.factor)))
    cf_psnr = Plot(
        title="CF-PSNR: errors below a frequency",
        x_label="cut-off, cycles per xz plane",
        y_label="dB",
        curves={r.model: (CF_RADII, r.cf_psnr) for r in results},
    )
    titles = {
        "frc": "Fourier ring correlation with the truth, xz planes",
        "frc_along": f"Ring correlation within 30 degrees of {axis}",
        "fsc": "Fourier shell correlation with the truth",
    }
    correlations = []
    for kind, title in titles.items():
        by_model = {r.model: getattr(r, kind) for r in results}
        curves = {model: (curve.frequency, curve.value) for model, curve in by_model.items()}
        correlations.append(Plot(title, frequency, "", curves, sampled, kind="correlation"))
    return [draw_plot(plot) for plot in (cf_psnr, *correlations)]


def draw_slices(evaluation: Evaluation) -> list[SliceGrid]:
    """Draw the middle slices of the truth and of every model, and what differs."""
    true_slices = [getattr(evaluation.truth_slices, plane) for plane in PLANES]
    seen = np.concatenate([slice_.ravel() for slice_ in true_slices])
    greys = Palette("gray", *np.percentile(seen, [DARKEST, BRIGHTEST]))
    heat = _error_palette(evaluation)
    grids = []
    for plane, true in zip(PLANES, true_slices, strict=True):
        slices: list[Image | None] = [draw_image(true, greys, f"truth {plane}", "truth")]
        errors: list[Image | None] = [None]
        for result in evaluation.results:
            predicted, model = getattr(result.slices, plane), result.model
            note = ": the input itself, repeated" if model == "nearest" else ""
            caption = f"{short_name(model)}{note}"
            slices.append(draw_image(predicted, greys, f"{model} {plane}", caption))
            error = _absolute_error(true, predicted)
            caption = f"{np.sqrt(np.mean(np.square(error))):.2f} RMS"
            errors.append(draw_image(error, heat, f"error {model}", caption))
        rows = [slices, errors]
        if plane == "xz":
            rescaled = [_draw_rescaled_error(result, true, heat) for result in evaluation.results]
            rows.append([None, *rescaled])
        grids.append(SliceGrid(plane, rows))
    return grids


def draw_error_scale(evaluation: Evaluation) -> Image:
    """Draw the colours of errors, from none to the largest."""
    heat = _error_palette(evaluation)
    scale = np.linspace(heat.low, heat.high, 256)[None]
    return draw_image(scale, heat, "scale", f"{heat.high:.0f} grey levels and more")


def short_name(model: str) -> str:
    """Return the last part of a path or URL."""
    return model.rstrip("/").rpartition("/")[2] or model


def draw_plot(plot: Plot) -> Image:
    """Draw curves of all models into one plot."""
    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.subplots()
    for (name, (x, y)), dashes in zip(plot.references.items(), cycle(DASHES), strict=False):
        axes.plot(x, y, dashes, label=name, color="#000", linewidth=1.2)
    styles = cycle(product(DASHES, COLOURS))
    for model, (x, y) in plot.curves.items():
        grey = model in GREY_LINES
        dashes, colour = (GREY_LINES[model], "#777") if grey else next(styles)
        axes.plot(
            x,
            np.where(np.isfinite(y), y, np.nan),
            dashes,
            label=short_name(model),
            color=colour,
            linewidth=1.2 if grey else 1.8,
        )
    if plot.sampled is not None:
        axes.axvline(plot.sampled, color="#999", linewidth=1, linestyle=":")
    if plot.kind == "power":
        axes.set_yscale("log")
    if plot.kind == "correlation":
        resolved = RESOLVED_CORRELATION
        axes.axhline(resolved, color="#bbb", linewidth=0.8)
        axes.annotate("1/7", (0, resolved), (2, 2), textcoords="offset points", color="#888")
        axes.set_ylim(-0.05, 1.02)
    axes.set_xlim(left=0)
    axes.set_title(plot.title, fontsize=10, loc="left")
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Image(plot.title, data_uri(buffer, "svg+xml"))


def _error_palette(evaluation: Evaluation) -> Palette:
    """Return the colours of errors; they end at the largest of cubic."""
    cubic = next(result for result in evaluation.results if result.model == "cubic")
    errors = [
        _absolute_error(getattr(evaluation.truth_slices, plane), getattr(cubic.slices, plane))
        for plane in PLANES
    ]
    largest = np.percentile(np.concatenate([error.ravel() for error in errors]), LARGEST_ERROR)
    return Palette("magma", 0, float(largest) or 1.0)


def _draw_rescaled_error(result: ModelResult, truth: Array, heat: Palette) -> Image:
    """Draw what is left of the errors of an xz slice once blur and contrast suit best."""
    fit = result.rescaled
    error = rescaled_error(truth[:, None], result.slices.xz[:, None], fit)[:, 0]
    caption = f"blurred by {fit.sigma:.2f}, contrast x {fit.alpha:.2f}"
    return draw_image(np.abs(error), heat, f"rescaled error {result.model}", caption)


def draw_image(values: Array, palette: Palette, description: str, caption: str) -> Image:
    """Draw a slice, a pixel for each voxel."""
    buffer = BytesIO()
    imsave(buffer, values, vmin=palette.low, vmax=palette.high, cmap=palette.colours, format="png")
    return Image(description, data_uri(buffer, "png"), caption)


def _absolute_error(truth: Array, predicted: Array) -> Array:
    return np.abs(truth.astype(np.float32) - predicted.astype(np.float32))
