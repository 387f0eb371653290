"""The page of an evaluation without truth; the look and the pictures are those of the other.

The words are in ``page.html.j2`` beside this file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from isochunk import __version__
from isochunk.evaluation.metrics import PLANES, ImagePlane
from isochunk.evaluation.page import PAGE, best_of, page_environment
from isochunk.evaluation.pictures import (
    BRIGHTEST,
    DARKEST,
    LARGEST_ERROR,
    Image,
    Palette,
    Plot,
    SliceGrid,
    draw_image,
    draw_plot,
    short_name,
)
from isochunk.evaluation.without_truth.results import Judgement, Place
from isochunk.evaluation.without_truth.tables import FIGURES, describe_boxes, format_judged

TEMPLATE = "without_truth/page.html.j2"

SHOWN_PLACES = 3
"""Places that are shown, the worst ones."""

SOURCE_CURVE = "the source, along z"
LATERAL_CURVE = "the source, along y and x"


def write_page(judgement: Judgement, folder: Path) -> None:
    """Write ``index.html`` into a folder that exists."""
    (folder / PAGE).write_text(render_page(judgement), encoding="utf-8")


def render_page(judgement: Judgement) -> str:
    """Return the page as HTML with all images inside."""
    environment = page_environment()
    environment.filters |= {"figure": format_judged}
    places = judgement.places[:SHOWN_PLACES]
    greys, heat = _palettes(places)
    scale = np.linspace(heat.low, heat.high, 256)[None]
    texts = {name: [format_judged(f, name) for f in judgement.figures] for name in FIGURES}
    return environment.get_template(TEMPLATE).render(
        judgement=judgement,
        cards=judgement.cards,
        title=f"Judged without a truth: {short_name(judgement.source)}",
        boxes=describe_boxes(judgement),
        headings={name: figure.heading for name, figure in FIGURES.items()},
        best={name: best_of(texts[name], figure.better) for name, figure in FIGURES.items()},
        curves=[draw_plot(plot) for plot in _plots(judgement)],
        scale=draw_image(scale, heat, "scale", f"{heat.high:.1f} grey levels and more"),
        places=[(place, _grids(place, greys, heat)) for place in places],
        version=__version__,
    )


def _plots(judgement: Judgement) -> list[Plot]:
    """Return the plots: power by frequency, and rings of the lateral test."""
    plots = []
    lateral, source = judgement.lateral_power, judgement.source_z_power
    if lateral is not None:
        own = {LATERAL_CURVE: lateral, SOURCE_CURVE: source}
        known = {r.model: r.along_z for r in judgement.results if r.along_z is not None}
        plots.append(
            Plot(
                title="Power of the outputs along z, beside that of the source",
                x_label="cycles per nm",
                y_label="squared grey levels x nm",
                curves={name: (s.frequency, s.power) for name, s in known.items()},
                sampled=1 / (2 * judgement.section_nm),
                references={n: (s.frequency, s.power) for n, s in own.items() if s is not None},
                kind="power",
            )
        )
    rings = {r.model: r.lateral.rings for r in judgement.results if r.lateral is not None}
    if rings:
        plots.append(
            Plot(
                title="Lateral test: ring correlation with the truth, within 30 degrees of y",
                x_label="cycles per voxel",
                y_label="",
                curves={name: (c.frequency, c.value) for name, c in rings.items()},
                sampled=1 / (2 * float(judgement.factor)),
                kind="correlation",
            )
        )
    return plots


def _palettes(places: tuple[Place, ...]) -> tuple[Palette, Palette]:
    """Return greys of the source, and colours of differences that end at the largest ones."""
    seen = np.concatenate([p.source[plane].ravel() for p in places for plane in PLANES])
    low, high = np.percentile(seen, [DARKEST, BRIGHTEST])
    errors = np.concatenate(
        [d[plane].ravel() for p in places for d in p.difference.values() for plane in PLANES]
    )
    largest = float(np.percentile(errors, LARGEST_ERROR)) or 1.0
    return Palette("gray", float(low), float(high)), Palette("magma", 0, largest)


def _grids(place: Place, greys: Palette, heat: Palette) -> list[SliceGrid]:
    """Draw a place: the source and every model, and below how far sections differ."""
    return [SliceGrid(plane, _rows(place, plane, greys, heat)) for plane in PLANES]


def _rows(
    place: Place, plane: ImagePlane, greys: Palette, heat: Palette
) -> list[list[Image | None]]:
    where = f"{plane} of {place.box}"
    source = draw_image(place.source[plane], greys, f"source {where}", "source, sections repeated")
    slices: list[Image | None] = [source]
    errors: list[Image | None] = [None]
    for model, restored in place.restored.items():
        slices.append(draw_image(restored[plane], greys, f"{model} {where}", short_name(model)))
        difference = place.difference[model][plane]
        caption = f"{np.sqrt(np.mean(np.square(difference))):.2f} RMS"
        errors.append(draw_image(difference, heat, f"difference {model} {where}", caption))
    return [slices, errors]
