"""What was found without a truth, as values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from isochunk.core.consistency import Consistency
from isochunk.core.degradation import PHASES, Degradation
from isochunk.core.geometry import Box, Spacing
from isochunk.core.spec import ModelSpec
from isochunk.core.voxels import Voxels
from isochunk.evaluation.metrics import ImagePlane
from isochunk.evaluation.without_truth.lateral import LateralFigures
from isochunk.evaluation.without_truth.spectrum import Spectrum


@dataclass(frozen=True, slots=True)
class JudgedFigures:
    """The figures of one model; field names are the keys of ``evaluation.json``."""

    model: str
    """Its name."""
    consistency_rms: float
    """Root mean square of sections made of the output minus the input, in grey levels."""
    lateral_psnr: float | None
    """dB, of y made coarse as z is, and restored; None where boxes are too small."""
    lateral_over_cubic: float | None
    """dB more than cubic there."""
    heldout_psnr: float | None
    """dB, of every second section restored from the others; None where that cannot be done."""
    z_to_xy_power: float | None
    """Power along z of the output over lateral power of the source, above what sections hold."""
    membranes: float | None
    """Response to dark lines in xz and yz planes of the output over that in its xy planes."""
    seconds: float
    """Time of loading and of all tests."""


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """Why a figure is missing, or what to think of it."""

    model: str
    """Of which model."""
    figure: str
    """Which one, by its key."""
    reason: str
    """Why, in words."""


@dataclass(frozen=True, slots=True)
class JudgedModel:
    """All that was measured of one model."""

    figures: JudgedFigures
    """Its line of the table."""
    consistency: Consistency
    """How far its output is from the input, and where that is worst."""
    lateral: LateralFigures | None
    """How well it restored a lateral axis."""
    along_z: Spectrum | None
    """Power of its output along z."""

    @property
    def model(self) -> str:
        """Its name."""
        return self.figures.model


@dataclass(frozen=True, slots=True)
class Place:
    """The worst place of a box, to be looked at in three planes."""

    box: Box
    """The box, in source voxels."""
    section: int
    """Source coordinate z of the section where networks are least consistent."""
    rms: float
    """How far they are there, in grey levels."""
    source: Mapping[ImagePlane, Voxels]
    """The input, each section repeated."""
    restored: Mapping[str, Mapping[ImagePlane, Voxels]]
    """By model."""
    difference: Mapping[str, Mapping[ImagePlane, Voxels]]
    """Absolute differences of sections made of the output from the input, repeated, by model."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The results of all models, and what they stand for."""

    results: tuple[JudgedModel, ...]
    """One per model."""
    cards: tuple[ModelSpec, ...]
    """What is known of the models, interpolations left out."""
    places: tuple[Place, ...]
    """One per box, worst first."""
    source: str
    """URL of the source."""
    spacing: Spacing
    """Voxel size of the source."""
    factor: Fraction
    """Target voxels per section."""
    degradation: Degradation
    """How sections came about."""
    boxes: tuple[Box, ...]
    """Source voxels that were judged."""
    bytes_read: int
    """Bytes of voxels read."""
    passed_over: int
    """Boxes read that held background."""
    lateral_power: Spectrum | None
    """Of the source, along y and x."""
    source_z_power: Spectrum | None
    """Of the source, along z."""
    not_measured: tuple[NotMeasured, ...]
    """What is missing."""
    limits: str
    """What to think of the figures on held-out sections; empty where nothing need be said."""

    @property
    def section_nm(self) -> float:
        """Distance of sections."""
        return float(self.spacing.z)

    @property
    def rounding_rms(self) -> float:
        """What rounding of the output makes of the consistency by itself, in grey levels."""
        voxels = float(self.factor) if PHASES[self.degradation] == "mean" else 1.0
        return math.sqrt(1 / (12 * voxels))

    @property
    def figures(self) -> tuple[JudgedFigures, ...]:
        """One per model."""
        return tuple(result.figures for result in self.results)

    def summary(self) -> dict[str, Any]:
        """Return plain values; figures that are infinite, because nothing differs, become None."""
        r = self.factor
        return {
            "source": self.source,
            "spacing_nm": str(self.spacing),
            "factor": r.numerator if r.denominator == 1 else str(r),
            "degradation": self.degradation,
            "boxes": [str(box) for box in self.boxes],
            "bytes_read": self.bytes_read,
            "passed_over": self.passed_over,
            "rows": [_finite(asdict(figures)) for figures in self.figures],
            "consistency": [
                {"model": result.model, **result.consistency.summary()} for result in self.results
            ],
            "lateral": [_lateral_row(result) for result in self.results if result.lateral],
            "not_measured": [asdict(missing) for missing in self.not_measured],
            "limits": self.limits,
        }

    def curves(self) -> dict[str, Any]:
        """Return what is plotted, as plain values: frequencies and power or correlation."""
        along_z = {result.model: _curve(result.along_z) for result in self.results}
        return {
            "power": {
                "lateral": _curve(self.lateral_power),
                "source_z": _curve(self.source_z_power),
                "models": along_z,
            },
            "lateral_frc": {
                result.model: asdict(result.lateral.rings)
                for result in self.results
                if result.lateral
            },
        }


def _lateral_row(result: JudgedModel) -> dict[str, Any]:
    figures = result.lateral
    assert figures is not None  # rows are of models that have them
    return _finite(
        {
            "model": result.model,
            "psnr": figures.psnr,
            "ssim": figures.ssim,
            "frc_nm": figures.frc_nm,
        }
    )


def _curve(spectrum: Spectrum | None) -> dict[str, Any] | None:
    return None if spectrum is None else asdict(spectrum)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    infinite = {k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
    return {key: None if key in infinite else value for key, value in row.items()}
