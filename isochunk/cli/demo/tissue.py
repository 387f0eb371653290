"""Tissue that is known at full resolution, and the coarse volume that the demo restores.

``medulla.md`` beside this file says whose it is.
"""

from __future__ import annotations

from fractions import Fraction
from importlib.resources import files
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from isochunk.core.geometry import Box, Spacing
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.storage.open import create_volume

SECTIONS = 160
"""Sections of the truth."""
FACTOR = 4
"""Of which each section of the source is the mean."""
SPACING = Spacing(Fraction(40), Fraction(10), Fraction(10))
"""Voxel size of the source, nm."""
CHUNK = (10, 80, 80)
"""Of the source, in voxels."""


def truth() -> Voxels:
    """Return the tissue, (160, 160, 160) uint8 of 10 nm."""
    stored = (files("isochunk.cli.demo") / "medulla.png").read_bytes()
    rows = np.asarray(Image.open(BytesIO(stored)))
    return rows.reshape(SECTIONS, -1, rows.shape[1])


def write_source(folder: Path) -> str:
    """Write what a microscope with thick sections would have recorded; return its URL."""
    url = f"file://{folder.resolve()}/anisotropic"
    fine = truth()
    thick = fine.reshape(-1, FACTOR, *fine.shape[1:]).mean(1).round().astype(np.uint8)
    level = LevelSpec("10_10_40", Box.from_shape(thick.shape), SPACING, CHUNK, None)
    zero = (Fraction(0), Fraction(0), Fraction(0))
    create_volume(VolumeSpec(url, "precomputed", "uint8", "raw", zero, (level,))).write(
        level.box, thick
    )
    return url
