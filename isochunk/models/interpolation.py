"""Interpolation: kernels, taps, and the models that need no training; numpy alone.

What torch needs of it is in :mod:`isochunk.models.torch_interpolation`.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from isochunk.core.consistency import add_back, whole_sections
from isochunk.core.geometry import Box, reflected
from isochunk.core.limits import INTERPOLATED_VOXELS
from isochunk.core.spec import INTERPOLATION_REACH, ModelSpec, Phase
from isochunk.core.voxels import Voxels, quantise, stored_dtype
from isochunk.errors import ModelError

Kernel: TypeAlias = Literal["linear", "cubic"]
"""Interpolations that blend neighbours."""

INTERPOLATIONS = {"identity": 0, "nearest": 0, "linear": 1, "cubic": INTERPOLATION_REACH}
"""Names of the interpolations, and the source voxels each needs on either side."""


def interpolation_spec(name: str, phase: Phase = "mean") -> ModelSpec:
    """Return the spec of ``identity``, ``nearest``, ``linear`` or ``cubic``.

    Args:
        name: which interpolation.
        phase: where a source voxel lies, see :class:`isochunk.core.spec.ModelSpec`.

    Raises:
        ModelError: another name.
    """
    if name not in INTERPOLATIONS:
        raise ModelError(f"no interpolation {name!r}; choose one of {', '.join(INTERPOLATIONS)}")
    reach = INTERPOLATIONS[name]
    if (name, phase) == ("nearest", "sample"):
        reach = 1  # the last target voxels of a section lie nearer to the next
    one = Fraction(1)
    return ModelSpec(
        name=name,
        arch=name,
        factor=(one, one, one) if name == "identity" else (None, None, None),
        halo=(reach, reach, reach),
        phase=phase,
        macs_per_voxel=2.0 * reach,
        bytes_per_voxel=0.0,
        licence="BSD-3-Clause",
        sha256=hashlib.sha256(_identity(name, phase).encode()).hexdigest(),
    )


def _identity(name: str, phase: Phase) -> str:
    return f"isochunk interpolation {name} 1" + ("" if phase == "mean" else f" {phase}")


@dataclass(frozen=True, slots=True)
class Interpolation:
    """Separable interpolation by any rational factor on any axis.

    Every target voxel is a sum of the same products in the same order wherever it is computed,
    so results do not depend on how the volume is cut. Cubic is Keys' kernel with a = -0.5
    (Keys 1981, IEEE Trans. ASSP 29:1153).
    """

    spec: ModelSpec
    """Spec with its factor resolved."""
    dtype: str = "uint8"
    """numpy name of the type in which answers to float32 are stored."""
    consistent: bool = False
    """Whether the answer is made consistent with the input; see ``core.consistency``."""

    @property
    def halvings(self) -> int:
        """No tile is ever halved."""
        return 0

    def stage(self, source: Voxels, read: Box, write: Box) -> WaitingBlock:
        """Take a block; see :class:`isochunk.models.interface.Predictor`."""
        return WaitingBlock(self, source, read, write)

    def restore(self, source: Voxels, read: Box, write: Box) -> Voxels:
        """Interpolate the target box ``write``; arguments as :meth:`stage`."""
        if self.consistent:
            return self._restore_consistent(source, read, write)
        taps = [
            axis_taps(self.spec.arch, (lo, hi), r, origin, self.spec.phase)
            for lo, hi, r, origin in zip(
                write.lo, write.hi, self.spec.resolved_factor, read.lo, strict=True
            )
        ]
        z, y, x = taps
        dtype = stored_dtype(source, self.dtype)
        if self.spec.arch in ("identity", "nearest"):
            chosen = source[np.ix_(z.index[0], y.index[0], x.index[0])]
            return chosen if chosen.dtype == dtype else quantise(chosen, dtype)
        lateral = resample(resample(source, x, axis=2), y, axis=1)
        result = np.empty(write.shape, dtype)
        planes = max(1, INTERPOLATED_VOXELS // (write.shape[1] * write.shape[2]))
        for start in range(0, write.shape[0], planes):
            slab = slice(start, start + planes)
            values = resample(lateral, z.part(slab), axis=0)
            result[slab] = quantise(values, dtype)
        return result

    def _restore_consistent(self, source: Voxels, read: Box, write: Box) -> Voxels:
        """Interpolate whole sections along z, and add back what their means lack of the input."""
        factor = int(self.spec.resolved_factor[0])
        whole, under = whole_sections(write, factor)
        span = (whole.lo[0], whole.hi[0])
        z = axis_taps(self.spec.arch, span, Fraction(factor), read.lo[0], self.spec.phase)
        _, y, x = write.slices(read.lo)
        lateral = source[:, y, x]
        dtype = stored_dtype(source, self.dtype)
        result = np.empty(whole.shape, dtype)
        count = max(1, INTERPOLATED_VOXELS // (factor * write.shape[1] * write.shape[2]))
        for start in range(under.lo[0], under.hi[0], count):
            sections = range(start, min(start + count, under.hi[0]))
            part = slice(start * factor - span[0], sections.stop * factor - span[0])
            given = lateral[start - read.lo[0] : sections.stop - read.lo[0]].astype(np.float32)
            values = add_back(resample(lateral, z.part(part), axis=0), given, factor)
            result[part] = quantise(values, dtype)
        return result[write.lo[0] - span[0] : write.hi[0] - span[0]]


@dataclass(frozen=True, slots=True)
class WaitingBlock:
    """A block that is interpolated when it is launched."""

    model: Interpolation
    """How."""
    source: Voxels
    """Source voxels of ``read``."""
    read: Box
    """Source box."""
    write: Box
    """Target box."""

    def launch(self) -> InterpolatedBlock:
        """Interpolate."""
        begun = time.perf_counter()
        voxels = self.model.restore(self.source, self.read, self.write)
        return InterpolatedBlock(voxels, time.perf_counter() - begun)


@dataclass(frozen=True, slots=True)
class InterpolatedBlock:
    """A block that is done."""

    voxels: Voxels
    """Target voxels."""
    took_s: float
    """Seconds that they took."""

    def fetch(self) -> Voxels:
        """Return the target voxels."""
        return self.voxels

    def compute_s(self) -> float:
        """Return the seconds that they took."""
        return self.took_s


@dataclass(frozen=True, slots=True)
class Taps:
    """Which source voxels make up each target voxel of one axis, and with what weight."""

    index: NDArray[np.intp]
    """(taps, target voxels): position in the array that was read."""
    weight: NDArray[np.float32]
    """(taps, target voxels): weights, summing to 1 over taps."""

    def part(self, where: slice) -> Taps:
        """Keep the target voxels ``where``."""
        return Taps(self.index[:, where], self.weight[:, where])


def axis_taps(
    kernel: str, span: tuple[int, int], factor: Fraction, origin: int, phase: Phase = "mean"
) -> Taps:
    """Compute the taps of target voxels ``span`` from their global coordinates.

    Args:
        kernel: identity, nearest, linear or cubic.
        span: first target voxel and one past the last, global.
        factor: target voxels per source voxel.
        origin: global source coordinate of the first voxel that was read.
        phase: ``mean``: target centre j lies at source (j + 1/2)/r - 1/2; ``sample``: at j/r.

    Returns:
        One tap where the kernel needs no neighbour, two for linear, four for cubic.
    """
    # Twice the source coordinate of a voxel centre, in units of 1/num: all integers, so the
    # nearest voxel and the phase of a target voxel are the same in every tile.
    num, den = factor.numerator, factor.denominator
    target = np.arange(*span, dtype=np.int64)
    centre = (2 * target + 1) * den if phase == "mean" else 2 * target * den + num
    if factor == 1 or INTERPOLATIONS[kernel] == 0:
        below = centre // (2 * num)
        return Taps((below - origin)[None], np.ones((1, below.size), np.float32))
    below = (centre - num) // (2 * num)
    t = ((centre - num) % (2 * num)) / (2 * num)
    if kernel == "linear":
        weight = np.stack([1 - t, t])
    else:
        weight = np.stack([keys(1 + t), keys(t), keys(1 - t), keys(2 - t)])
    first = 1 - INTERPOLATIONS[kernel]
    offsets = np.arange(first, first + len(weight))[:, None]
    return Taps(below - origin + offsets, weight.astype(np.float32))


def whole_axis_taps(kernel: str, extent: int, factor: Fraction, phase: Phase = "mean") -> Taps:
    """Compute the taps of a whole axis, continued by half-sample reflection.

    Args:
        kernel: identity, nearest, linear or cubic.
        extent: source voxels along the axis.
        factor: target voxels per source voxel.
        phase: as :func:`axis_taps`.

    Returns:
        Taps of floor(extent * factor) target voxels.
    """
    reach = INTERPOLATIONS[kernel]
    taps = axis_taps(kernel, (0, int(extent * factor)), factor, -reach, phase)
    return Taps(reflected(-reach, extent + reach, 0, extent)[taps.index], taps.weight)


def neighbour_weights(kernel: Kernel, factor: int, phase: Phase) -> NDArray[np.float64]:
    """Return how much neighbouring sections count in each of the target voxels of a section.

    Returns:
        (factor, 2 * reach + 1): from ``reach`` sections before to as many after.
    """
    reach = INTERPOLATIONS[kernel]
    target = np.arange(factor) / factor
    if phase == "mean":
        target += 0.5 / factor - 0.5
    distance = np.abs(target[:, None] - np.arange(-reach, reach + 1))
    return np.maximum(1 - distance, 0) if kernel == "linear" else keys(distance)


def keys(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -0.5 at distances from 0 (Keys 1981, eq. 15)."""
    d = distance
    near = (1.5 * d - 2.5) * d * d + 1
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return np.where(d <= 1, near, np.where(d < INTERPOLATION_REACH, far, 0))


def resample(values: NDArray[Any], taps: Taps, axis: int) -> NDArray[np.float32]:
    """Sum weighted voxels along one axis, in float32 and in the order of the taps."""
    along = [1, 1, 1]
    along[axis] = -1
    total: NDArray[np.float32] | None = None
    for index, weight in zip(taps.index, taps.weight, strict=True):
        term = np.take(values, index, axis).astype(np.float32, copy=False)
        if len(taps.index) > 1:
            term = term * weight.reshape(along)
        total = term if total is None else np.add(total, term, out=total)
    assert total is not None  # there is always at least one tap
    return total
