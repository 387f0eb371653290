"""A volume in a notebook: what it is, and its middle slices, read from a coarse level."""

from __future__ import annotations

from html import escape

import numpy as np

from isochunk.core.geometry import Box, Spacing, triple
from isochunk.core.sentence import Sentence, as_html
from isochunk.core.spec import VolumeSpec
from isochunk.errors import IsochunkError
from isochunk.pages.slices import PLANES, draw, greys_of
from isochunk.planning import sentences
from isochunk.storage.volume import Volume

SMALL = 256
"""Voxels along the longest axis of a level shown whole; of a larger one its middle is."""
LONGEST = 256
"""Pixels of the longest side, on the screen."""


def volume_html(volume: Volume) -> str:
    """Describe a volume as HTML; a picture that cannot be had is told, not raised."""
    said = tuple(sentences.volume(volume.spec.summary()))
    try:
        pictures = _pictures(volume)
    except IsochunkError as error:
        return as_html("volume", (*said, Sentence("picture", str(error), good=False)))
    return as_html("volume", said) + pictures


def shown_level(spec: VolumeSpec) -> int:
    """Return the finest level that is small, else the coarsest."""
    small = (n for n, level in enumerate(spec.levels) if max(level.box.shape) <= SMALL)
    return next(small, len(spec.levels) - 1)


def _pictures(volume: Volume) -> str:
    number = shown_level(volume.spec)
    level = volume.spec.levels[number]
    lo = [max(a, (a + b - SMALL) // 2) for a, b in zip(level.box.lo, level.box.hi, strict=True)]
    middle = Box(triple(lo), triple(n + SMALL for n in lo)) & level.box
    slices = {}
    for plane, axis in PLANES.items():
        at, end = list(middle.lo), list(middle.hi)
        at[axis] += middle.shape[axis] // 2
        end[axis] = at[axis] + 1
        slices[plane] = volume.read(Box(triple(at), triple(end)), number).squeeze(axis)
    greys = greys_of(np.concatenate([values.ravel() for values in slices.values()]))
    shown = []
    for plane, values in slices.items():
        picture = draw(values, greys, f"{plane}, level {number}")
        high, wide = _pixels(middle, level.spacing, PLANES[plane])
        shown.append(
            f'<figure style="display:inline-block;margin:4px"><img src="{picture.source}" '
            f'width="{wide}" height="{high}" style="image-rendering:pixelated" '
            f'alt="{escape(picture.caption)}">'
            f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
        )
    return f"<div>{''.join(shown)}</div>"


def _pixels(box: Box, spacing: Spacing, across: int) -> tuple[int, int]:
    """Return height and width on the screen, in proportion to the extents in nm."""
    extents = [float(n * s) for n, s in zip(box.shape, spacing, strict=True)]
    high, wide = (n for axis, n in enumerate(extents) if axis != across)
    scale = LONGEST / max(extents)
    return max(1, round(high * scale)), max(1, round(wide * scale))
