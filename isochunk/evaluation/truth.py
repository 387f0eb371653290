"""A volume that is known, made ready to be predicted back: averaged, cut and degraded."""

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
from isochunk.models.degrade import degrade
from isochunk.storage.volume import Volume

EDGE_SECTIONS = 2
"""Sections at either end of a degraded axis that are left out: there even cubic needs the
reflection."""

MAX_VOXELS = 2**32
"""Largest truth; it is held in memory, with two predictions."""

LEAST_PLANE = 11
"""Least extent of a compared plane, which is the window of SSIM."""

SLAB_VOXELS = 1 << 26
"""Voxels degraded at a time."""

NO_AVERAGE: Triple = (1, 1, 1)


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


def whole_sections(truth: VolumeSpec, asked: Box, factor: Factor, degradation: Degradation) -> Box:
    """Return the part of a box that becomes whole sections.

    Args:
        truth: what is known of the volume.
        asked: part of it that is to be compared.
        factor: voxels that become one, per axis.
        degradation: how.

    Raises:
        UsageError: the box lies outside, or is too small or too large to be compared.
    """
    if asked not in truth.box:
        raise UsageError(f"box {asked} reaches beyond {truth.url}, which has {truth.box}")
    shape = triple(math.ceil(n // r * r) for n, r in zip(asked.shape, factor, strict=True))
    left = compared(shape, factor, degradation).shape
    for axis, n, r in zip(AXES, left, factor, strict=True):
        if n < LEAST_PLANE:
            rim = 0 if r == 1 else math.ceil((2 * EDGE_SECTIONS + 1) * r)
            raise UsageError(
                f"box {asked} leaves {n} voxels to compare along {axis}; at least {LEAST_PLANE} "
                f"are needed, so the box must have {LEAST_PLANE + rim}"
            )
    if math.prod(shape) > MAX_VOXELS:
        raise UsageError(
            f"box {asked} has {asked.size} voxels, but evaluation holds them in memory; choose "
            f"a --box of at most {MAX_VOXELS}"
        )
    return Box.from_shape(shape, asked.lo)


def compared(shape: Triple, factor: Factor, degradation: Degradation) -> Box:
    """Return which voxels of a truth of whole sections are compared.

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


def degrade_voxels(true: Voxels, factor: Factor, degradation: Degradation) -> Voxels:
    """Make fewer voxels of a volume along some of its axes, rounded once to its own dtype.

    Args:
        true: (z, y, x); multiples of ``factor``, where that is whole.
        factor: voxels that become one, per axis; 1 along z or along y at least.
        degradation: how.

    Returns:
        ``floor(n / factor)`` voxels per axis.
    """
    axes = [axis for axis, r in enumerate(factor) if r != 1]
    along = 1 if 0 in axes else 0  # cut where nothing is degraded: sections may overlap
    shape = triple(n // r for n, r in zip(true.shape, factor, strict=True))
    made = np.empty(shape, true.dtype)
    count = max(1, SLAB_VOXELS * true.shape[along] // true.size)
    for start in range(0, true.shape[along], count):
        part = [slice(None)] * 3
        part[along] = slice(start, start + count)
        slab = torch.from_numpy(true[tuple(part)].astype(np.float32))
        for axis in axes:
            turned = slab.movedim(axis, 0)[None, None]
            slab = degrade(turned, factor[axis], degradation)[0, 0].movedim(0, axis)
        values: NDArray[np.float32] = slab.numpy()
        made[tuple(part)] = quantise(values, true.dtype)
    return made


def degraded_spec(truth: VolumeSpec, box: Box, factor: Factor) -> VolumeSpec:
    """Return the spec of a part of a volume after degradation; its grid starts at zero."""
    spacing = Spacing(*(s * r for s, r in zip(truth.spacing, factor, strict=True)))
    shape = triple(n // r for n, r in zip(box.shape, factor, strict=True))
    corner = [c + lo * s for c, lo, s in zip(truth.corner_nm, box.lo, truth.spacing, strict=True)]
    level = LevelSpec("", Box.from_shape(shape), spacing, shape, None)
    return replace(
        truth, encoding="raw", corner_nm=(corner[0], corner[1], corner[2]), levels=(level,)
    )


def left_out(asked: Box, where: Box) -> str:
    """Say which voxels of a box that was asked for are not compared."""
    texts = [
        f"along {axis} the first {b - a} and the last {d - c} voxels"
        for axis, a, b, c, d in zip(AXES, asked.lo, where.lo, where.hi, asked.hi, strict=True)
        if (a, d) != (b, c)
    ]
    return "; ".join(texts) or "nothing"
