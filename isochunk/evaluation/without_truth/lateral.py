"""The lateral test: the volume's own y made as coarse as z, restored, and compared with itself.

Tissue has no preferred direction, so what a model does for y it should do for z, and y is known. It
is y and not x, along which scanning often smooths the noise. The volume is turned so that y is what
the model takes for z.

Slices that hold y and x suit interpolations and networks for slices as they are. A network for
volumes would look along z, too, and find sections where it expects pixels; so it gets sections
restored by cubic interpolation, made consistent, and what it answers is made sections again. In the
middle 128^3 of the medulla averaged by 4 along z, srunet-z4 so gained 1.68 dB over cubic for y, and
0.78 dB from sections as they are; for z, whose truth is known there, it gains 1.65 dB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from isochunk.core.consistency import add_back, sections_of, why_not_consistent
from isochunk.core.geometry import Factor, Triple
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels, quantise
from isochunk.errors import UsageError
from isochunk.evaluation.ground_truth import (
    EDGE_SECTIONS,
    MIN_EXTENT,
    degrade_voxels,
)
from isochunk.evaluation.metrics import psnr, ssim
from isochunk.evaluation.restore import predict_volume
from isochunk.evaluation.spectra import Correlation, frc
from isochunk.evaluation.without_truth.candidates import (
    ONE,
    Candidate,
    Setup,
    needs_volumes,
)
from isochunk.evaluation.without_truth.sampling import in_memory
from isochunk.models.interpolation import Interpolation, interpolation_spec

TURN = (1, 0, 2)
"""Order of axes in which y is what a model takes for z."""


@dataclass(frozen=True, slots=True)
class LateralTest:
    """A box made coarse along y, axes (y, z, x)."""

    truth: Voxels
    """What was read, whole coarse steps along y."""
    coarse: Voxels
    """The same, coarse along y; z as it was read."""
    finer: Voxels | None
    """The same with z restored by cubic interpolation; None where no model needs that."""
    inner: slice
    """What is compared, along y."""


@dataclass(frozen=True, slots=True)
class LateralFigures:
    """How well a lateral axis was restored."""

    psnr: float
    """dB."""
    ssim: float
    """Mean over slices that hold y and x."""
    frc_nm: float
    """Resolution along y in nm: where the correlation of rings falls below 1/7."""
    rings: Correlation
    """Fourier ring correlation of those slices within 30 degrees of y."""


def why_no_lateral_test(shape: Triple, factor: Fraction) -> str:
    """Say why a box is too small for the test; empty where it is not."""
    _, y, x = shape
    least = math.ceil((2 * EDGE_SECTIONS + 1) * factor) + MIN_EXTENT
    if y < least or x < MIN_EXTENT:
        return f"boxes of {y} x {x} voxels (y, x) are too small; {least} x {MIN_EXTENT} are needed"
    return ""


def lateral_test(voxels: Voxels, spec: VolumeSpec, setup: Setup, *, volumes: bool) -> LateralTest:
    """Make y of a box coarse.

    Args:
        voxels: (z, y, x), large enough, see :func:`why_no_lateral_test`.
        spec: of the source.
        setup: factor and degradation.
        volumes: whether a model looks along all axes.
    """
    factor = setup.factor
    steps = voxels.shape[1] // factor
    length = int(steps * factor)
    along: Factor = (factor, ONE, ONE)
    truth = np.ascontiguousarray(voxels[:, :length].transpose(TURN))
    finer = None
    if volumes:
        restored = _restored_by_cubic(voxels[:, :length], spec, setup)
        finer = degrade_voxels(
            np.ascontiguousarray(restored.transpose(TURN)), along, setup.degradation
        )
    edge = math.ceil(EDGE_SECTIONS * factor)
    last = length if setup.phase == "mean" else int((steps - 1) * factor) + 1
    return LateralTest(
        truth, degrade_voxels(truth, along, setup.degradation), finer, slice(edge, last - edge)
    )


def restore_lateral(
    candidate: Candidate, test: LateralTest, spec: VolumeSpec, setup: Setup, block: Triple
) -> Voxels:
    """Have a model restore y; returns what is compared, (y, z, x)."""
    if not needs_volumes(candidate.lateral.spec):
        volume = in_memory(test.coarse, spec)
        return predict_volume(candidate.lateral, volume, block)[test.inner]
    if test.finer is None:
        raise UsageError(f"model {candidate.name!r} needs sections restored for the lateral test")
    volume = in_memory(test.finer, spec)
    fine = predict_volume(candidate.lateral, volume, block)[test.inner]
    sections = range(test.truth.shape[1])
    made = sections_of(fine.transpose(TURN), 0, sections, setup.factor, setup.phase)
    return quantise(made.transpose(TURN), fine.dtype)


def lateral_figures(
    tests: Sequence[LateralTest], restored: Sequence[Voxels], voxel_nm: float
) -> LateralFigures:
    """Compare what a model restored of all boxes, which are of one shape.

    Args:
        tests: a box each.
        restored: of each, (y, z, x).
        voxel_nm: extent of a voxel along y.
    """
    truth = np.concatenate([test.truth[test.inner] for test in tests], axis=1)
    found = np.concatenate(restored, axis=1)
    top = float(np.iinfo(truth.dtype).max)
    rings = frc(truth, found, along="z")
    return LateralFigures(
        psnr=psnr(truth, found, top),
        ssim=ssim(truth, found, top),
        frc_nm=rings.resolution() * voxel_nm,
        rings=rings,
    )


def _restored_by_cubic(voxels: Voxels, spec: VolumeSpec, setup: Setup) -> Voxels:
    """Restore z by cubic interpolation, so that sections made of it are those that were read."""
    cubic = interpolation_spec("cubic", setup.phase).for_factor((setup.factor, ONE, ONE))
    fine = predict_volume(Interpolation(cubic), in_memory(voxels, spec), voxels.shape)
    if why_not_consistent(cubic):
        return fine
    values = add_back(fine.astype(np.float32), voxels.astype(np.float32), int(setup.factor))
    return quantise(values, fine.dtype)
