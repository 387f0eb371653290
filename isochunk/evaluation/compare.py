"""Compare one prediction with the ground truth, by all metrics at once."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from isochunk.core.voxels import Voxels
from isochunk.evaluation.membranes import membrane_figures
from isochunk.evaluation.metrics import (
    NORMAL,
    PLANES,
    ImagePlane,
    fit_rescaled,
    plane_psnr,
    psnr,
    snr,
    ssim,
    ssim_3d,
    wpsnr,
)
from isochunk.evaluation.results import MiddleSlices, ModelFigures, ModelResult, PlaneFigures
from isochunk.evaluation.spectra import CF_RADII, CF_RADIUS, cf_psnr, frc, fsc
from isochunk.evaluation.spread import gain, squared_errors

log = logging.getLogger(__name__)

MAX_SLICE_EDGE = 256
"""Largest edge of a slice kept to be looked at."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prediction and what it is compared with; all of one shape, (z, y, x)."""

    truth: Voxels
    """What should be there."""
    predicted: Voxels
    """What is there."""
    cubic: Voxels
    """Cubic interpolation, for the weights of wPSNR."""
    background: Voxels | None
    """Part of the prediction that holds no signal; any shape."""
    voxel_nm: float
    """Edge of a voxel."""
    degraded_axis: str
    """Axis of xz planes that was made up, z or x."""


def compare(model: str, comparison: Comparison, seconds: float) -> ModelResult:
    """Compare one prediction with the truth.

    Args:
        model: its name.
        comparison: what is compared.
        seconds: time the prediction took.

    Raises:
        UsageError: a plane is smaller than the window of SSIM, or the background is constant.
    """
    true, predicted, background = comparison.truth, comparison.predicted, comparison.background
    top = float(np.iinfo(true.dtype).max)
    by_plane: dict[ImagePlane, PlaneFigures] = {
        plane: PlaneFigures(
            model=model,
            plane=plane,
            psnr=plane_psnr(true, predicted, plane, top),
            ssim=ssim(true, predicted, top, plane),
        )
        for plane in PLANES
    }
    rings, shells = frc(true, predicted), fsc(true, predicted)
    along = frc(true, predicted, along=comparison.degraded_axis)
    cf_psnr_default, *cf_psnr_sweep = cf_psnr(true, predicted, (CF_RADIUS, *CF_RADII), top)
    rescaled = fit_rescaled(true, predicted)
    gained = gain(squared_errors(true, predicted), squared_errors(true, comparison.cubic))
    membranes = membrane_figures(true, predicted, comparison.degraded_axis)
    figures = ModelFigures(
        model=model,
        psnr=psnr(true, predicted, top),
        ssim=by_plane["xz"].ssim,
        wpsnr=wpsnr(true, predicted, comparison.cubic, top),
        cf_psnr=cf_psnr_default,
        voxels=true.size,
        seconds=seconds,
        frc_nm=rings.resolution() * comparison.voxel_nm,
        frc_along_nm=along.resolution() * comparison.voxel_nm,
        fsc_nm=shells.resolution() * comparison.voxel_nm,
        rse=rescaled.rse,
        rsp=rescaled.rsp,
        over_cubic=gained.db,
        over_cubic_low=gained.low,
        over_cubic_high=gained.high,
        membranes=membranes.strength,
        membrane_dice=membranes.dice,
        snr=None if background is None else snr(predicted, background),
    )
    log.info("%s: PSNR %.3f dB in %.1f s", model, figures.psnr, seconds)
    volume = PlaneFigures(
        model=model, plane="3d", psnr=figures.psnr, ssim=ssim_3d(true, predicted, top)
    )
    return ModelResult(
        figures=figures,
        planes=(*by_plane.values(), volume),
        cf_psnr=tuple(cf_psnr_sweep),
        frc=rings,
        frc_along=along,
        fsc=shells,
        rescaled=rescaled,
        slices=middle_slices(predicted),
    )


def middle_slices(voxels: Voxels) -> MiddleSlices:
    """Keep the middle of the middle slices of a volume, at most 256 voxels long."""
    starts = [max(0, (n - MAX_SLICE_EDGE) // 2) for n in voxels.shape]
    middle = [slice(start, start + MAX_SLICE_EDGE) for start in starts]
    slices = {}
    for plane in PLANES:
        index: list[slice | int] = list(middle)
        index[NORMAL[plane]] = voxels.shape[NORMAL[plane]] // 2
        slices[plane] = voxels[tuple(index)].copy()
    return MiddleSlices(xy=slices["xy"], xz=slices["xz"], yz=slices["yz"])
