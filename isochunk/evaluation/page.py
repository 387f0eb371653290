"""One page that shows an evaluation: tables, curves, slices; it fetches nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from itertools import cycle, product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave

from isochunk import __version__
from isochunk.core.degradation import Degradation
from isochunk.core.geometry import format_factor
from isochunk.core.spec import ModelSpec
from isochunk.evaluation.metrics import PLANES, Array, rescaled_error
from isochunk.evaluation.results import (
    COLUMNS,
    INFINITE,
    Evaluation,
    averaging_text,
    degradation_text,
    error_of,
    figures_present,
    formatted,
    noise_limit_text,
)
from isochunk.evaluation.results import ModelResult as ModelResult
from isochunk.evaluation.spectra import CF_RADII, CF_RADIUS, THRESHOLD

Curve: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Values along x and y."""

PAGE = "index.html"
INCHES = (6.2, 3.9)
"""Size of a plot."""

GREYS = {"nearest": ":", "linear": "--", "cubic": "-"}
"""Interpolations are drawn grey, with these lines."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""All others; distinguishable by colour-blind readers too (Okabe and Ito 2008)."""
DASHES = ("-", "--", "-.", ":")
"""The next is taken where all colours have been."""

INPUT = {"nearest": ": the input itself, repeated"}
"""Added to the caption of slices."""

DARKEST, BRIGHTEST = 0.5, 99.5
"""Percentiles of the truth that are drawn black and white."""
LARGEST_ERROR = 99.5
"""Percentile of cubic's errors at which colours of error maps end."""

HOW: Mapping[Degradation, str] = {
    "avg": "Each section is the mean of the voxels that it covers.",
    "skip": "Each section is the first voxel that it covers; the others were never seen.",
    "psf": "Each section is a Gaussian-weighted mean, as wide at half maximum as it is thick.",
}

FIGURES = f"""PSNR is taken over all voxels compared. SSIM, CF-PSNR, FRC, RSE and RSP are taken on
xz planes, which contain the axis that was made up. wPSNR weighs errors by those of cubic. CF-PSNR
counts errors below {CF_RADIUS:g} cycles per plane only. FRC and FSC are the resolution at which
ring and shell correlation with the truth fall below 1/7; twice the voxel size is the finest there
is. Whole rings mix the degraded axis with a recorded one; FRC along counts the degraded axis alone.
RSE, in grey levels, and RSP compare after the blur and the contrast that suit a model best. Figures
compare on the same voxels only: never across volumes, nor between AVG and SKIP."""

STYLE = """
:root { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; }
body { max-width: 1500px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { max-width: 75ch; margin: .4rem 0; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th { font-weight: 600; border-bottom: 2px solid #888; white-space: nowrap; }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
.words td { vertical-align: top; overflow-wrap: anywhere; } td.best { font-weight: 700; }
.plots { display: flex; flex-wrap: wrap; gap: 1.5rem; } .plots img { max-width: 100%; }
.slices { display: grid; gap: .5rem; overflow-x: auto; padding-bottom: .5rem; }
.slices img { width: 100%; display: block; image-rendering: pixelated; }
figure { margin: 0; } figcaption { font-size: .85rem; color: #555; overflow-wrap: anywhere; }
.scale { display: flex; align-items: center; gap: .5rem; font-size: .85rem; color: #555; }
"""


def write_page(evaluation: Evaluation, folder: Path) -> None:
    """Write ``index.html`` into a folder that exists."""
    (folder / PAGE).write_text(page(evaluation), encoding="utf-8")


def page(evaluation: Evaluation) -> str:
    """Return the page as HTML with all images inside."""
    title = f"Restored and compared: {Path(evaluation.truth).name or evaluation.truth}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _what(evaluation),
        "<h2>Figures</h2>",
        _table(evaluation),
        f"<p>{FIGURES}</p>",
        "<h3>By orientation of the planes</h3>",
        _orientations(evaluation),
        "<h2>Curves</h2>",
        _curves(evaluation),
        "<h2>Slices</h2>",
        _slices(evaluation),
        "<h2>Models</h2>",
        _cards(evaluation.cards),
        f"<p>isochunk {escape(__version__)}</p>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _what(evaluation: Evaluation) -> str:
    voxels = evaluation.rows[0].voxels
    sentences = [
        f"Truth: {evaluation.truth}{averaging_text(evaluation)}, voxels of "
        f"{evaluation.spacing_nm} nm (z,y,x).",
        f"Degraded {degradation_text(evaluation)}. {HOW[evaluation.degradation]}",
        *noise_limit_text(evaluation),
        f"Every model restored it block by block, exactly as a run does. Compared: box "
        f"{evaluation.compared} (z,y,x), {voxels:,} voxels. Left out: {evaluation.left_out}.",
    ]
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)


def _table(evaluation: Evaluation) -> str:
    """Write the table of figures, with the gain over cubic; the best of each is bold."""
    names = figures_present(evaluation)
    cubic = next(row.psnr for row in evaluation.rows if row.model == "cubic")
    written = [formatted(row, names) for row in evaluation.rows]
    best = [_best(name, [line[i] for line in written]) for i, name in enumerate(names)]
    lines = []
    for row, line in zip(evaluation.rows, written, strict=True):
        gain = f"{row.psnr - cubic:+.2f}" if np.isfinite(row.psnr - cubic) else "-"
        marks = [' class="best"' if c == b else "" for c, b in zip(line, best, strict=True)]
        tds = [f"<td{mark}>{c}</td>" for mark, c in zip(marks, line, strict=True)]
        tds.insert(1, f"<td>{gain}</td>")
        name = f'<td title="{escape(row.model)}">{escape(_short(row.model))}</td>'
        lines.append(f"<tr>{name}{''.join(tds)}</tr>")
    heads = ["model", *(COLUMNS[name][0] for name in names)]
    heads.insert(2, "over cubic")
    return _html_table(heads, lines)


def _best(name: str, written: Sequence[str]) -> str | None:
    """Return the best figure of a column as it is written; None where there is no one best."""
    figures = [float(cell.replace(INFINITE, "inf")) for cell in written if cell != "-"]
    if name in ("seconds", "snr") or not figures:
        return None
    best = (min if COLUMNS[name][0].endswith("nm") or name == "rse" else max)(figures)
    return written[figures.index(best)] if figures.count(best) == 1 else None


def _orientations(evaluation: Evaluation) -> str:
    heads = [
        "model",
        *(
            f"{row.plane} {COLUMNS[figure][0]}"
            for figure in ("psnr", "ssim")
            for row in evaluation.results[0].planes
        ),
    ]
    lines = []
    for result in evaluation.results:
        found = [
            formatted(row, (figure,))[0] for figure in ("psnr", "ssim") for row in result.planes
        ]
        tds = "".join(f"<td>{cell}</td>" for cell in (escape(_short(result.figures.model)), *found))
        lines.append(f"<tr>{tds}</tr>")
    return _html_table(heads, lines)


def _html_table(heads: Sequence[str], lines: Sequence[str], kind: str = "") -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _curves(evaluation: Evaluation) -> str:
    results = evaluation.results
    cut_offs = {r.figures.model: (CF_RADII, r.cf_psnr) for r in results}
    rings = {r.figures.model: (r.frc.frequency, r.frc.value) for r in results}
    along = {r.figures.model: (r.frc_along.frequency, r.frc_along.value) for r in results}
    axis = "x" if evaluation.factor[0] == 1 else "z"
    shells = {r.figures.model: (r.fsc.frequency, r.fsc.value) for r in results}
    nm = evaluation.spacing_nm.split(",")[-1]
    frequency = f"cycles per voxel of {nm} nm"
    sampled = 1 / (2 * float(max(evaluation.factor)))
    plots = [
        _plot(
            cut_offs,
            PlotLabels("CF-PSNR: errors below a frequency", "cut-off, cycles per xz plane", "dB"),
        ),
        _plot(
            rings,
            PlotLabels("Fourier ring correlation with the truth, xz planes", frequency),
            sampled,
        ),
        _plot(
            along, PlotLabels(f"Ring correlation within 30 degrees of {axis}", frequency), sampled
        ),
        _plot(shells, PlotLabels("Fourier shell correlation with the truth", frequency), sampled),
    ]
    note = (
        "<p>The dotted vertical line is the highest frequency that the degraded axis still holds; "
        "beyond it a model can only know what it learnt elsewhere, or from the other axes.</p>"
    )
    return f'<div class="plots">{"".join(plots)}</div>{note}'


@dataclass(frozen=True, slots=True)
class PlotLabels:
    """What a plot says of itself."""

    title: str
    """Above it."""
    x: str
    """Below it."""
    y: str = ""
    """At its left."""


def _plot(curves: Mapping[str, Curve], labels: PlotLabels, sampled: float | None = None) -> str:
    """Draw curves.

    Args:
        curves: by model.
        labels: title and axes.
        sampled: of correlations, the highest frequency that the degraded axis still holds.
    """
    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.subplots()
    styles = cycle(product(DASHES, COLOURS))
    for name, (x, y) in curves.items():
        grey = name in GREYS
        dashes, colour = (GREYS[name], "#777") if grey else next(styles)
        axes.plot(
            x,
            np.where(np.isfinite(y), y, np.nan),
            dashes,
            label=_short(name),
            color=colour,
            linewidth=1.2 if grey else 1.8,
        )
    if sampled is not None:
        axes.axhline(THRESHOLD, color="#bbb", linewidth=0.8)
        axes.annotate("1/7", (0, THRESHOLD), (2, 2), textcoords="offset points", color="#888")
        axes.axvline(sampled, color="#999", linewidth=1, linestyle=":")
        axes.set_ylim(-0.05, 1.02)
    axes.set_xlim(left=0)
    axes.set_title(labels.title, fontsize=10, loc="left")
    axes.set_xlabel(labels.x)
    axes.set_ylabel(labels.y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f'<img alt="{escape(labels.title)}" src="{_data_uri(buffer, "svg+xml")}">'


def _slices(evaluation: Evaluation) -> str:
    """Show the middle slices of the truth and of every model, and what differs."""
    seen = [getattr(evaluation.view, plane) for plane in PLANES]
    dark, bright = np.percentile(np.concatenate([s.ravel() for s in seen]), [DARKEST, BRIGHTEST])
    cubic = next(r for r in evaluation.results if r.figures.model == "cubic")
    errors = [error_of(getattr(cubic.view, p), s) for p, s in zip(PLANES, seen, strict=True)]
    limit = float(np.percentile(np.concatenate([e.ravel() for e in errors]), LARGEST_ERROR)) or 1.0
    parts = [
        "<p>The middle of the middle slices; z runs downwards in xz and yz. Below each slice its "
        "absolute error; in the last row of xz, what is left once blur and contrast suit best.</p>",
        f'<p class="scale">0 {_image(np.linspace(0, 1, 256)[None], "magma", (0, 1), "scale", 160)} '
        f"{limit:.0f} grey levels and more</p>",
    ]
    for plane, truth in zip(PLANES, seen, strict=True):
        rows = [[_figure("truth", _image(truth, "gray", (dark, bright), f"truth {plane}"))]]
        rows += [["<div></div>"] for _ in range(2 if plane == "xz" else 1)]
        for result in evaluation.results:
            name, shown = result.figures.model, getattr(result.view, plane)
            drawn = _image(shown, "gray", (dark, bright), f"{name} {plane}")
            rows[0].append(_figure(f"{_short(name)}{INPUT.get(name, '')}", drawn))
            error = error_of(truth, shown)
            note = f"{np.sqrt(np.mean(np.square(error))):.2f} RMS"
            rows[1].append(_figure(note, _image(error, "magma", (0, limit), f"error {name}")))
            if plane == "xz":
                rows[2].append(_rescaled(result, truth, limit))
        columns = f"grid-template-columns: repeat({len(rows[0])}, minmax(170px, 1fr))"
        grid = "".join(cell for row in rows for cell in row)
        parts.append(f'<h3>{plane}</h3><div class="slices" style="{columns}">{grid}</div>')
    return "\n".join(parts)


def _rescaled(result: ModelResult, truth: Array, limit: float) -> str:
    fit = result.rescaled
    left = np.abs(rescaled_error(truth[:, None], result.view.xz[:, None], fit)[:, 0])
    drawn = _image(left, "magma", (0, limit), f"rescaled error {result.figures.model}")
    return _figure(f"blurred by {fit.sigma:.2f}, contrast x {fit.alpha:.2f}", drawn)


def _figure(caption: str, image: str) -> str:
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _image(
    values: Array, colours: str, limits: tuple[float, float], alt: str, width: int | None = None
) -> str:
    buffer = BytesIO()
    imsave(buffer, values, vmin=limits[0], vmax=limits[1], cmap=colours, format="png")
    size = "" if width is None else f' style="width: {width}px; height: 12px"'
    return f'<img alt="{escape(alt)}"{size} src="{_data_uri(buffer, "png")}">'


def _data_uri(buffer: BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _cards(cards: Sequence[ModelSpec]) -> str:
    if not cards:
        return "<p>Interpolations only.</p>"
    heads = (
        "model",
        "network",
        "factor z, y, x",
        "runs on",
        "halo z, y, x",
        "tiles join exactly",
        "parameters",
        "trained on",
        "licence",
        "sha256",
    )
    lines = []
    for card in cards:
        values: Sequence[Any] = (
            card.name,
            card.arch,
            format_factor(card.resolved_factor),
            card.plane,
            ", ".join(map(str, card.halo)),
            "yes" if card.exact else "no",
            f"{card.parameters:,}",
            card.trained_on or "not said",
            card.licence or "not said",
            card.sha256[:12],
        )
        lines.append("<tr>" + "".join(f"<td>{escape(str(t))}</td>" for t in values) + "</tr>")
    return _html_table(heads, lines, "words")


def _short(name: str) -> str:
    """Return the last part of a path or URL."""
    return name.rstrip("/").rpartition("/")[2] or name
