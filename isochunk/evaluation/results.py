"""The figures of an evaluation: what is measured of each prediction, and how it is written down."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from isochunk.core.degradation import Degradation
from isochunk.core.geometry import AXES, Box, Factor, Triple
from isochunk.core.spec import ModelSpec
from isochunk.core.voxels import Voxels
from isochunk.evaluation.metrics import (
    NORMAL,
    PLANES,
    Array,
    ImagePlane,
    Rescaled,
    plane_psnr,
    psnr,
    rescaled,
    snr,
    ssim,
    ssim_3d,
    wpsnr,
)
from isochunk.evaluation.spectra import CF_RADII, Correlation, cf_psnr, cf_psnr_sweep, frc, fsc

log = logging.getLogger(__name__)

VIEW = 256
"""Largest edge of a slice kept to be looked at."""


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """The figures of one model."""

    model: str
    """Its name, or the URL of a prediction."""
    psnr: float
    """dB."""
    ssim: float
    """Mean over xz planes, 11 x 11 Gaussian window."""
    wpsnr: float
    """dB; error weighted by cubic's (Heinrich et al. 2017)."""
    cf_psnr: float
    """dB; mean over xz planes of the error below 25 cycles per plane (Troidl et al. 2024)."""
    voxels: int
    """Voxels compared."""
    seconds: float
    """Time of loading or learning, and prediction; of reading a prediction that was given."""
    frc_nm: float
    """Resolution in nm: where the Fourier ring correlation of xz planes falls below 1/7."""
    frc_along_nm: float
    """The same along the degraded axis alone, where whole rings mix it with the recorded one."""
    fsc_nm: float
    """The same of the Fourier shell correlation."""
    rse: float
    """Resolution-scaled error on xz planes, in grey levels (Culley et al. 2018)."""
    rsp: float
    """Resolution-scaled Pearson correlation on xz planes."""
    snr: float | None = None
    """(max - mean of the background) / its deviation; None where no background was named."""


@dataclass(frozen=True, slots=True)
class PlaneFigures:
    """The figures of one model on planes of one orientation, or on the volume."""

    model: str
    """Its name."""
    plane: str
    """xy, xz, yz: means over all planes; 3d."""
    psnr: float
    """dB."""
    ssim: float
    """11 x 11 Gaussian window, on the volume 11 x 11 x 11."""


@dataclass(frozen=True, slots=True)
class MiddleSlices:
    """The middle of the middle slice of each orientation, to be looked at."""

    xy: Voxels
    """(y, x)."""
    xz: Voxels
    """(z, x)."""
    yz: Voxels
    """(z, y)."""


@dataclass(frozen=True, slots=True)
class ModelResult:
    """All that was measured of one prediction."""

    figures: ModelFigures
    """Its line of the table."""
    planes: tuple[PlaneFigures, ...]
    """The same by orientation."""
    cf_psnr: tuple[float, ...]
    """dB at each of :data:`isochunk.evaluation.spectra.CF_RADII`."""
    frc: Correlation
    """Ring correlation of xz planes."""
    frc_along: Correlation
    """The same along the degraded axis."""
    fsc: Correlation
    """Shell correlation."""
    rescaled: Rescaled
    """How it is brought closest to the truth, on xz planes."""
    view: MiddleSlices
    """What it looks like."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of all models and what they stand for."""

    results: tuple[ModelResult, ...]
    """One per model: interpolations, models, predictions."""
    cards: tuple[ModelSpec, ...]
    """What is known of the models, interpolations left out."""
    view: MiddleSlices
    """What the truth looks like."""
    truth: str
    """URL of the truth."""
    spacing_nm: str
    """Voxel size of the truth as it was compared, z,y,x."""
    average: Triple
    """Voxels (z, y, x) of which each voxel of the truth is the mean."""
    factor: Factor
    """Truth voxels per voxel that models saw."""
    degradation: Degradation
    """How those were made."""
    compared: Box
    """Truth voxels that were compared."""
    left_out: str
    """What of the box was not compared, in words."""
    ceiling_db: tuple[float, float] | None = None
    """PSNR that noise in the truth limits any method to, two estimates; None where unknown."""

    @property
    def rows(self) -> tuple[ModelFigures, ...]:
        """One per model."""
        return tuple(result.figures for result in self.results)

    @property
    def axes(self) -> str:
        """The degraded axes, ``z`` or ``yx``."""
        return "".join(a for a, r in zip(AXES, self.factor, strict=True) if r != 1)

    def summary(self) -> dict[str, Any]:
        """Return plain values; figures that are infinite, because nothing differs, become None."""
        degraded = [r for r in self.factor if r != 1]
        ratio = degraded[0] if degraded else Fraction(1)
        return {
            "truth": self.truth,
            "spacing_nm": self.spacing_nm,
            "average": list(self.average),
            "factor": ratio.numerator if ratio.denominator == 1 else str(ratio),
            "axes": self.axes,
            "degradation": self.degradation,
            "compared": str(self.compared),
            "left_out": self.left_out,
            "ceiling_db": self.ceiling_db and [_finite(db) for db in self.ceiling_db],
            "rows": [_plain(asdict(row)) for row in self.rows],
            "planes": [_plain(asdict(row)) for result in self.results for row in result.planes],
        }

    def curves(self) -> dict[str, Any]:
        """Return what is plotted, as plain values: a value per radius or frequency and model."""
        curves: dict[str, Any] = {
            "cf_psnr": {
                "radius": list(CF_RADII),
                "models": {r.figures.model: [_finite(v) for v in r.cf_psnr] for r in self.results},
            }
        }
        for kind in ("frc", "frc_along", "fsc"):
            found: dict[str, Correlation] = {
                r.figures.model: getattr(r, kind) for r in self.results
            }
            curves[kind] = {
                "frequency": list(next(iter(found.values())).frequency),
                "models": {name: list(curve.value) for name, curve in found.items()},
            }
        return curves


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prediction with what it is compared with; all of one shape, (z, y, x)."""

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
    axis: str
    """Axis of xz planes that was made up, z or x."""


def measure(name: str, voxels: Comparison, seconds: float) -> ModelResult:
    """Measure one prediction.

    Args:
        name: of the model.
        voxels: what is compared.
        seconds: time the prediction took.

    Raises:
        UsageError: a plane is smaller than the window of SSIM, or the background is constant.
    """
    true, predicted = voxels.truth, voxels.predicted
    top = float(np.iinfo(true.dtype).max)
    per_plane: dict[ImagePlane, PlaneFigures] = {
        plane: PlaneFigures(
            name, plane, plane_psnr(true, predicted, plane, top), ssim(true, predicted, top, plane)
        )
        for plane in PLANES
    }
    rings, shells = frc(true, predicted), fsc(true, predicted)
    along = frc(true, predicted, along=voxels.axis)
    closest = rescaled(true, predicted)
    figures = ModelFigures(
        model=name,
        psnr=psnr(true, predicted, top),
        ssim=per_plane["xz"].ssim,
        wpsnr=wpsnr(true, predicted, voxels.cubic, top),
        cf_psnr=cf_psnr(true, predicted, data_range=top),
        voxels=true.size,
        seconds=seconds,
        frc_nm=rings.resolution() * voxels.voxel_nm,
        frc_along_nm=along.resolution() * voxels.voxel_nm,
        fsc_nm=shells.resolution() * voxels.voxel_nm,
        rse=closest.rse,
        rsp=closest.rsp,
        snr=None if voxels.background is None else snr(predicted, voxels.background),
    )
    volume = PlaneFigures(name, "3d", figures.psnr, ssim_3d(true, predicted, top))
    log.info("%s: PSNR %.3f dB in %.1f s", name, figures.psnr, seconds)
    sweep = cf_psnr_sweep(true, predicted, data_range=top)
    return ModelResult(
        figures=figures,
        planes=(*per_plane.values(), volume),
        cf_psnr=sweep,
        frc=rings,
        frc_along=along,
        fsc=shells,
        rescaled=closest,
        view=middle_slices(predicted),
    )


def middle_slices(voxels: Voxels) -> MiddleSlices:
    """Keep the middle of the middle slices of a volume."""
    starts = [max(0, (n - VIEW) // 2) for n in voxels.shape]
    cut = [slice(start, start + VIEW) for start in starts]
    slices = []
    for plane in PLANES:
        index: list[slice | int] = list(cut)
        index[NORMAL[plane]] = voxels.shape[NORMAL[plane]] // 2
        slices.append(voxels[tuple(index)].copy())
    return MiddleSlices(*slices)


def write_figures(evaluation: Evaluation, folder: Path) -> None:
    """Write ``evaluation.json`` and ``evaluation.md`` into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**evaluation.summary(), "curves": evaluation.curves()}, indent=1)
    (folder / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    (folder / "evaluation.md").write_text(as_markdown(evaluation), encoding="utf-8")


COLUMNS: Mapping[str, tuple[str, str]] = {
    "psnr": ("PSNR dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "wpsnr": ("wPSNR dB", ".2f"),
    "cf_psnr": ("CF-PSNR dB", ".2f"),
    "frc_nm": ("FRC nm", ".1f"),
    "frc_along_nm": ("FRC along nm", ".1f"),
    "fsc_nm": ("FSC nm", ".1f"),
    "rse": ("RSE", ".2f"),
    "rsp": ("RSP", ".4f"),
    "snr": ("SNR", ".1f"),
    "seconds": ("seconds", ".1f"),
}
"""Figures of a row in the order of tables: heading and number format."""

INFINITE = "\N{INFINITY}"


def formatted(row: ModelFigures | PlaneFigures, names: tuple[str, ...]) -> list[str]:
    """Write figures of a row for people."""
    texts = []
    for name in names:
        value = getattr(row, name)
        text = "-" if value is None else f"{value:{COLUMNS[name][1]}}"
        texts.append(text.replace("inf", INFINITE))
    return texts


def figures_present(evaluation: Evaluation) -> tuple[str, ...]:
    """Return the figures that there are."""
    return tuple(n for n in COLUMNS if any(getattr(row, n) is not None for row in evaluation.rows))


def as_markdown(evaluation: Evaluation) -> str:
    """Return the figures as tables, with what they stand for."""
    names = figures_present(evaluation)
    lines = [
        f"`{evaluation.truth}`{averaging_text(evaluation)}, box {evaluation.compared}, "
        f"{degradation_text(evaluation)}; left out: {evaluation.left_out}.",
        *noise_limit_text(evaluation),
        "",
        f"| model | {' | '.join(COLUMNS[name][0] for name in names)} |",
        f"|{'---|' * (len(names) + 1)}",
        *(f"| {row.model} | {' | '.join(formatted(row, names))} |" for row in evaluation.rows),
        "",
        "| model | plane | PSNR dB | SSIM |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row.model} | {row.plane} | {' | '.join(formatted(row, ('psnr', 'ssim')))} |"
        for result in evaluation.results
        for row in result.planes
    ]
    return "\n".join(lines) + "\n"


def degradation_text(evaluation: Evaluation) -> str:
    """Say how the truth was degraded, as ``x4 along z, AVG``."""
    texts = [f"x{r} along {a}" for a, r in zip(AXES, evaluation.factor, strict=True) if r != 1]
    return f"{', '.join(texts) or 'x1'}, {evaluation.degradation.upper()}"


def noise_limit_text(evaluation: Evaluation) -> list[str]:
    """Say how far noise limits PSNR, in a sentence; none where it is not known."""
    if evaluation.ceiling_db is None or not math.isfinite(evaluation.ceiling_db[1]):
        return []
    low, high = evaluation.ceiling_db
    return [f"Noise in the ground truth limits PSNR to about {low:.1f} to {high:.1f} dB."]


def averaging_text(evaluation: Evaluation) -> str:
    """Say that the truth was averaged first; empty where it was not."""
    z, y, x = evaluation.average
    return "" if evaluation.average == (1, 1, 1) else f" (mean of {z} x {y} x {x} voxels)"


def error_of(truth: Array, predicted: Array) -> Array:
    """Return the absolute difference of two slices or volumes."""
    return np.abs(truth.astype(np.float32) - predicted.astype(np.float32))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: _finite(value) for key, value in row.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
