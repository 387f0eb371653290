"""Neuroglancer states and links: volumes as layers that lie exactly on one another. Pure.

Neuroglancer speaks x,y,z and metres; only here are axes turned round. It takes a position as the
corner of voxels: precomputed voxel 0 starts at voxel_offset * resolution, OME-Zarr voxel 0 at
translation - scale/2 (neuroglancer, datasource/zarr/ome.ts). Both are what ``VolumeSpec`` says,
so no layer needs a transform unless its format could not hold where the volume truly lies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import numpy as np

from isochunk.errors import UsageError
from isochunk.geometry import AXES, Box, Spacing
from isochunk.predict import Voxels
from isochunk.spec import VolumeSpec

Arrangement: TypeAlias = Literal["side-by-side", "overlay"]
JsonObject: TypeAlias = dict[str, Any]
LengthsNm: TypeAlias = tuple[Fraction, Fraction, Fraction]

PUBLIC_NEUROGLANCER = "https://neuroglancer-demo.appspot.com/"
"""A client that anyone can use with volumes that browsers can reach."""

SUFFIXES = {
    "precomputed": "|neuroglancer-precomputed:",
    "zarr2": "|zarr2:",
    "zarr3": "|zarr3:",
    "n5": "|n5:",
    "cloudvolume": "",
}
"""How neuroglancer names a format, after the URL of the folder."""

ORIGIN: LengthsNm = (Fraction(0), Fraction(0), Fraction(0))
NM_PER_M = 10**9
PANEL_PIXELS = 400
"""Shorter side of a panel on a common screen; decides the zoom only."""
SHADER = "#uicontrol invlerp normalized\nvoid main() {\n  emitGrayscale(normalized());\n}\n"
CONTRAST_PERCENTILES = (1.0, 99.0)


@dataclass(frozen=True, slots=True)
class Layer:
    """A volume to be shown."""

    name: str
    """What the layer is called."""
    spec: VolumeSpec
    """The volume; its URL is where the browser finds it."""
    contrast: tuple[float, float] | None = None
    """Stored values shown as black and as white; None for the range of the dtype."""
    shift_nm: LengthsNm = ORIGIN
    """How far (z, y, x) the volume truly lies from where its own metadata places it."""


def unstored_shift_nm(source: VolumeSpec, target: VolumeSpec) -> LengthsNm:
    """Return what a target's metadata could not say of where it lies (z, y, x).

    A precomputed volume made from an OME-Zarr one keeps its voxel grid but not its translation.

    Args:
        source: what the target was made from.
        target: a volume made by isochunk on the source's grid.
    """
    return source.corner_nm if target.format == "precomputed" else ORIGIN


def contrast_range(voxels: Voxels) -> tuple[float, float]:
    """Return the 1st and 99th percentile of the voxels that are not zero, at least 1 apart.

    Zero is what missing chunks and the margin around a specimen hold.
    """
    seen = voxels[voxels > 0]
    if not seen.size:
        return (0.0, float(np.iinfo(voxels.dtype).max))
    low, high = (float(v) for v in np.percentile(seen, CONTRAST_PERCENTILES))
    return (low, max(high, low + 1.0))


def neuroglancer_state(
    layers: Sequence[Layer], arrangement: Arrangement = "side-by-side"
) -> JsonObject:
    """Return the viewer state that shows all of the first layer, in its voxels.

    Args:
        layers: result first, then what it is compared with; names differ.
        arrangement: one four-panel view per layer beside each other, with one position, or all
            layers in one view, the first on top.

    Raises:
        UsageError: no layers, or names that repeat.
    """
    names = [layer.name for layer in layers]
    if not layers or len(set(names)) != len(names):
        raise UsageError(f"layers to show need names that differ; got {names}")
    spec = layers[0].spec
    corner_nm, extent_nm = _bounds_nm(layers[0])
    finest = min(spec.spacing)
    scale = float(max(extent_nm) / finest / PANEL_PIXELS)
    return {
        "dimensions": _dimensions(spec.spacing, reversed(AXES)),
        "position": [
            # The centre of a voxel: between two voxels rounding would decide which is shown.
            math.floor((corner + extent / 2) / size) + 0.5
            for corner, extent, size in zip(
                reversed(corner_nm), reversed(extent_nm), reversed(tuple(spec.spacing)), strict=True
            )
        ],
        "crossSectionScale": scale,
        "projectionScale": scale * PANEL_PIXELS * 2,
        # Neuroglancer draws later layers over earlier ones.
        "layers": [_layer(layer) for layer in reversed(layers)],
        "layout": _layout(names, arrangement),
        "selectedLayer": {"visible": False, "layer": names[0]},
    }


def neuroglancer_url(base: str, state: JsonObject) -> str:
    """Return the link that opens a state in the neuroglancer served at ``base``."""
    text = json.dumps(state, separators=(",", ":"))
    return f"{base.rstrip('/')}/#!{quote(text, safe='~@$&()*!+=:;,./')}"


def layer_url(spec: VolumeSpec) -> str:
    """Return the data source URL of a volume as neuroglancer takes it."""
    suffix = SUFFIXES[spec.format]
    return f"{spec.url.rstrip('/')}/{suffix}" if suffix else spec.url


def _layout(names: Sequence[str], arrangement: Arrangement) -> JsonObject | str:
    if arrangement == "overlay" or len(names) == 1:
        return "4panel"
    views = [{"type": "viewer", "layers": [name], "layout": "4panel"} for name in names]
    return {"type": "row", "children": views}


def _layer(layer: Layer) -> JsonObject:
    low, high = layer.contrast or (0.0, float(np.iinfo(layer.spec.dtype).max))
    return {
        "type": "image",
        "name": layer.name,
        "source": _source(layer),
        "opacity": 1,
        "shader": SHADER,
        "shaderControls": {"normalized": {"range": [low, high]}},
    }


def _source(layer: Layer) -> JsonObject | str:
    """Name the data, and its place where neuroglancer would not find that by itself."""
    spec, shift_nm = layer.spec, layer.shift_nm
    url = layer_url(spec)
    sizes = _dimensions(spec.spacing, AXES)
    # The linear part is in lengths: metres per metre, or per voxel of an array without lengths.
    stretch = dict.fromkeys(AXES, 1.0)
    if spec.format in ("zarr2", "zarr3") and not spec.levels[0].key:
        # A bare array: neuroglancer counts its voxels from 0.
        shift_nm = _sum(shift_nm, spec.corner_nm)
        stretch = {axis: sizes[axis][0] for axis in AXES}
    elif not any(shift_nm):
        return url
    # Stored order: the columns of the matrix are the data's axes, its rows ``outputDimensions``.
    axes = tuple(reversed(AXES)) if spec.format in ("precomputed", "cloudvolume", "n5") else AXES
    voxels = {a: float(n / s) for a, n, s in zip(AXES, shift_nm, spec.spacing, strict=True)}
    matrix = [[*(stretch[row] * (row == axis) for axis in axes), voxels[row]] for row in axes]
    return {
        "url": url,
        "transform": {"outputDimensions": {axis: sizes[axis] for axis in axes}, "matrix": matrix},
    }


def _bounds_nm(layer: Layer) -> tuple[LengthsNm, LengthsNm]:
    """Return the first corner and the extent (z, y, x) of a layer's finest level."""
    box: Box = layer.spec.box
    sizes = tuple(layer.spec.spacing)
    lo = [a * s for a, s in zip(box.lo, sizes, strict=True)]
    extent = [n * s for n, s in zip(box.shape, sizes, strict=True)]
    placed = _sum(_sum(layer.spec.corner_nm, layer.shift_nm), (lo[0], lo[1], lo[2]))
    return placed, (extent[0], extent[1], extent[2])


def _sum(a: LengthsNm, b: LengthsNm) -> LengthsNm:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _dimensions(spacing: Spacing, axes: Iterable[str]) -> JsonObject:
    sizes = dict(zip(AXES, spacing, strict=True))
    return {axis: [float(sizes[axis] / NM_PER_M), "m"] for axis in axes}
