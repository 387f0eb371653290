"""How well models restore a volume that is known: degrade it, predict it back, compare.

Prediction goes block by block through the same :class:`Predictor` and the same reflected reads
as a run, and values are rounded to the volume's dtype before they are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from isochunk.core.degradation import PHASES, Degradation
from isochunk.core.geometry import Box, Factor, Triple, cells, target_box
from isochunk.core.job import AxialPlane, Device
from isochunk.core.spec import AXIAL, ModelSpec, VolumeSpec
from isochunk.core.text_forms import BoxField, RatioField, ShapeField
from isochunk.core.voxels import Voxels
from isochunk.errors import ModelError, UsageError
from isochunk.evaluation.baselines.published import BaselineInputs as BaselineInputs
from isochunk.evaluation.baselines.published import Reference, check_reference, restore_by
from isochunk.evaluation.baselines.published import RestorationTask as RestorationTask
from isochunk.evaluation.noise import noise_ceiling
from isochunk.evaluation.results import Comparison as Comparison
from isochunk.evaluation.results import Evaluation, measure, middle_slices, write_figures
from isochunk.evaluation.results import ModelResult as ModelResult
from isochunk.evaluation.truth import (
    NO_AVERAGE,
    ArrayVolume,
    averaged,
    compared,
    degrade_voxels,
    degraded_spec,
    left_out,
    whole_sections,
)
from isochunk.models.interface import Predictor
from isochunk.models.interpolation import INTERPOLATIONS, Interpolation, interpolation_spec
from isochunk.models.load import Runtime, describe, load
from isochunk.planning.intensity import measure_intensity
from isochunk.storage.access import Access
from isochunk.storage.open import check_supported, open_volume
from isochunk.storage.volume import Volume, read_reflected

DEFAULT = Access()

BASELINES = ("nearest", "linear", "cubic")
"""Always evaluated; the weights of wPSNR come from cubic."""


@dataclass(frozen=True, slots=True)
class EvaluateConfig:
    """What is evaluated on what; boxes in voxels of the truth, averaged if that is asked for."""

    truth: str
    """URL of an isotropic volume that none of the models was trained on."""
    models: tuple[str, ...] = ()
    """Models as ``--model`` takes them, besides the interpolations."""
    predictions: tuple[str, ...] = ()
    """URLs of volumes on the truth's grid that were restored elsewhere."""
    references: tuple[Reference, ...] = ()
    """Published methods: ``dictionary`` and ``siren`` are learnt or fitted on the spot,
    ``stitched`` is the pssr model's tiles joined with blurred seams, as its authors do."""
    learn_from: str | None = None
    """URL of the isotropic volume that a dictionary is learnt from."""
    factor: RatioField = Fraction(4)
    """Truth voxels that become one section: any number of at least 1 that the models take. For
    models that refine y and x, truth voxels that become one pixel, along both."""
    degradation: Degradation = "avg"
    """How sections are made of them: ``avg`` is the mean over each, ``skip`` its first voxel."""
    plane: AxialPlane | None = None
    """Slices that axial models run on, ``xz+yz`` for the mean of both; default: each one's own."""
    average: ShapeField = NO_AVERAGE
    """Voxels Z,Y,X that are averaged to one voxel of the truth first, against noise."""
    box: BoxField | None = None
    """Part of the truth, z0:z1,y0:y1,x0:x1; default: all of it."""
    background: BoxField | None = None
    """Part of the truth without signal, for SNR; without it there is none."""
    block: Triple = (128, 128, 128)
    """Voxels predicted at a time; the figures do not depend on it."""
    device: Device = "auto"
    """Where networks run."""
    trust: bool = False
    """Accept models that run code of their own."""
    report: str | None = None
    """Folder for ``evaluation.json``, ``evaluation.md`` and ``index.html``; none by default."""


def evaluate(config: EvaluateConfig, access: Access = DEFAULT) -> Evaluation:
    """Degrade a volume, predict it back with every model, and compare.

    Args:
        config: what is evaluated on what.
        access: how volumes are reached.

    Raises:
        UsageError: the box is too small, too large or outside; a prediction lies on another grid;
            a report is asked for and matplotlib is not installed.
        ModelError: a model cannot be loaded, or was made for another factor or degradation.
        StorageError: a volume cannot be read.
    """
    if config.report is not None:
        _check_report()
    truth = averaged(open_volume(config.truth, access), config.average)
    check_supported(truth.spec)
    evaluation = evaluate_volume(config, truth, access)
    if config.report is not None:
        from isochunk.evaluation.page import write_page

        write_figures(evaluation, Path(config.report))
        write_page(evaluation, Path(config.report))
    return evaluation


def evaluate_volume(config: EvaluateConfig, truth: Volume, access: Access = DEFAULT) -> Evaluation:
    """Evaluate on an open volume; see :func:`evaluate`."""
    names = tuple(dict.fromkeys((*BASELINES, *config.models)))
    specs = {name: _describe(name, config) for name in names}
    factor = degraded_factor(specs, config.factor)
    specs = {name: _fixed(spec, factor, config) for name, spec in specs.items()}
    learn_from = open_volume(config.learn_from, access) if config.learn_from else None
    inputs = BaselineInputs(specs, learn_from, config.device)
    for reference in config.references:
        check_reference(reference, factor, inputs)
    given = {url: _open_prediction(url, access, truth.spec, config) for url in config.predictions}
    asked = config.box or truth.spec.box
    box = whole_sections(truth.spec, asked, factor, config.degradation)
    inner = compared(box.shape, factor, config.degradation)
    background = _background(config, inner.shift(box.lo), truth.spec)
    true = truth.read(box)
    sections = degrade_voxels(true, factor, config.degradation)
    source = ArrayVolume(degraded_spec(truth.spec, box, factor), sections)
    task = RestorationTask(sections, factor, config.degradation)
    restorers: dict[str, Callable[[], Voxels]] = {
        **{name: partial(_predict, name, specs[name], config, source) for name in names},
        **{name: partial(restore_by, name, task, inputs) for name in config.references},
        **{url: partial(volume.read, box) for url, volume in given.items()},
    }
    where = inner.slices((0, 0, 0))
    results: dict[str, ModelResult] = {}
    cubic: Voxels | None = None
    for name in sorted(restorers, key=lambda name: name != "cubic"):  # wPSNR needs it first
        started = time.perf_counter()
        predicted = restorers[name]()[where]
        seconds = time.perf_counter() - started
        cubic = predicted if cubic is None else cubic
        ground = None if background is None else predicted[background]
        voxels = Comparison(
            true[where],
            predicted,
            cubic,
            ground,
            float(truth.spec.spacing.x),
            "x" if factor[0] == 1 else "z",
        )
        results[name] = measure(name, voxels, seconds)
    return Evaluation(
        results=tuple(results[name] for name in restorers),
        cards=tuple(specs[name] for name in names if name not in INTERPOLATIONS),
        view=middle_slices(true[where]),
        truth=config.truth,
        spacing_nm=str(truth.spec.spacing),
        average=config.average,
        factor=factor,
        degradation=config.degradation,
        compared=inner.shift(box.lo),
        left_out=left_out(asked, inner.shift(box.lo)),
        ceiling_db=_noise_limit(true[where], factor, config.degradation),
    )


def degraded_factor(specs: Mapping[str, ModelSpec], ratio: Fraction) -> Factor:
    """Return truth voxels per voxel and axis: along z, or along y and x if the models refine those.

    Raises:
        UsageError: the ratio is below 1.
        ModelError: some models refine z, and others y and x.
    """
    if ratio < 1:
        raise UsageError(f"factor {ratio} must be at least 1 target voxel per section")
    own = {name: spec.factor for name, spec in specs.items() if name not in INTERPOLATIONS}
    lateral = [name for name, (z, y, _) in own.items() if z == 1 and y != 1]
    if not lateral:
        return (Fraction(ratio), Fraction(1), Fraction(1))
    if len(lateral) < len(own):
        axial = [name for name in own if name not in lateral]
        raise ModelError(
            f"{', '.join(lateral)} restore y and x, but {', '.join(axial)} restore z; no one "
            "degraded volume suits both: evaluate them apart"
        )
    return (Fraction(1), Fraction(ratio), Fraction(ratio))


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


def _check_report() -> None:
    """Check that a page can be drawn, before anything takes time."""
    try:
        import isochunk.evaluation.page  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "--report draws with the matplotlib package, which is not installed; "
            "pip install 'isochunk[view]'"
        ) from error


def _describe(name: str, config: EvaluateConfig) -> ModelSpec:
    """Return what a model is, on the planes it is evaluated on, its factor still open."""
    if name in INTERPOLATIONS:
        return interpolation_spec(name, PHASES[config.degradation])
    spec = describe(name, trust=config.trust)
    if config.plane is not None and spec.plane in AXIAL:
        spec = spec.on_plane(config.plane)
    return spec


def _fixed(spec: ModelSpec, factor: Factor, config: EvaluateConfig) -> ModelSpec:
    """Fix a model's factor.

    Raises:
        ModelError: it has another, or was made for other sections.
    """
    spec = spec.for_factor(factor)
    if spec.phase != PHASES[config.degradation]:
        own = next(kind for kind, phase in PHASES.items() if phase == spec.phase)
        raise ModelError(
            f"model {spec.name!r} was made for sections of degradation {own!r}, not "
            f"{config.degradation!r}; choose --degradation {own}"
        )
    return spec


def _predict(name: str, spec: ModelSpec, config: EvaluateConfig, source: Volume) -> Voxels:
    """Load a model and predict all of a volume."""
    if name in INTERPOLATIONS:
        return predict_volume(Interpolation(spec), source, config.block)
    runtime = Runtime(
        factor=spec.resolved_factor,
        intensity=measure_intensity(source, spec.normalisation),
        dtype=source.spec.dtype,
        device=config.device,
        trust=config.trust,
        allow_inexact=True,  # seams cost what they cost in the figures
        plane=spec.plane if spec.plane in AXIAL else None,
    )
    return predict_volume(load(name, runtime), source, config.block)


def _noise_limit(
    true: Voxels, factor: Factor, degradation: Degradation
) -> tuple[float, float] | None:
    """Estimate how far noise limits PSNR; known for sections that are means or samples."""
    if degradation == "psf" or factor[0] == 1:
        return None
    found = noise_ceiling(true, factor[0], float(np.iinfo(true.dtype).max))
    return found.low, found.high


def _open_prediction(url: str, access: Access, truth: VolumeSpec, config: EvaluateConfig) -> Volume:
    """Open a prediction that was made elsewhere.

    Raises:
        UsageError: it does not lie on the truth's grid.
    """
    volume = open_volume(url, access)
    spec = volume.spec
    if spec.spacing != truth.spacing or spec.dtype != truth.dtype:
        raise UsageError(
            f"prediction {url} has {spec.dtype} voxels of {spec.spacing} nm (z,y,x), but the truth "
            f"{truth.url} has {truth.dtype} voxels of {truth.spacing} nm; they must be equal"
        )
    if spec.box != truth.box and (config.box is None or config.box not in spec.box):
        both = spec.box & truth.box
        advice = (
            f"--box {both} compares what both have" if both.size else "they have none in common"
        )
        raise UsageError(
            f"prediction {url} has voxels {spec.box} (shape {spec.box.shape}), but the truth "
            f"{truth.url} has {truth.box} (shape {truth.box.shape}); {advice}"
        )
    return volume


def _background(
    config: EvaluateConfig, where: Box, truth: VolumeSpec
) -> tuple[slice, slice, slice] | None:
    """Return the index of the background in the voxels that are compared.

    Raises:
        UsageError: it reaches beyond them.
    """
    if config.background is None:
        return None
    if config.background not in where or not config.background.size:
        raise UsageError(
            f"background {config.background} must hold voxels and lie inside those of {truth.url} "
            f"that are compared, {where}"
        )
    return config.background.slices(where.lo)
