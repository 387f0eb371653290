"""OME-Zarr 0.4 (zarr v2) and 0.5 (zarr v3) multiscales metadata, read and written. Pure.

Format: the NGFF specification. ``translation`` is the centre of voxel 0, so the first corner of
voxel 0 lies at translation - scale/2. Of axes t and c one place is read; written are z, y, x.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from isochunk.core.codec import JsonObject
from isochunk.core.geometry import AXES, Box, Spacing, exact_nm, triple
from isochunk.core.option_names import option
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.errors import CorruptDataError, UsageError
from isochunk.storage.arrays import ArrayMeta
from isochunk.storage.axes import Pick, pick_from

UNITS_NM = {
    "angstrom": Fraction(1, 10),
    "nanometer": Fraction(1),
    "nm": Fraction(1),
    "micrometer": Fraction(10**3),
    "um": Fraction(10**3),
    "µm": Fraction(10**3),
    "micron": Fraction(10**3),
    "millimeter": Fraction(10**6),
    "mm": Fraction(10**6),
    "meter": Fraction(10**9),
    "m": Fraction(10**9),
}
"""Nanometres per unit of length."""

NO_PICK = Pick()

SPACING_HELP = f"give the voxel size in nm, as 46,4.6,4.6, with {option('source_spacing', 'Z,Y,X')}"


@dataclass(frozen=True, slots=True)
class Placement:
    """Affine placement of one array axis: position = index * scale + translation."""

    scale: Fraction
    """Length of a voxel."""
    translation: Fraction
    """Position of the centre of voxel 0."""


def exact(value: object) -> Fraction:
    """Make an exact number from a JSON number; the sign is free."""
    return Fraction(repr(value))


def multiscale_of(attributes: JsonObject) -> JsonObject | None:
    """Return the first multiscales entry of a group's attributes, if it has one."""
    ome = attributes.get("ome", attributes)
    entries = ome.get("multiscales") if isinstance(ome, dict) else None
    return entries[0] if entries else None


def dataset_paths(multiscale: JsonObject) -> list[str]:
    """Return the paths of the arrays, finest first."""
    return [str(dataset["path"]).strip("/") for dataset in multiscale["datasets"]]


def volume_spec(
    url: str,
    multiscale: JsonObject,
    arrays: Mapping[str, ArrayMeta],
    spacing: Spacing | None = None,
    asked: Pick = NO_PICK,
) -> tuple[VolumeSpec, tuple[str, ...]]:
    """Read a multiscales entry.

    Args:
        url: of the group.
        multiscale: the entry.
        arrays: metadata of each array by path.
        spacing: voxel size of the finest level, for groups that name no unit.
        asked: the channel and the time point to read, where there are several.

    Returns:
        The spec and the names of the arrays' axes, in stored order.

    Raises:
        UsageError: axes, units or transformations that are not supported.
        CorruptDataError: a member is missing or has the wrong type.
    """
    try:
        axes = _axes(url, multiscale)
        names = tuple(name for name, _ in axes)
        first = arrays[dataset_paths(multiscale)[0]]
        pick = pick_from(url, names, first.shape, asked)
        placements = [_placements(url, multiscale, d, len(axes)) for d in multiscale["datasets"]]
        units = _units(url, axes, placements[0], spacing)
        levels = []
        for path, placed in zip(dataset_paths(multiscale), placements, strict=True):
            by_axis = dict(zip(names, placed, strict=True))
            scale = Spacing(*(exact_nm(str(by_axis[a].scale * units[a])) for a in AXES))
            levels.append(level_spec(path, arrays[path], names, scale))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, UsageError):
            raise
        raise CorruptDataError(
            f"{url} has unreadable OME-Zarr metadata: {type(error).__name__}: {error}"
        ) from error
    by_axis = dict(zip(names, placements[0], strict=True))
    corner = [(by_axis[a].translation - by_axis[a].scale / 2) * units[a] for a in AXES]
    spec = VolumeSpec(
        url,
        first.format,
        first.dtype,
        first.encoding,
        (corner[0], corner[1], corner[2]),
        tuple(levels),
        pick.channel,
        pick.time,
    )
    return spec, names


def _axes(url: str, multiscale: JsonObject) -> list[tuple[str, str | None]]:
    axes = multiscale.get("axes")
    if not axes:
        raise UsageError(f"{url} has no axes; OME-Zarr 0.4 and 0.5 are supported")
    if isinstance(axes[0], str):  # OME-Zarr 0.3: names only
        return [(str(axis).lower(), None) for axis in axes]
    return [(str(axis["name"]).lower(), axis.get("unit")) for axis in axes]


def level_spec(path: str, array: ArrayMeta, names: tuple[str, ...], spacing: Spacing) -> LevelSpec:
    """Describe one array as a level, in z, y, x order."""
    order = [names.index(axis) for axis in AXES]
    shard = None if array.shard is None else triple(array.shard[i] for i in order)
    box = Box.from_shape(triple(array.shape[i] for i in order))
    return LevelSpec(path, box, spacing, triple(array.chunk[i] for i in order), shard)


def _placements(
    url: str, multiscale: JsonObject, dataset: JsonObject, rank: int
) -> list[Placement]:
    scale, shift = [Fraction(1)] * rank, [Fraction(0)] * rank
    transforms = [
        *dataset.get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ]
    for transform in transforms:
        kind = transform["type"]
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or kind not in transform:
            raise UsageError(
                f"{url} has a coordinate transformation {kind!r}; scale and translation given as "
                "lists are supported"
            )
        values = [exact(v) for v in transform[kind]]
        if kind == "scale":
            scale = [s * v for s, v in zip(scale, values, strict=True)]
            shift = [t * v for t, v in zip(shift, values, strict=True)]
        else:
            shift = [t + v for t, v in zip(shift, values, strict=True)]
    return [Placement(s, t) for s, t in zip(scale, shift, strict=True)]


def _units(
    url: str, axes: list[tuple[str, str | None]], finest: list[Placement], spacing: Spacing | None
) -> dict[str, Fraction]:
    """Return nm per unit for z, y, x; a spacing from outside stands in for missing units."""
    given = dict(zip(AXES, spacing, strict=True)) if spacing else {}
    units = {}
    for (name, unit), placement in zip(axes, finest, strict=True):
        if name not in AXES:
            continue
        if unit is None and name in given:
            units[name] = given[name] / placement.scale
        elif unit in UNITS_NM:
            units[name] = UNITS_NM[unit]
        else:
            raise UsageError(
                f"{url} has unit {unit!r} on axis {name}; known are {', '.join(UNITS_NM)}; "
                f"where there is none, {SPACING_HELP}"
            )
    return units


def group_attributes(spec: VolumeSpec, attributes: JsonObject) -> JsonObject:
    """Return the attributes of a new OME-Zarr group, provenance included."""
    version = "0.5" if spec.format == "zarr3" else "0.4"
    multiscale: JsonObject = {
        "name": spec.url.rsplit("/", 1)[-1],
        "axes": [{"name": a, "type": "space", "unit": "nanometer"} for a in AXES],
        "datasets": [_dataset(spec, level) for level in spec.levels],
    }
    provenance = {"isochunk": attributes} if attributes else {}
    if version == "0.5":
        return {"ome": {"version": version, "multiscales": [multiscale]}, **provenance}
    return {"multiscales": [{"version": version, **multiscale}], **provenance}


def _dataset(spec: VolumeSpec, level: LevelSpec) -> JsonObject:
    centre = [c + s / 2 for c, s in zip(spec.corner_nm, level.spacing, strict=True)]
    return {
        "path": level.key,
        "coordinateTransformations": [
            {"type": "scale", "scale": [float(s) for s in level.spacing]},
            {"type": "translation", "translation": [float(c) for c in centre]},
        ],
    }


def group_files(spec: VolumeSpec, attributes: JsonObject) -> dict[str, bytes]:
    """Return the files of a new group by key, the one that makes it a group last."""
    content = group_attributes(spec, attributes)
    if spec.format == "zarr3":
        group = {"zarr_format": 3, "node_type": "group", "attributes": content}
        return {"zarr.json": json.dumps(group, indent=1).encode()}
    return {
        ".zattrs": json.dumps(content, indent=1).encode(),
        ".zgroup": json.dumps({"zarr_format": 2}).encode(),
    }
