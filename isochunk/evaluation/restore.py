"""How each model restores the degraded volume: interpolations, networks, and given predictions."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from isochunk.core.consistency import require_consistent
from isochunk.core.degradation import PHASES, Degradation
from isochunk.core.geometry import Box, Factor, Triple, cells, target_box
from isochunk.core.job import Precision
from isochunk.core.spec import AXIAL, ModelSpec, VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import ModelError, UsageError
from isochunk.evaluation.config import EvaluateConfig
from isochunk.models.interface import Predictor, predict
from isochunk.models.interpolation import INTERPOLATIONS, Interpolation, interpolation_spec
from isochunk.models.load import Runtime, describe, load
from isochunk.planning.intensity import measure_intensity
from isochunk.storage.access import Access
from isochunk.storage.open import open_volume
from isochunk.storage.volume import Volume, read_reflected

CONSISTENT = "consistent"
"""Follows the name of a model whose answer was made consistent with its input."""

ALWAYS_EVALUATED = ("nearest", "linear", "cubic")
"""Interpolations that every evaluation includes; the weights of wPSNR come from cubic."""


def describe_models(config: EvaluateConfig) -> tuple[dict[str, ModelSpec], Factor]:
    """Return what is known of each evaluated model, and the factor that suits all of them.

    Returns:
        Specs by name, their factors resolved; truth voxels per degraded voxel and axis.

    Raises:
        UsageError: the factor is below 1.
        ModelError: a model cannot be loaded, or was made for another factor or degradation; some
            models refine z, and others y and x; or one cannot be made consistent.
    """
    names = dict.fromkeys((*ALWAYS_EVALUATED, *config.models))
    specs = {name: _describe(name, config) for name in names}
    factor = _common_factor(specs, config.factor)
    fixed = {name: _for_sections(spec, factor, config.degradation) for name, spec in specs.items()}
    if config.consistent:
        for spec in fixed.values():
            require_consistent(spec)
    return fixed, factor


def restore(
    name: str,
    spec: ModelSpec,
    source: Volume,
    config: EvaluateConfig,
    precision: Precision = "fp32",
    *,
    consistent: bool = False,
) -> Voxels:
    """Load a model and restore all of a volume.

    Args:
        name: an interpolation, or a model as ``--model`` takes it.
        spec: of the model, its factor resolved.
        source: the degraded volume; its grid starts at zero.
        config: block, device and trust.
        precision: arithmetic of networks.
        consistent: whether the answer is made consistent with the input.

    Returns:
        All target voxels, (z, y, x), of the source's dtype.
    """
    if name in INTERPOLATIONS:
        return predict_volume(Interpolation(spec, consistent=consistent), source, config.block)
    runtime = Runtime(
        factor=spec.resolved_factor,
        intensity=measure_intensity(source, spec.normalisation),
        dtype=source.spec.dtype,
        device=config.device,
        precision=precision,
        trust=config.trust,
        allow_inexact=True,  # seams cost what they cost in the figures
        consistent=consistent,
        plane=spec.plane if spec.plane in AXIAL else None,
    )
    return predict_volume(load(name, runtime), source, config.block)


def predict_volume(predictor: Predictor, source: Volume, block: Triple) -> Voxels:
    """Predict all of a volume block by block, as a run does.

    Args:
        predictor: a model with its factor resolved.
        source: the anisotropic volume; its grid starts at zero.
        block: target voxels at a time.

    Returns:
        All target voxels, (z, y, x), of the source's dtype.
    """
    spec = predictor.spec
    target = target_box(source.spec.box, spec.resolved_factor)
    result = np.empty(target.shape, source.spec.dtype)
    for write in cells(target, block):
        read = spec.read_box(write)
        result[write.slices(target.lo)] = predict(
            predictor, read_reflected(source, read), read, write
        )
    return result


def open_prediction(url: str, truth: VolumeSpec, box: Box | None, access: Access) -> Volume:
    """Open a volume that was restored elsewhere.

    Args:
        url: of the prediction.
        truth: what it has to match.
        box: part of the truth that is evaluated; None for all of it.
        access: how the prediction is reached.

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
    if spec.box != truth.box and (box is None or box not in spec.box):
        both = spec.box & truth.box
        advice = f"--box {both} is what both have" if both.size else "they have none in common"
        raise UsageError(
            f"prediction {url} has voxels {spec.box} (shape {spec.box.shape}), but the truth "
            f"{truth.url} has {truth.box} (shape {truth.box.shape}); {advice}"
        )
    return volume


def _describe(name: str, config: EvaluateConfig) -> ModelSpec:
    """Return what a model is, on the planes it is evaluated on, its factor still open."""
    if name in INTERPOLATIONS:
        return interpolation_spec(name, PHASES[config.degradation])
    spec = describe(name, trust=config.trust)
    if config.plane is not None and spec.plane in AXIAL:
        spec = spec.on_plane(config.plane)
    return spec


def _common_factor(specs: Mapping[str, ModelSpec], ratio: Fraction) -> Factor:
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


def _for_sections(spec: ModelSpec, factor: Factor, degradation: Degradation) -> ModelSpec:
    """Resolve a model's factor.

    Raises:
        ModelError: it has another, or was made for other sections.
    """
    spec = spec.for_factor(factor)
    if spec.phase != PHASES[degradation]:
        trained = next(kind for kind, phase in PHASES.items() if phase == spec.phase)
        raise ModelError(
            f"model {spec.name!r} was made for sections of degradation {trained!r}, not "
            f"{degradation!r}; choose --degradation {trained}"
        )
    return spec
