"""A volume to try things on."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from isochunk.core.geometry import Box
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.tissue import SPACING, coarse
from isochunk.storage.open import create_volume

CHUNK = (10, 80, 80)
"""Of what is written, in voxels."""


def sample_tissue(folder: str | Path) -> str:
    """Write a little real tissue with thick sections, to try things on.

    It is medulla of a fly, 40 x 160 x 160 voxels of 40 x 10 x 10 nm: sections of 10 nm (FlyEM,
    Janelia; Parag et al. 2015, doi 10.1371/journal.pone.0125825, CC-BY), each four averaged.

    Args:
        folder: where to write it; made where there is none.

    Returns:
        The URL of the volume.

    Raises:
        StorageError: it cannot be written.
    """
    url = f"file://{Path(folder).resolve()}"
    thick = coarse()
    level = LevelSpec("10_10_40", Box.from_shape(thick.shape), SPACING, CHUNK, None)
    zero = (Fraction(0), Fraction(0), Fraction(0))
    create_volume(VolumeSpec(url, "precomputed", "uint8", "raw", zero, (level,))).write(
        level.box, thick
    )
    return url
