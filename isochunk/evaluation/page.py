"""One page that shows an evaluation: tables, curves, slices; it fetches nothing from elsewhere.

The words are in ``page.html.j2``, the look in ``base.html.j2``; here is what they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jinja2 import Environment

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
from isochunk.pages.templates import page_templates

PAGE = "index.html"
TEMPLATE = "page.html.j2"


def write_page(evaluation: Evaluation, folder: Path) -> None:
    """Write ``index.html`` into a folder that exists."""
    (folder / PAGE).write_text(render_page(evaluation), encoding="utf-8")


def render_page(evaluation: Evaluation) -> str:
    """Return the page as HTML with all images inside."""
    names = measured_figures(evaluation)
    environment = page_environment()
    environment.filters |= {"figure": format_figure}
    return environment.get_template(TEMPLATE).render(
        evaluation=evaluation,
        cards=evaluation.cards,
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


def page_environment() -> Environment:
    """Return what fills the templates of pages."""
    environment = page_templates("isochunk.evaluation")
    environment.filters |= {"factor": format_factor, "short": short_name}
    return environment


def _gains_over_cubic(evaluation: Evaluation) -> dict[str, str]:
    """Return how much PSNR each model has over cubic, as it is written."""
    psnr = {figures.model: figures.psnr for figures in evaluation.figures}
    gains = {model: value - psnr["cubic"] for model, value in psnr.items()}
    return {model: f"{gain:+.2f}" if np.isfinite(gain) else "-" for model, gain in gains.items()}


def best_of(texts: Sequence[str], better: Literal["higher", "lower"] | None) -> str | None:
    """Return the best of some figures as they are written; None where there is no one best."""
    values = [float(text.replace(INFINITE, "inf")) for text in texts if text != "-"]
    if better is None or not values:
        return None
    best = max(values) if better == "higher" else min(values)
    written = [text for text in texts if text != "-"]
    return written[values.index(best)] if values.count(best) == 1 else None


def _best(evaluation: Evaluation, name: str) -> str | None:
    texts = [format_figure(figures, name) for figures in evaluation.figures]
    return best_of(texts, FIGURES[name].better)
