"""Degrade a volume that is known, restore it with every model, and compare.

Restoring goes block by block through the same :class:`Predictor` and the same reflected reads
as a run, and values are rounded to the volume's dtype before they are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from isochunk.core.degradation import Degradation
from isochunk.core.geometry import Box, Factor
from isochunk.core.mending import Mending
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.engine.mended import open_mended
from isochunk.engine.windowed import open_rounded
from isochunk.errors import UsageError
from isochunk.evaluation.baselines.published import (
    BaselineSetup,
    check_baseline,
    restore_by_baseline,
    with_networks,
)
from isochunk.evaluation.compare import Comparison, compare, middle_slices
from isochunk.evaluation.config import EvaluateConfig
from isochunk.evaluation.ground_truth import (
    ArrayVolume,
    Region,
    averaged,
    choose_region,
    degrade_voxels,
    degraded_spec,
    describe_left_out,
)
from isochunk.evaluation.noise import noise_ceiling
from isochunk.evaluation.restore import CONSISTENT, describe_models, open_prediction, restore
from isochunk.evaluation.results import Evaluation, ModelResult
from isochunk.evaluation.tables import write_tables
from isochunk.models.interpolation import INTERPOLATIONS
from isochunk.storage.access import Access
from isochunk.storage.open import check_supported
from isochunk.storage.volume import Volume

__all__ = ["EvaluateConfig", "evaluate", "evaluate_volume"]

DEFAULT_ACCESS = Access()


def evaluate(config: EvaluateConfig, access: Access = DEFAULT_ACCESS) -> Evaluation:
    """Degrade a volume, restore it with every model, compare, and write the report if asked for.

    Args:
        config: what is evaluated, on what, and how.
        access: how the truth, the predictions and what a dictionary is learnt from are reached.

    Raises:
        UsageError: the box is too small, too large or outside; a prediction lies on another grid;
            a report is asked for and matplotlib or jinja2 is not installed.
        ModelError: a model cannot be loaded, or was made for another factor or degradation.
        StorageError: a volume cannot be read.
    """
    if config.report is not None:
        require_page()
    stored, mending = open_mended(config.truth, access, config.window, config.sections)
    _require_recorded(config, stored.spec, mending)
    truth = averaged(stored, config.average)
    check_supported(truth.spec)
    evaluation = evaluate_volume(config, truth, access)
    if config.report is not None:
        from isochunk.evaluation.page import write_page

        folder = Path(config.report)
        write_tables(evaluation, folder)
        write_page(evaluation, folder)
    return evaluation


def _require_recorded(config: EvaluateConfig, truth: VolumeSpec, mending: Mending | None) -> None:
    """Refuse to compare with sections that were filled.

    Raises:
        UsageError: one of what is evaluated is lost.
    """
    box = truth.box if config.box is None else config.box
    thick = 1 if config.box is None else config.average[0]
    if mending is not None and not mending.good(box.lo[0] * thick, box.hi[0] * thick):
        lost = [f"{run.first}:{run.end}" for run in mending.runs]
        raise UsageError(
            f"sections {', '.join(lost)} of {truth.url} are lost, so there is no truth to compare "
            f"with in {box}; choose a --box without them"
        )


def evaluate_volume(
    config: EvaluateConfig, truth: Volume, access: Access = DEFAULT_ACCESS
) -> Evaluation:
    """Evaluate on an open volume, averaged already; writes no report. See :func:`evaluate`."""
    config = with_networks(config)
    specs, factor = describe_models(config)
    setup = BaselineSetup(
        factor=factor,
        degradation=config.degradation,
        models=specs,
        learn_from=_learnt_from(config, access),
        device=config.device,
    )
    for baseline in config.references:
        check_baseline(baseline, setup)
    predictions = {
        url: open_prediction(url, truth.spec, config.box, access.beside())
        for url in config.predictions
    }
    requested = config.box or truth.spec.box
    region = choose_region(truth.spec, requested, factor, config.degradation)
    background = _background_index(config.background, region, truth.spec)

    true = truth.read(region.degraded)
    sections = degrade_voxels(true, factor, config.degradation)
    source = ArrayVolume(degraded_spec(truth.spec, region.degraded, factor), sections)
    restorers: dict[str, Callable[[], Voxels]] = {
        **{name: partial(restore, name, spec, source, config) for name, spec in specs.items()},
        **{
            f"{name} in {precision}": partial(restore, name, spec, source, config, precision)
            for name, spec in specs.items()
            if name not in INTERPOLATIONS
            for precision in config.precisions
        },
        **{
            f"{name} {CONSISTENT}": partial(restore, name, spec, source, config, consistent=True)
            for name, spec in specs.items()
            if config.consistent and name != "nearest"  # which is by itself
        },
        **{name: partial(restore_by_baseline, name, sections, setup) for name in config.references},
        **{url: partial(volume.read, region.degraded) for url, volume in predictions.items()},
    }

    true = true[region.inner]
    results: dict[str, ModelResult] = {}
    cubic: Voxels | None = None
    for name in sorted(restorers, key=lambda name: name != "cubic"):  # wPSNR needs it first
        started = time.perf_counter()
        predicted = restorers[name]()[region.inner]
        seconds = time.perf_counter() - started
        cubic = predicted if cubic is None else cubic
        comparison = Comparison(
            truth=true,
            predicted=predicted,
            cubic=cubic,
            background=None if background is None else predicted[background],
            voxel_nm=float(truth.spec.spacing.x),
            degraded_axis="x" if factor[0] == 1 else "z",
        )
        results[name] = compare(name, comparison, seconds)
    return Evaluation(
        results=tuple(results[name] for name in restorers),
        cards=tuple(spec for name, spec in specs.items() if name not in INTERPOLATIONS),
        truth_slices=middle_slices(true),
        truth=config.truth,
        spacing_nm=str(truth.spec.spacing),
        average=config.average,
        factor=factor,
        degradation=config.degradation,
        compared=region.compared,
        left_out=describe_left_out(requested, region.compared),
        noise_ceiling_db=_noise_ceiling_db(true, factor, config.degradation),
    )


def _learnt_from(config: EvaluateConfig, access: Access) -> Volume | None:
    """Open what a dictionary is learnt from, if anything; its values are those of the truth."""
    if config.learn_from is None:
        return None
    return open_rounded(config.learn_from, access.beside(), config.window)


def require_page() -> None:
    """Check that a page can be drawn, before anything takes time."""
    try:
        import isochunk.evaluation.page  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--report draws a page with matplotlib and jinja2, but {error.name} cannot be "
            "imported; pip install 'isochunk[view]'"
        ) from error


def _background_index(
    background: Box | None, region: Region, truth: VolumeSpec
) -> tuple[slice, slice, slice] | None:
    """Return the index of the background in the voxels that are compared.

    Raises:
        UsageError: it reaches beyond them.
    """
    if background is None:
        return None
    if background not in region.compared or not background.size:
        raise UsageError(
            f"background {background} must hold voxels and lie inside those of {truth.url} "
            f"that are compared, {region.compared}"
        )
    return background.slices(region.compared.lo)


def _noise_ceiling_db(
    true: Voxels, factor: Factor, degradation: Degradation
) -> tuple[float, float] | None:
    """Estimate the noise ceiling, which is known for sections that are means or samples."""
    if degradation == "psf" or factor[0] == 1:
        return None
    return noise_ceiling(true, factor[0], float(np.iinfo(true.dtype).max))
