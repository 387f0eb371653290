"""A little real tissue that is known at full resolution: for the demo, examples and tests.

``medulla.md`` beside this file says whose it is.
"""

from __future__ import annotations

from fractions import Fraction
from importlib.resources import files
from io import BytesIO

import numpy as np
from PIL import Image

from isochunk.core.geometry import Spacing
from isochunk.core.voxels import Voxels

SECTIONS = 160
"""Sections of the truth."""
FACTOR = 4
"""Of which each coarse section is the mean."""
SPACING = Spacing(Fraction(40), Fraction(10), Fraction(10))
"""Voxel size of coarse sections, nm."""


def truth() -> Voxels:
    """Return the tissue, (160, 160, 160) uint8 of 10 nm."""
    stored = (files("isochunk.core") / "medulla.png").read_bytes()
    rows = np.asarray(Image.open(BytesIO(stored)))
    return rows.reshape(SECTIONS, -1, rows.shape[1])


def attribution() -> str:
    """Return whose it is, and what was done to it, as Markdown."""
    return (files("isochunk.core") / "medulla.md").read_text(encoding="utf-8")


def coarse() -> Voxels:
    """Return what a microscope with thick sections would have recorded, (40, 160, 160) uint8."""
    fine = truth()
    thick: Voxels = fine.reshape(-1, FACTOR, *fine.shape[1:]).mean(1).round().astype(np.uint8)
    return thick
