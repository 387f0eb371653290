"""What is known of a volume and of a model before any voxel is read.

Both are plain values: they travel to workers, into ``job.json`` and back unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal, TypeAlias

import numpy as np

from isochunk.core.codec import LATER, JsonObject
from isochunk.core.geometry import (
    Box,
    Factor,
    Spacing,
    Triple,
    factor_between,
    format_factor,
    source_box,
    triple,
)
from isochunk.errors import ModelError

Format: TypeAlias = Literal[
    "precomputed", "zarr2", "zarr3", "n5", "cloudvolume", "tiff", "hdf5", "mrc"
]
Plane: TypeAlias = Literal["3d", "xy", "xz", "yz", "xz+yz"]
Grid: TypeAlias = Literal["source", "target"]
Phase: TypeAlias = Literal["mean", "sample"]
Normalisation: TypeAlias = Literal["range", "standard"]

AXIAL: tuple[Plane, ...] = ("xz", "yz", "xz+yz")
"""Planes that a network for slices with one coarse axis can run on."""

INTERPOLATION_REACH = 2
"""Sections that cubic interpolation needs on either side."""

DTYPES = ("uint8", "uint16")
"""Voxel types that can be made isotropic."""


@dataclass(frozen=True, slots=True)
class LevelSpec:
    """One resolution level of a volume."""

    key: str
    """Path of the level's array below the volume's URL; empty where the URL is the array."""
    box: Box
    """Voxels of the level on its own global grid (``voxel_offset`` for precomputed, else 0)."""
    spacing: Spacing
    """Voxel size in nm."""
    chunk: Triple
    """Shape of the smallest unit that decodes by itself."""
    shard: Triple | None
    """Shape of one stored object holding many chunks; None if each chunk is an object."""

    @property
    def object_shape(self) -> Triple:
        """Shape of the voxels in one stored object."""
        return self.shard or self.chunk


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """A stored volume: one channel, one time point, one or more levels."""

    url: str
    """Canonical URL, free of credentials."""
    format: Format
    """Storage format."""
    dtype: str
    """numpy name of the voxel type."""
    encoding: str
    """How chunks are compressed: raw, jpeg, png, zstd, blosc, gzip, ..."""
    corner_nm: tuple[Fraction, Fraction, Fraction]
    """Position of the first corner of voxel (0, 0, 0) of every level's grid (z, y, x)."""
    levels: tuple[LevelSpec, ...]
    """Finest first."""
    channel: int | None = field(default=None, metadata=LATER)
    """Which of several stored channels this is; None where one is stored."""
    time: int | None = field(default=None, metadata=LATER)
    """Which of several stored time points this is; None where one is stored."""

    @property
    def box(self) -> Box:
        """Voxels of the finest level."""
        return self.levels[0].box

    @property
    def spacing(self) -> Spacing:
        """Voxel size of the finest level in nm."""
        return self.levels[0].spacing

    @property
    def itemsize(self) -> int:
        """Bytes of a voxel."""
        return np.dtype(self.dtype).itemsize

    @property
    def lossy(self) -> bool:
        """Whether reading back may differ from what was written."""
        return self.encoding == "jpeg"

    def summary(self) -> JsonObject:
        """Return the JSON object of ``isochunk info``; axes z, y, x."""
        finest = self.levels[0]
        chosen = {"channel": self.channel, "time": self.time}
        return {
            "url": self.url,
            "format": self.format,
            "shape": list(finest.box.shape),
            "dtype": self.dtype,
            "spacing_nm": [float(s) for s in finest.spacing],
            "offset": list(finest.box.lo),
            "chunk": list(finest.chunk),
            "shard": list(finest.shard) if finest.shard else None,
            "encoding": self.encoding,
            "levels": len(self.levels),
            **{name: number for name, number in chosen.items() if number is not None},
        }


@dataclass(frozen=True, slots=True)
class Intensity:
    """The one affine map between stored values and a model's values, for the whole job.

    A model sees ``(value - offset) / scale``.
    """

    offset: float = 0.0
    """Stored value that maps to 0."""
    scale: float = 255.0
    """Stored values per unit."""

    @classmethod
    def full_range(cls, dtype: str) -> Intensity:
        """Map the whole range of an integer dtype to [0, 1]."""
        return cls(0.0, float(np.iinfo(dtype).max))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What planning must know of a model."""

    name: str
    """What the user called it."""
    arch: str
    """Architecture: identity, nearest, linear, cubic, fsrcnn, srunet, module, ..."""
    factor: tuple[Fraction | None, Fraction | None, Fraction | None]
    """Target voxels per source voxel (z, y, x); None where any rational factor will do."""
    halo: Triple
    """Source voxels needed beyond an aligned block, on each side."""
    alignment: Triple = (1, 1, 1)
    """Source grid on which tiles must start."""
    phase: Phase = "mean"
    """A source section is the mean over its thickness, or a sample at its first target voxel."""
    plane: Plane = "3d"
    """Planes a 2D network runs on."""
    grid: Grid = "source"
    """Grid of halo and alignment while the factor is open: the target's for networks that refine an
    interpolation."""
    sections: int = 0
    """Neighbouring sections used on each side by a 2D network."""
    normalisation: Normalisation = "range"
    """``range``: dtype range to [0, 1]; ``standard``: measured mean 0 and deviation 1."""
    exact: bool = True
    """Whether tiled prediction equals the whole-volume answer."""
    parameters: int = 0
    """Trainable parameters."""
    macs_per_voxel: float = 0.0
    """Multiply-adds per target voxel, without halo."""
    bytes_per_voxel: float = 8.0
    """Peak working memory per target voxel of a tile."""
    licence: str = ""
    """Licence of the weights."""
    trained_on: str = ""
    """Data the weights were trained on."""
    trained_factors: tuple[Fraction, Fraction] | None = field(
        default=None, metadata={"stored_as": "taught"}
    )
    """Least and largest factor along z that it was trained for; None where none is recorded."""
    sha256: str = ""
    """Digest over what defines the model's answers."""
    residual: bool = field(default=False, metadata={"stored_as": None})
    """Whether its answer is added to an interpolation; half precision then costs few voxels."""
    padded_because: str = field(default="", metadata={"stored_as": None})
    """Why tiles of a user's network are padded and cropped; empty where they are not."""

    def for_factor(self, factor: Factor) -> ModelSpec:
        """Fix the free axes; a free axis whose factor is 1 passes through and needs no halo.

        Raises:
            ModelError: an axis has a factor of its own and it differs.
        """
        for own, wanted in zip(self.factor, factor, strict=True):
            if own is not None and own != wanted:
                mine = " x ".join("any" if r is None else str(r) for r in self.factor)
                raise ModelError(
                    f"model {self.name!r} has factor {mine} (z, y, x) but the spacings ask for "
                    f"{format_factor(factor)}; choose --spacing to match or another --model"
                )
        if self.grid == "target":
            return self._on_source_grid(factor)
        halo = triple(
            0 if own is None and wanted == 1 else h
            for own, wanted, h in zip(self.factor, factor, self.halo, strict=True)
        )
        return replace(self, factor=factor, halo=halo)

    def _on_source_grid(self, factor: Factor) -> ModelSpec:
        """Fix the factor of a network that aligns and pads slices on the target grid along z."""
        z = math.ceil((self.halo[0] + self.alignment[0] - 1) / factor[0]) + INTERPOLATION_REACH
        return replace(
            self,
            factor=factor,
            halo=(z, *self.halo[1:]),
            alignment=(1, *self.alignment[1:]),
            grid="source",
        )

    def on_plane(self, plane: Plane) -> ModelSpec:
        """Run a network for slices on others: ``xz``, ``yz``, or the mean of both.

        Raises:
            ModelError: the model is not for slices that are coarse along z.
        """
        if plane == self.plane:
            return self
        if self.plane not in AXIAL or plane not in AXIAL:
            raise ModelError(
                f"model {self.name!r} runs on {self.plane}, not on {plane}; leave --plane out, or "
                "choose an axial model (a2i, niiv, or srunet and fsrcnn of variant planar), which "
                f"runs on {', '.join(AXIAL)}"
            )
        (z, *lateral), (cell, *cells) = self.halo, self.alignment
        in_yz, in_xz = "yz" in plane, "xz" in plane
        halo = (z, max(lateral) * in_yz, max(lateral) * in_xz)
        alignment = (cell, max(cells) if in_yz else 1, max(cells) if in_xz else 1)
        return replace(self, plane=plane, halo=halo, alignment=alignment)

    @property
    def resolved_factor(self) -> Factor:
        """The factor of a spec on which :meth:`for_factor` was called."""
        z, y, x = self.factor
        if z is None or y is None or x is None:
            raise ModelError(f"model {self.name!r} takes any factor; call for_factor first")
        return (z, y, x)

    def target_spacing(self, source: Spacing) -> Spacing:
        """Return the spacing of the target where the user named none.

        Isotropic at the lateral spacing, except on axes where the model has a factor of its own.
        """
        free = factor_between(source, Spacing(source.x, source.y, source.x))
        chosen = [own or any_ for own, any_ in zip(self.factor, free, strict=True)]
        return Spacing(*(s / r for s, r in zip(source, chosen, strict=True)))

    def read_box(self, write: Box) -> Box:
        """Return the source voxels needed to predict the target box ``write``."""
        core = source_box(write, self.resolved_factor)
        lo = triple(a // g * g for a, g in zip(core.lo, self.alignment, strict=True))
        hi = triple(-(-b // g) * g for b, g in zip(core.hi, self.alignment, strict=True))
        return Box(lo, hi).grow(self.halo)

    def summary(self) -> JsonObject:
        """Return the row of ``isochunk models``."""
        trained = self.trained_factors
        return {
            "name": self.name,
            "arch": self.arch,
            "factor": ["any" if r is None else float(r) for r in self.factor],
            "trained_factors": None if trained is None else [float(r) for r in trained],
            "phase": self.phase,
            "plane": self.plane,
            "halo": list(self.halo),
            "exact": self.exact,
            "parameters": self.parameters,
            "trained_on": self.trained_on,
            "licence": self.licence,
        }
