"""The embedded default job: a synthetic EM-like volume, local files, a local cluster."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from isochunk.core.geometry import Box, Spacing
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.synthetic import synthetic_pair
from isochunk.storage.open import create_volume

SHAPE = (32, 512, 512)
"""Voxels of the source."""

FACTOR = 4
SPACING = Spacing(Fraction(40), Fraction(10), Fraction(10))


def make_source(folder: str) -> str:
    """Write the demo's source volume; return its URL."""
    url = f"file://{Path(folder).resolve()}/anisotropic"
    coarse, _ = synthetic_pair(SHAPE, FACTOR, seed=0)
    level = LevelSpec("10_10_40", Box.from_shape(coarse.shape), SPACING, (16, 128, 128), None)
    zero = (Fraction(0), Fraction(0), Fraction(0))
    spec = VolumeSpec(url, "precomputed", "uint8", "raw", zero, (level,))
    create_volume(spec).write(level.box, coarse)
    return url
