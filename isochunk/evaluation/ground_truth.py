"""A volume that is known in full, made ready to be restored: averaged, cut and degraded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from isochunk.core.degradation import PHASES, Degradation
from isochunk.core.geometry import AXES, Box, Factor, Spacing, Triple, triple
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.voxels import Voxels, quantise
from isochunk.errors import UsageError
from isochunk.evaluation.config import NO_AVERAGE
from isochunk.models.degrade import degrade
from isochunk.storage.volume import Volume

EDGE_SECTIONS = 2
"""Sections at either end of a degraded axis that are not compared: there even cubic needs the
reflection."""

MAX_VOXELS = 2**32
"""Largest truth; it is held in memory, with two predictions."""

MIN_EXTENT = 11
"""Least voxels compared along an axis, which is the window of SSIM."""

SLAB_VOXELS = 1 << 26
"""Voxels degraded at a time."""


@dataclass(frozen=True, slots=True)
class ArrayVolume:
    """A volume in memory."""

    spec: VolumeSpec
    """One level, of the array's shape."""
    voxels: Voxels
    """All of it, (z, y, x)."""

    def read(self, box: Box, level: int = 0) -> Voxels:
        """Return a view of a box."""
        return self.voxels[box.slices(self.spec.levels[level].box.lo)]


@dataclass(frozen=True, slots=True)
class AveragedVolume:
    """A volume of which several voxels are averaged to one; a rest that is no whole voxel goes."""

    spec: VolumeSpec
    """One level of coarser voxels."""
    fine: Volume
    """What is averaged."""
    average: Triple
    """Voxels per voxel."""

    def read(self, box: Box, level: int = 0) -> Voxels:
        """Read a box of averages, rounded to the dtype."""
        del level  # there is one
        lo = triple(a * n for a, n in zip(box.lo, self.average, strict=True))
        hi = triple(b * n for b, n in zip(box.hi, self.average, strict=True))
        voxels = self.fine.read(Box(lo, hi))
        pairs = zip(box.shape, self.average, strict=True)
        blocks = voxels.reshape([n for pair in pairs for n in pair])
        return quantise(blocks.mean((1, 3, 5), dtype=np.float32), voxels.dtype)


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a ground truth that is evaluated, in its voxels."""

    degraded: Box
    """What becomes whole sections, and is restored from them."""
    compared: Box
    """What of it is compared: all but the ends of degraded axes."""

    @property
    def inner(self) -> tuple[slice, slice, slice]:
        """The index of what is compared in the voxels of what is degraded."""
        return self.compared.slices(self.degraded.lo)


def averaged(volume: Volume, average: Triple) -> Volume:
    """Make every ``average`` voxels of a volume one.

    Raises:
        UsageError: a number below 1, or more than there are voxels.
    """
    if average == NO_AVERAGE:
        return volume
    spec, bounds = volume.spec, volume.spec.box
    if min(average) < 1:
        raise UsageError(f"average {average} needs three numbers of at least 1, z,y,x")
    lo = triple(-(-a // n) for a, n in zip(bounds.lo, average, strict=True))
    hi = triple(b // n for b, n in zip(bounds.hi, average, strict=True))
    if Box(lo, hi).size == 0:
        raise UsageError(f"average {average} leaves no voxel of {spec.url}, {bounds}")
    spacing = Spacing(*(s * n for s, n in zip(spec.spacing, average, strict=True)))
    level = LevelSpec("", Box(lo, hi), spacing, Box(lo, hi).shape, None)
    return AveragedVolume(replace(spec, levels=(level,)), volume, average)


def choose_region(
    truth: VolumeSpec, requested: Box, factor: Factor, degradation: Degradation
) -> Region:
    """Choose which part of a box becomes whole sections, and which part of that is compared.

    Args:
        truth: what is known of the volume.
        requested: part of it that is to be evaluated.
        factor: voxels that become one, per axis.
        degradation: how.

    Raises:
        UsageError: the box lies outside, or is too small or too large to be evaluated.
    """
    if requested not in truth.box:
        raise UsageError(f"box {requested} reaches beyond {truth.url}, which has {truth.box}")
    shape = triple(math.ceil(n // r * r) for n, r in zip(requested.shape, factor, strict=True))
    compared = _compared(shape, factor, degradation)
    for axis, n, r in zip(AXES, compared.shape, factor, strict=True):
        if n < MIN_EXTENT:
            ends = 0 if r == 1 else math.ceil((2 * EDGE_SECTIONS + 1) * r)
            raise UsageError(
                f"box {requested} leaves {n} voxels to compare along {axis}; at least {MIN_EXTENT} "
                f"are needed, so the box must have {MIN_EXTENT + ends}"
            )
    if math.prod(shape) > MAX_VOXELS:
        raise UsageError(
            f"box {requested} has {requested.size} voxels, but evaluation holds them in memory; "
            f"choose a --box of at most {MAX_VOXELS}"
        )
    return Region(Box.from_shape(shape, requested.lo), compared.shift(requested.lo))


def describe_left_out(requested: Box, compared: Box) -> str:
    """Say in words which voxels of a box that was requested are not compared."""
    ends = zip(AXES, requested.lo, compared.lo, compared.hi, requested.hi, strict=True)
    parts = [
        f"along {axis} the first {b - a} and the last {d - c} voxels"
        for axis, a, b, c, d in ends
        if (a, d) != (b, c)
    ]
    return "; ".join(parts) or "nothing"


def degrade_voxels(voxels: Voxels, factor: Factor, degradation: Degradation) -> Voxels:
    """Make fewer voxels of a volume along some of its axes, rounded once to its own dtype.

    Args:
        voxels: (z, y, x); multiples of ``factor``, where that is whole.
        factor: voxels that become one, per axis; 1 along z or along y at least.
        degradation: how.

    Returns:
        ``floor(n / factor)`` voxels per axis.
    """
    axes = [axis for axis, r in enumerate(factor) if r != 1]
    along = 1 if 0 in axes else 0  # cut where nothing is degraded: sections may overlap
    shape = triple(n // r for n, r in zip(voxels.shape, factor, strict=True))
    result = np.empty(shape, voxels.dtype)
    count = max(1, SLAB_VOXELS * voxels.shape[along] // voxels.size)
    for start in range(0, voxels.shape[along], count):
        part = [slice(None)] * 3
        part[along] = slice(start, start + count)
        slab = torch.from_numpy(voxels[tuple(part)].astype(np.float32))
        for axis in axes:
            turned = slab.movedim(axis, 0)[None, None]
            slab = degrade(turned, factor[axis], degradation)[0, 0].movedim(0, axis)
        values: NDArray[np.float32] = slab.numpy()
        result[tuple(part)] = quantise(values, voxels.dtype)
    return result


def degraded_spec(truth: VolumeSpec, box: Box, factor: Factor) -> VolumeSpec:
    """Return the spec of a part of a volume after degradation; its grid starts at zero."""
    spacing = Spacing(*(s * r for s, r in zip(truth.spacing, factor, strict=True)))
    shape = triple(n // r for n, r in zip(box.shape, factor, strict=True))
    corner = [c + lo * s for c, lo, s in zip(truth.corner_nm, box.lo, truth.spacing, strict=True)]
    level = LevelSpec("", Box.from_shape(shape), spacing, shape, None)
    return replace(
        truth, encoding="raw", corner_nm=(corner[0], corner[1], corner[2]), levels=(level,)
    )


def _compared(shape: Triple, factor: Factor, degradation: Degradation) -> Box:
    """Return which voxels of whole sections are compared, from the corner of the first.

    The first and last two sections of degraded axes are not; skipped volumes end at their last
    section.
    """
    lo, hi = [], []
    for n, r in zip(shape, factor, strict=True):
        edge = 0 if r == 1 else math.ceil(EDGE_SECTIONS * r)
        sections = n // r
        end = sections * r if PHASES[degradation] == "mean" else (sections - 1) * r + 1
        lo.append(edge)
        hi.append(max(edge, math.floor(end) - edge))
    return Box(triple(lo), triple(hi))
