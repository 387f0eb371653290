"""Neuroglancer states and links: volumes as layers that lie exactly on one another. Pure.

Neuroglancer speaks x,y,z and metres; only here are axes turned round. It takes a position as the
corner of voxels: precomputed voxel 0 starts at voxel_offset * resolution, OME-Zarr voxel 0 at
translation - scale/2 (neuroglancer, datasource/zarr/ome.ts). ``VolumeSpec.corner_nm`` says where
the volume truly lies; a layer gets a transform only where its format could not hold that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, TypeAlias
from urllib.parse import quote

import numpy as np

from isochunk.core.codec import JsonObject
from isochunk.core.geometry import AXES, Spacing
from isochunk.core.mending import runs_of
from isochunk.core.sections import Section, SectionTable
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import UsageError
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access
from isochunk.storage.url import parse_url

Arrangement: TypeAlias = Literal["side-by-side", "overlay"]

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

LOCAL = "file://"

FILLED_NAME, FILLED_COLOUR = "filled sections", "#ff8000"
"""The layer that marks where nothing was recorded."""

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
    """The volume; its URL is where the browser finds it, its ``corner_nm`` where it truly lies."""
    contrast: tuple[float, float] | None = None
    """Stored values shown as black and as white; None for the range of the dtype."""


@dataclass(frozen=True, slots=True)
class FilledSections:
    """Sections of the source that hold nothing recorded, to be shown as boxes."""

    spec: VolumeSpec
    """The source."""
    lost: tuple[Section, ...]
    """Its lost sections, by rising z."""


def contrast_range(voxels: Voxels) -> tuple[float, float]:
    """Return the 1st and 99th percentile of the voxels that are not zero, apart by 1 in integers.

    Zero is what missing chunks and the margin around a specimen hold.
    """
    seen = voxels[(voxels != 0) & np.isfinite(voxels)]
    if not seen.size:
        return full_range(voxels.dtype.name)
    low, high = (float(v) for v in np.percentile(seen, CONTRAST_PERCENTILES))
    apart = voxels.dtype.kind == "f" and high > low
    return (low, high if apart else max(high, low + 1.0))


def full_range(dtype: str) -> tuple[float, float]:
    """Return the values shown as black and white where nothing is known of them."""
    return (0.0, 1.0 if np.dtype(dtype).kind == "f" else float(np.iinfo(dtype).max))


def neuroglancer_state(
    layers: Sequence[Layer],
    arrangement: Arrangement = "side-by-side",
    filled: FilledSections | None = None,
) -> JsonObject:
    """Return the viewer state that shows all of the first layer, in its voxels.

    Args:
        layers: result first, then what it is compared with; names differ.
        arrangement: one four-panel view per layer beside each other, with one position, or all
            layers in one view, the first on top.
        filled: marked in every view, so that nobody takes them for data; None for none.

    Raises:
        UsageError: no layers, or names that repeat.
    """
    names = [layer.name for layer in layers]
    if not layers or len(set(names)) != len(names):
        raise UsageError(f"layers to show need names that differ; got {names}")
    spec = layers[0].spec
    # Neuroglancer draws later layers over earlier ones.
    shown = [_layer(layer) for layer in reversed(layers)]
    marks = [] if filled is None or not filled.lost else [_filled_layer(filled)]
    corner_nm, extent_nm = _bounds_nm(spec)
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
        "layers": [*shown, *marks],
        "layout": _layout(names, arrangement, [mark["name"] for mark in marks]),
        "selectedLayer": {"visible": False, "layer": names[0]},
    }


def neuroglancer_url(base: str, state: JsonObject) -> str:
    """Return the link that opens a state in the neuroglancer served at ``base``."""
    text = json.dumps(state, separators=(",", ":"))
    return f"{base.rstrip('/')}/#!{quote(text, safe='~@$&()*!+=:;,./')}"


def filled_sections(source: VolumeSpec, table: SectionTable | None) -> FilledSections | None:
    """Return what a section table calls lost; None without one."""
    if table is None:
        return None
    return FilledSections(source, tuple(s for s in table.sections if s.lost))


def public_link(plan: Plan, access: Access) -> str:
    """Return a link to the public neuroglancer; empty where the target is files."""
    if plan.target.url.startswith(LOCAL):
        return ""
    shown = [Layer("result", as_seen(plan.target, access))]
    if not plan.source.url.startswith(LOCAL):
        ends = None if plan.window is None else plan.window.ends
        shown.append(Layer("source", as_seen(plan.source, access), ends))
    state = neuroglancer_state(shown, filled=filled_sections(plan.source, plan.sections))
    return neuroglancer_url(PUBLIC_NEUROGLANCER, state)


def as_seen(spec: VolumeSpec, access: Access) -> VolumeSpec:
    """Name the S3-compatible server in a volume's URL, since a browser knows no other way."""
    location = parse_url(spec.url)
    if location.scheme != "s3":
        return spec
    return replace(spec, url=replace(location, endpoint_url=access.endpoint(location)).url)


def check_shown(spec: VolumeSpec) -> None:
    """Check that neuroglancer reads a volume's format.

    Raises:
        UsageError: it does not.
    """
    if spec.format not in SUFFIXES:
        raise UsageError(
            f"{spec.url} is {spec.format}, which neuroglancer does not read; convert it with "
            "--model identity to look at it"
        )


def layer_url(spec: VolumeSpec) -> str:
    """Return the data source URL of a volume as neuroglancer takes it.

    Raises:
        UsageError: neuroglancer does not read the format.
    """
    check_shown(spec)
    suffix = SUFFIXES[spec.format]
    return f"{spec.url.rstrip('/')}/{suffix}" if suffix else spec.url


def _layout(
    names: Sequence[str], arrangement: Arrangement, everywhere: Sequence[str]
) -> JsonObject | str:
    if arrangement == "overlay" or len(names) == 1:
        return "4panel"
    views = [
        {"type": "viewer", "layers": [name, *everywhere], "layout": "4panel"} for name in names
    ]
    return {"type": "row", "children": views}


def _filled_layer(filled: FilledSections) -> JsonObject:
    """Return a layer of one box a run of lost sections, in voxels of the source, x,y,z."""
    spec, dimensions = filled.spec, _dimensions(filled.spec.spacing, reversed(AXES))
    corner = [float(c / s) for c, s in zip(spec.corner_nm, spec.spacing, strict=True)]
    boxes = []
    for run in runs_of([section.z for section in filled.lost]):
        lo = (run[0], *spec.box.lo[1:])
        hi = (run[-1] + 1, *spec.box.hi[1:])
        name = f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}"
        boxes.append(
            {
                "type": "axis_aligned_bounding_box",
                "id": name,
                "pointA": [c + v for c, v in zip(reversed(corner), reversed(lo), strict=True)],
                "pointB": [c + v for c, v in zip(reversed(corner), reversed(hi), strict=True)],
                "description": f"filled from neighbours: source section {name}",
            }
        )
    return {
        "type": "annotation",
        "name": FILLED_NAME,
        "source": {
            "url": "local://annotations",
            "transform": {"outputDimensions": dimensions},
        },
        "annotations": boxes,
        "annotationColor": FILLED_COLOUR,
    }


def _layer(layer: Layer) -> JsonObject:
    low, high = layer.contrast or full_range(layer.spec.dtype)
    shown: JsonObject = {"range": [low, high]}
    place: JsonObject = {}
    if layer.spec.channel is not None:
        # Channels of OME-Zarr are places of a dimension of the layer's own, others the shader's.
        if layer.spec.format in ("zarr2", "zarr3"):
            place = {"localDimensions": {"c'": [1, ""]}, "localPosition": [layer.spec.channel]}
        else:
            shown["channel"] = [layer.spec.channel]
    return {
        "type": "image",
        "name": layer.name,
        "source": _source(layer),
        "opacity": 1,
        "shader": SHADER,
        "shaderControls": {"normalized": shown},
        **place,
    }


def _source(layer: Layer) -> JsonObject | str:
    """Name the data, and its place where neuroglancer would not find that by itself."""
    spec = layer.spec
    url = layer_url(spec)
    sizes = _dimensions(spec.spacing, AXES)
    # The linear part is in lengths: metres per metre, or per voxel of an array without lengths.
    stretch = dict.fromkeys(AXES, 1.0)
    if spec.format in ("zarr2", "zarr3"):
        if spec.levels[0].key:  # OME-Zarr holds the corner
            return url
        stretch = {axis: sizes[axis][0] for axis in AXES}
    elif not any(spec.corner_nm):
        return url
    # Stored order: the columns of the matrix are the data's axes, its rows ``outputDimensions``.
    axes = tuple(reversed(AXES)) if spec.format in ("precomputed", "cloudvolume", "n5") else AXES
    voxels = {a: float(c / s) for a, c, s in zip(AXES, spec.corner_nm, spec.spacing, strict=True)}
    matrix = [[*(stretch[row] * (row == axis) for axis in axes), voxels[row]] for row in axes]
    return {
        "url": url,
        "transform": {"outputDimensions": {axis: sizes[axis] for axis in axes}, "matrix": matrix},
    }


def _bounds_nm(spec: VolumeSpec) -> tuple[list[Fraction], list[Fraction]]:
    """Return the first corner and the extent (z, y, x) of the finest level."""
    sizes = tuple(spec.spacing)
    corner = [c + a * s for c, a, s in zip(spec.corner_nm, spec.box.lo, sizes, strict=True)]
    return corner, [n * s for n, s in zip(spec.box.shape, sizes, strict=True)]


def _dimensions(spacing: Spacing, axes: Iterable[str]) -> JsonObject:
    sizes = dict(zip(AXES, spacing, strict=True))
    return {axis: [float(sizes[axis] / NM_PER_M), "m"] for axis in axes}
