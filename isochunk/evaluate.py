"""How well models restore a volume that is known: degrade it, predict it back, compare.

Prediction goes block by block through the same :class:`Predictor` and the same reflected reads
as a run, and values are rounded to the volume's dtype before they are compared.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isochunk.config import Device
from isochunk.errors import ModelError, UsageError
from isochunk.geometry import Box, Factor, Spacing, Triple, cells, target_box, triple
from isochunk.intensity import measure_intensity
from isochunk.metrics import cf_psnr, psnr, ssim, wpsnr
from isochunk.models.load import Runtime, describe, load
from isochunk.predict import (
    INTERPOLATIONS,
    Interpolation,
    Predictor,
    Voxels,
    interpolation_spec,
    quantise,
)
from isochunk.spec import LevelSpec, Phase, VolumeSpec
from isochunk.storage.tensorstore import check_supported, open_volume
from isochunk.storage.volume import Volume, read_reflected
from isochunk.train.degrade import Degradation, degrade

log = logging.getLogger(__name__)

BASELINES = ("linear", "cubic")
"""Always judged; the weights of wPSNR come from cubic."""

EDGE_SECTIONS = 2
"""Sections at either end of z left out of the figures: there even cubic needs the reflection."""

PHASES: dict[Degradation, Phase] = {"avg": "mean", "skip": "sample"}
"""The phase a model must have to be judged on a degradation."""

MAX_VOXELS = 2**32
"""Largest truth; it is held in memory, with two predictions."""

LEAST_PLANE = 11
"""Least extent of a compared plane, which is the window of SSIM."""

SLAB_SECTIONS = 16
"""Sections degraded at a time."""


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """What is judged on what."""

    truth: str
    """URL of an isotropic volume that no judged model was trained on."""
    models: tuple[str, ...] = ()
    """Models as ``--model`` takes them, besides linear and cubic."""
    factor: int = 4
    """Truth voxels that become one section."""
    degradation: Degradation = "avg"
    """How sections are made of them."""
    box: Box | None = None
    """Part of the truth, in its voxels; all of it by default."""
    block: Triple = (128, 128, 128)
    """Voxels predicted at a time; the figures do not depend on it."""
    device: Device = "auto"
    """Where networks run."""
    trust: bool = False
    """Accept models that run code of their own."""
    report: str | None = None
    """Folder for ``evaluation.json`` and ``evaluation.md``; none are written by default."""


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one model."""

    model: str
    """Its name."""
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
    """Time of prediction, reading from memory included."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of all models and what they stand for."""

    rows: tuple[Row, ...]
    """One per model, linear and cubic first."""
    truth: str
    """URL of the truth."""
    factor: int
    """Truth voxels per section."""
    degradation: Degradation
    """How sections were made."""
    compared: Box
    """Truth voxels that were compared."""
    left_out: str
    """What of the box was not compared, in words."""

    def summary(self) -> dict[str, Any]:
        """Return plain values; figures that are infinite, because nothing differs, become None."""
        rows = [
            {
                key: None if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in asdict(row).items()
            }
            for row in self.rows
        ]
        return {**asdict(self), "compared": str(self.compared), "rows": rows}


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


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Degrade a volume, predict it back with every model, and compare.

    Raises:
        UsageError: the box is too small, too large or outside.
        ModelError: a model cannot be loaded, or was made for another factor or degradation.
        StorageError: the truth cannot be read.
    """
    truth = open_volume(config.truth)
    check_supported(truth.spec)
    evaluation = judge(config, truth)
    if config.report is not None:
        write_report(evaluation, config.report)
    return evaluation


def judge(config: EvaluateConfig, truth: Volume) -> Evaluation:
    """Evaluate on an open volume; see :func:`evaluate`."""
    box = whole_sections(truth.spec, config)
    names = tuple(dict.fromkeys((*BASELINES, *config.models)))
    for name in names:
        _check_model(name, config)  # before anything takes time
    true = truth.read(box)
    sections = degrade_voxels(true, config.factor, config.degradation)
    source = ArrayVolume(degraded_spec(truth.spec, box, config.factor), sections)
    where = compared_planes(box.shape[0], config)
    rows: dict[str, Row] = {}
    cubic: Voxels | None = None
    for name in sorted(names, key=lambda name: name != "cubic"):  # wPSNR needs cubic first
        predictor = _predictor(name, config, source)
        started = time.perf_counter()
        predicted = predict_volume(predictor, source, config.block)
        seconds = time.perf_counter() - started
        if cubic is None:
            cubic = predicted[where]
        rows[name] = _row(name, (true[where], predicted[where], cubic), seconds)
        log.info("%s: PSNR %.3f dB in %.1f s", name, rows[name].psnr, seconds)
    lo = box.lo[0] + where.start, *box.lo[1:]
    hi = box.lo[0] + where.stop, *box.hi[1:]
    return Evaluation(
        tuple(rows[name] for name in names),
        config.truth,
        config.factor,
        config.degradation,
        Box(triple(lo), triple(hi)),
        f"along z the first {where.start} and the last {box.shape[0] - where.stop} voxels",
    )


def whole_sections(truth: VolumeSpec, config: EvaluateConfig) -> Box:
    """Return the part of the truth that becomes whole sections.

    Raises:
        UsageError: the box lies outside, or is too small or too large to be judged.
    """
    asked = config.box or truth.box
    if config.factor < 1:
        raise UsageError(f"factor {config.factor} must be at least 1")
    if asked not in truth.box:
        raise UsageError(f"box {asked} reaches beyond {truth.url}, which has {truth.box}")
    depth, *lateral = asked.shape
    depth = depth // config.factor * config.factor
    planes = compared_planes(depth, config)
    least = min(planes.stop - planes.start, *lateral)
    if least < LEAST_PLANE:
        raise UsageError(
            f"box {asked} leaves {least} voxels to compare along its shortest axis; at least "
            f"{LEAST_PLANE} are needed in y and x, and "
            f"{LEAST_PLANE + 2 * EDGE_SECTIONS * config.factor + config.factor} in z"
        )
    if depth * lateral[0] * lateral[1] > MAX_VOXELS:
        raise UsageError(
            f"box {asked} has {asked.size} voxels, but evaluation holds them in memory; choose "
            f"a --box of at most {MAX_VOXELS}"
        )
    return Box.from_shape(triple((depth, *lateral)), asked.lo)


def compared_planes(depth: int, config: EvaluateConfig) -> slice:
    """Return which planes along z are compared; skipped volumes end at their last section."""
    edge = EDGE_SECTIONS * config.factor
    end = depth if config.degradation == "avg" else depth - config.factor + 1
    return slice(edge, max(edge, end - edge))


def degrade_voxels(true: Voxels, factor: int, degradation: Degradation) -> Voxels:
    """Make sections of a volume, rounded to its own dtype.

    Args:
        true: (z, y, x); z a multiple of ``factor``.
        factor: voxels per section.
        degradation: ``avg`` or ``skip``.

    Returns:
        (z // factor, y, x).
    """
    sections = np.empty((true.shape[0] // factor, *true.shape[1:]), true.dtype)
    for start in range(0, len(sections), SLAB_SECTIONS):
        slab = true[start * factor : (start + SLAB_SECTIONS) * factor].astype(np.float32)
        made: NDArray[np.float32] = degrade(
            torch.from_numpy(slab)[None, None], factor, degradation
        ).numpy()
        sections[start : start + SLAB_SECTIONS] = quantise(made[0, 0], true.dtype)
    return sections


def degraded_spec(truth: VolumeSpec, box: Box, factor: int) -> VolumeSpec:
    """Return the spec of a part of a volume after degradation; its grid starts at zero."""
    z, y, x = truth.spacing
    spacing = Spacing(z * factor, y, x)
    shape = triple((box.shape[0] // factor, *box.shape[1:]))
    corner = [c + lo * s for c, lo, s in zip(truth.corner_nm, box.lo, truth.spacing, strict=True)]
    level = LevelSpec("", Box.from_shape(shape), spacing, shape, None)
    return replace(
        truth, encoding="raw", corner_nm=(corner[0], corner[1], corner[2]), levels=(level,)
    )


def predict_volume(predictor: Predictor, source: Volume, block: Triple) -> Voxels:
    """Predict all of a volume block by block, as a run does.

    Args:
        predictor: a model with its factor resolved.
        source: the anisotropic volume; its grid starts at zero.
        block: target voxels at a time.

    Returns:
        All target voxels, (z, y, x).
    """
    spec = predictor.spec
    whole = target_box(source.spec.box, spec.resolved_factor)
    result = np.empty(whole.shape, source.spec.dtype)
    for write in cells(whole, block):
        read = spec.read_box(write)
        result[write.slices(whole.lo)] = predictor(read_reflected(source, read), read, write)
    return result


def write_report(evaluation: Evaluation, folder: str) -> None:
    """Write ``evaluation.json`` and ``evaluation.md`` into a folder, which is made."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(evaluation.summary(), indent=2)
    (out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    (out / "evaluation.md").write_text(as_markdown(evaluation), encoding="utf-8")


def as_markdown(evaluation: Evaluation) -> str:
    """Return the figures as a table, with what they stand for."""
    lines = [
        f"`{evaluation.truth}`, box {evaluation.compared}, x{evaluation.factor} along z, "
        f"{evaluation.degradation.upper()}; left out: {evaluation.left_out}.",
        "",
        "| model | PSNR dB | SSIM | wPSNR dB | CF-PSNR dB | seconds |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.model} | {row.psnr:.2f} | {row.ssim:.4f} | {row.wpsnr:.2f} | "
        f"{row.cf_psnr:.2f} | {row.seconds:.1f} |"
        for row in evaluation.rows
    ]
    return "\n".join(lines) + "\n"


def _factor(config: EvaluateConfig) -> Factor:
    return (Fraction(config.factor), Fraction(1), Fraction(1))


def _check_model(name: str, config: EvaluateConfig) -> None:
    if name in INTERPOLATIONS:
        interpolation_spec(name).for_factor(_factor(config))
        return
    spec = describe(name, trust=config.trust).for_factor(_factor(config))
    if spec.phase != PHASES[config.degradation]:
        taught = next(kind for kind, phase in PHASES.items() if phase == spec.phase)
        raise ModelError(
            f"model {name!r} was made for sections of degradation {taught!r}, not "
            f"{config.degradation!r}; choose --degradation {taught}"
        )


def _predictor(name: str, config: EvaluateConfig, source: Volume) -> Predictor:
    if name in INTERPOLATIONS:
        spec = interpolation_spec(name, PHASES[config.degradation])
        return Interpolation(spec.for_factor(_factor(config)))
    normalisation = describe(name, trust=config.trust).normalisation
    runtime = Runtime(
        factor=_factor(config),
        intensity=measure_intensity(source, normalisation),
        dtype=source.spec.dtype,
        device=config.device,
        trust=config.trust,
        allow_inexact=True,  # seams cost what they cost in the figures
    )
    return load(name, runtime)


def _row(name: str, voxels: tuple[Voxels, Voxels, Voxels], seconds: float) -> Row:
    """Compare truth, prediction and cubic."""
    true, predicted, cubic = voxels
    data_range = float(np.iinfo(true.dtype).max)
    return Row(
        name,
        psnr(true, predicted, data_range),
        ssim(true, predicted, data_range),
        wpsnr(true, predicted, cubic, data_range),
        cf_psnr(true, predicted, data_range=data_range),
        true.size,
        seconds,
    )
