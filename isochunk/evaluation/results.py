"""What an evaluation found, as values: the figures of each model, its curves and its slices."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from isochunk.core.degradation import Degradation
from isochunk.core.geometry import AXES, Box, Factor, Triple
from isochunk.core.spec import ModelSpec
from isochunk.core.voxels import Voxels
from isochunk.evaluation.metrics import RescaledFit
from isochunk.evaluation.spectra import CF_RADII, Correlation


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """The figures of one model; field names are the keys of ``evaluation.json``."""

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
    over_cubic: float
    """dB of PSNR more than cubic."""
    over_cubic_low: float
    """Below it lie 2.5 % of bootstraps over crops of 32 x 32 x 32 voxels."""
    over_cubic_high: float
    """Above it lie 2.5 % of them."""
    membranes: float
    """Response to dark lines in planes of the axis that was made up, over the truth's there."""
    membrane_dice: float
    """Overlap of the tenth of pixels that answer most in the truth with what answers as much."""
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
    """All that was measured of one model."""

    figures: ModelFigures
    """Its line of the table."""
    planes: tuple[PlaneFigures, ...]
    """PSNR and SSIM by orientation."""
    cf_psnr: tuple[float, ...]
    """dB at each of :data:`isochunk.evaluation.spectra.CF_RADII`."""
    frc: Correlation
    """Ring correlation of xz planes."""
    frc_along: Correlation
    """The same along the degraded axis."""
    fsc: Correlation
    """Shell correlation."""
    rescaled: RescaledFit
    """How it is brought closest to the truth, on xz planes."""
    slices: MiddleSlices
    """What it looks like."""

    @property
    def model(self) -> str:
        """Its name, or the URL of a prediction."""
        return self.figures.model


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of all models, and what they stand for."""

    results: tuple[ModelResult, ...]
    """One per model: interpolations, networks, published methods, predictions."""
    cards: tuple[ModelSpec, ...]
    """What is known of the models, interpolations left out."""
    truth_slices: MiddleSlices
    """What the truth looks like."""
    truth: str
    """URL of the truth."""
    spacing_nm: str
    """Voxel size of the truth as it was evaluated, z,y,x."""
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
    noise_ceiling_db: tuple[float, float] | None = None
    """PSNR that noise lets no method exceed, by a low and a high estimate; None where unknown."""

    @property
    def figures(self) -> tuple[ModelFigures, ...]:
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
        ceiling = self.noise_ceiling_db
        return {
            "truth": self.truth,
            "spacing_nm": self.spacing_nm,
            "average": list(self.average),
            "factor": ratio.numerator if ratio.denominator == 1 else str(ratio),
            "axes": self.axes,
            "degradation": self.degradation,
            "compared": str(self.compared),
            "left_out": self.left_out,
            "ceiling_db": ceiling and [_finite_or_none(db) for db in ceiling],
            "rows": [_as_json(figures) for figures in self.figures],
            "planes": [_as_json(plane) for result in self.results for plane in result.planes],
        }

    def curves(self) -> dict[str, Any]:
        """Return what is plotted, as plain values: a value per radius or frequency and model."""
        results = self.results
        curves: dict[str, Any] = {
            "cf_psnr": {
                "radius": list(CF_RADII),
                "models": {r.model: [_finite_or_none(v) for v in r.cf_psnr] for r in results},
            }
        }
        for kind in ("frc", "frc_along", "fsc"):
            by_model: dict[str, Correlation] = {r.model: getattr(r, kind) for r in results}
            curves[kind] = {
                "frequency": list(next(iter(by_model.values())).frequency),
                "models": {name: list(curve.value) for name, curve in by_model.items()},
            }
        return curves


def _as_json(figures: ModelFigures | PlaneFigures) -> dict[str, Any]:
    return {key: _finite_or_none(value) for key, value in asdict(figures).items()}


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
