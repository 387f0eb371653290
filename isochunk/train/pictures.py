"""What a training looks like: its curves, and slices before and after, as images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Picture: TypeAlias = Image.Image
Slice: TypeAlias = NDArray[np.floating[Any]]
"""A 2D image of 0..1."""

PANEL = (640, 300)
"""Width and height in pixels of one panel of curves."""
MARGIN = 48
"""Pixels around a panel, for its labels."""
GAP = 4
"""Pixels between slices."""
LEAST_SIDE = 256
"""Pixels that slices are magnified to, by whole numbers."""
INK, LINE, OTHER = (40, 40, 40), (31, 87, 165), (190, 90, 20)


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure of a training, over its steps."""

    title: str
    """What it is, with its unit."""
    steps: Sequence[float]
    """Where it was taken."""
    values: Sequence[float]
    """The figure; what is not finite is not drawn."""


def curves(history: Sequence[Mapping[str, float]], references: Mapping[str, float]) -> Picture:
    """Draw the loss, on a logarithmic scale, above the validation PSNR.

    Args:
        history: ``step``, ``loss`` and ``validation_psnr`` of each validation.
        references: PSNR in dB of what the network is compared with, by name.
    """
    steps = [entry["step"] for entry in history]
    loss = [math.log10(max(entry["loss"], 1e-12)) for entry in history]
    psnr = [entry["validation_psnr"] for entry in history]
    width, height = PANEL
    picture = Image.new("RGB", (width + 2 * MARGIN, 2 * (height + 2 * MARGIN)), "white")
    draw = ImageDraw.Draw(picture)
    _panel(draw, MARGIN, Curve("log10 of the loss", steps, loss), {})
    below = height + 3 * MARGIN
    _panel(draw, below, Curve("validation PSNR in dB", steps, psnr), references)
    return picture


def side_by_side(rows: Sequence[Sequence[Slice]], titles: Sequence[str]) -> Picture:
    """Set slices side by side, each row as high as its last slice.

    Args:
        rows: slices of each row; those coarser than the last are repeated to its size.
        titles: one for each column.
    """
    tiles = [[_enlarged(one, row[-1].shape) for one in row] for row in rows]
    height = sum(row[0].shape[0] + GAP for row in tiles)
    width = max(sum(tile.shape[1] + GAP for tile in row) for row in tiles)
    picture = Image.new("RGB", (width, height + MARGIN // 2), "white")
    draw = ImageDraw.Draw(picture)
    y = MARGIN // 2
    for row in tiles:
        x = 0
        for title, tile in zip(titles, row, strict=True):
            picture.paste(Image.fromarray(tile), (x, y))
            if y == MARGIN // 2:
                draw.text((x + GAP, GAP), title, fill=INK)
            x += tile.shape[1] + GAP
        y += row[0].shape[0] + GAP
    return picture


def _enlarged(one: Slice, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Repeat pixels to the shape of a fine slice, all magnified for the eye."""
    scale = max(1, math.ceil(LEAST_SIDE / max(shape)))
    index = [
        np.minimum(np.arange(n * scale) * have // (n * scale), have - 1)
        for n, have in zip(shape, one.shape, strict=True)
    ]
    grey = np.clip(np.rint(one * 255), 0, 255).astype(np.uint8)
    return grey[np.ix_(*index)]


def _panel(
    draw: ImageDraw.ImageDraw, top: int, curve: Curve, references: Mapping[str, float]
) -> None:
    """Draw one curve with its axes and horizontal lines to compare it with."""
    width, height = PANEL
    steps = curve.steps
    finite = [v for v in (*curve.values, *references.values()) if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    first, last = min(steps), max(steps)

    def at(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / max(last - first, 1)
        return MARGIN + across * width, top + (high - value) / (high - low) * height

    draw.rectangle([MARGIN, top, MARGIN + width, top + height], outline=INK)
    draw.text((MARGIN, top - 16), curve.title, fill=INK)
    draw.text((MARGIN, top + height + 4), f"step {first:g}", fill=INK)
    draw.text((MARGIN + width - 60, top + height + 4), f"{last:g}", fill=INK)
    for value in (low, high):
        draw.text((4, at(first, value)[1] - 5), f"{value:.2f}", fill=INK)
    for name, value in references.items():
        if math.isfinite(value):
            draw.line([at(first, value), at(last, value)], fill=OTHER)
            draw.text((MARGIN + 4, at(first, value)[1] - 12), f"{name} {value:.2f}", fill=OTHER)
    points = [at(s, v) for s, v in zip(steps, curve.values, strict=True) if math.isfinite(v)]
    draw.line(points, fill=LINE, width=2)
    for x, y in points:
        draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=LINE)
