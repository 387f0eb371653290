"""Voxel sizes in the metadata of TIFF files: ImageJ's and OME's. Pure.

Resolution tags alone tell nothing of the distance of sections, and are mostly a screen's.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, TypeAlias
from xml.etree import ElementTree

from isochunk.core.geometry import Spacing
from isochunk.storage.ome import UNITS_NM

Sizes: TypeAlias = tuple[Fraction | None, Fraction | None, Fraction | None]
"""Voxel size z, y, x in nm; None where it is not known."""

UNITS: Mapping[str, Fraction] = {
    **UNITS_NM,
    "µm": Fraction(1000),  # U+00B5, which OME writes
    "μm": Fraction(1000),  # U+03BC
    "\\u00B5m": Fraction(1000),  # as ImageJ escapes it
    "microns": Fraction(1000),
    "nanometers": Fraction(1),
    "Å": Fraction(1, 10),
    "pm": Fraction(1, 1000),
}
"""Nanometres per unit, by the names that microscopes and programs write."""

DIGITS = 6
"""Significant digits kept of sizes that are stored as quotients: 217391304/1000000 is 1/4.6."""


def rounded(value: Fraction | float) -> Fraction:
    """Return a length that was written in binary or as a quotient, as the decimal it was meant."""
    return Fraction(f"{float(value):.{DIGITS}g}")


def imagej_size(metadata: Mapping[str, Any], resolution: Mapping[str, tuple[int, int]]) -> Sizes:
    """Return the voxel size z, y, x in nm that ImageJ wrote; None for what it left out.

    Args:
        metadata: of its image description; ``spacing`` is the distance of sections.
        resolution: pixels per unit along ``x`` and ``y``, as quotients.
    """
    unit = UNITS.get(str(metadata.get("unit", "")).strip())
    if unit is None:
        return (None, None, None)
    lengths = {axis: rounded(Fraction(d, n)) for axis, (n, d) in resolution.items() if n and d}
    spacing = metadata.get("spacing")
    if isinstance(spacing, int | float) and spacing > 0:
        lengths["z"] = rounded(spacing)
    sizes = {axis: length * unit for axis, length in lengths.items()}
    return (sizes.get("z"), sizes.get("y"), sizes.get("x"))


def ome_size(xml: str) -> Sizes:
    """Return the voxel size z, y, x in nm of the first image of an OME-XML; None if it has none.

    Raises:
        ElementTree.ParseError: it is no XML.
        ValueError: a size is no number.
    """
    pixels = ElementTree.fromstring(xml).find("{*}Image/{*}Pixels")
    sizes: list[Fraction | None] = []
    for axis in "ZYX":
        size = None if pixels is None else pixels.get(f"PhysicalSize{axis}")
        unit = "µm" if pixels is None else pixels.get(f"PhysicalSize{axis}Unit", "µm")
        known = size is not None and unit in UNITS and float(size) > 0
        sizes.append(Fraction(size) * UNITS[unit] if size is not None and known else None)
    return (sizes[0], sizes[1], sizes[2])


def whole_spacing(sizes: Sizes) -> Spacing | None:
    """Return the spacing where all three sizes are known."""
    z, y, x = sizes
    return Spacing(z, y, x) if z and y and x else None
