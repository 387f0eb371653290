"""One page that shows an evaluation: tables, curves, slices; it fetches nothing from elsewhere.

The words and the look are in ``page.html.j2``; here is what it is given.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from isochunk import __version__
from isochunk.core.geometry import format_factor
from isochunk.evaluation.pictures import draw_curves, draw_error_scale, draw_slices, short_name
from isochunk.evaluation.results import Evaluation
from isochunk.evaluation.spectra import CF_RADIUS
from isochunk.evaluation.tables import (
    FIGURES,
    INFINITE,
    describe_average,
    describe_degradation,
    describe_noise_ceiling,
    format_figure,
    measured_figures,
)

PAGE = "index.html"
TEMPLATE = "page.html.j2"


def write_page(evaluation: Evaluation, folder: Path) -> None:
    """Write ``index.html`` into a folder that exists."""
    (folder / PAGE).write_text(render_page(evaluation), encoding="utf-8")


def render_page(evaluation: Evaluation) -> str:
    """Return the page as HTML with all images inside."""
    environment = Environment(
        loader=PackageLoader("isochunk.evaluation", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "factor": format_factor,
        "figure": format_figure,
        "short": short_name,
    }
    names = measured_figures(evaluation)
    return environment.get_template(TEMPLATE).render(
        evaluation=evaluation,
        title=f"Restored and compared: {short_name(evaluation.truth)}",
        average=describe_average(evaluation),
        degradation=describe_degradation(evaluation),
        noise_ceiling=describe_noise_ceiling(evaluation),
        headings={name: FIGURES[name].heading for name in names},
        best={name: _best(evaluation, name) for name in names},
        gains=_gains_over_cubic(evaluation),
        cf_radius=CF_RADIUS,
        curves=draw_curves(evaluation),
        error_scale=draw_error_scale(evaluation),
        slices=draw_slices(evaluation),
        version=__version__,
    )


def _gains_over_cubic(evaluation: Evaluation) -> dict[str, str]:
    """Return how much PSNR each model has over cubic, as it is written."""
    psnr = {figures.model: figures.psnr for figures in evaluation.figures}
    gains = {model: value - psnr["cubic"] for model, value in psnr.items()}
    return {model: f"{gain:+.2f}" if np.isfinite(gain) else "-" for model, gain in gains.items()}


def _best(evaluation: Evaluation, name: str) -> str | None:
    """Return the best of a figure as it is written; None where there is no one best."""
    better = FIGURES[name].better
    texts = [format_figure(figures, name) for figures in evaluation.figures]
    values = [float(text.replace(INFINITE, "inf")) for text in texts if text != "-"]
    if better is None or not values:
        return None
    best = max(values) if better == "higher" else min(values)
    return texts[values.index(best)] if values.count(best) == 1 else None
