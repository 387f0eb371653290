"""Judge models where nobody knows the truth: restore boxes of a volume, and ask what can be asked.

Boxes are held in memory and continued by reflection at their rims, so a figure says what a run
would do inside a volume of that size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isochunk.core.consistency import Consistency, compare_sections, sections_of, span_of_sections
from isochunk.core.geometry import Box, Triple
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.engine.mended import open_mended
from isochunk.evaluation.evaluate import require_page
from isochunk.evaluation.membranes import membrane_isotropy
from isochunk.evaluation.restore import predict_volume
from isochunk.evaluation.without_truth.candidates import (
    Candidate,
    Setup,
    load_candidate,
    needs_volumes,
    set_up,
)
from isochunk.evaluation.without_truth.config import JudgeConfig
from isochunk.evaluation.without_truth.held_out import (
    LEAST_SECTIONS,
    LIMITS,
    HeldOut,
    beyond_training,
    hold_out,
    why_none_held_out,
)
from isochunk.evaluation.without_truth.lateral import (
    LateralFigures,
    LateralTest,
    lateral_figures,
    lateral_test,
    restore_lateral,
    why_no_lateral_test,
)
from isochunk.evaluation.without_truth.places import Seen, worst_place
from isochunk.evaluation.without_truth.results import (
    JudgedFigures,
    JudgedModel,
    Judgement,
    NotMeasured,
)
from isochunk.evaluation.without_truth.sampling import (
    Sample,
    draw_sample,
    in_memory,
    read_sample,
)
from isochunk.evaluation.without_truth.spectrum import (
    Spectrum,
    lateral_spectrum,
    mean_spectrum,
    spectrum_along,
    upper_band,
    z_to_xy_power,
)
from isochunk.evaluation.without_truth.tables import write_judgement
from isochunk.models.interpolation import INTERPOLATIONS
from isochunk.storage.access import Access
from isochunk.storage.open import check_supported

log = logging.getLogger(__name__)

DEFAULT_ACCESS = Access()


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged on."""

    spec: VolumeSpec
    """The source."""
    sample: Sample
    """Boxes of it."""
    tests: tuple[LateralTest, ...]
    """The same made coarse along y; none where boxes are too small."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured of one model; a value per box."""

    consistency: Consistency
    """How far its output is from the input."""
    restored: tuple[Voxels, ...]
    """Its output."""
    made: tuple[NDArray[np.float32], ...]
    """Sections made of that."""
    lateral: LateralFigures | None
    """How well it restored y; None where boxes are too small."""
    held_out: HeldOut
    """How far it was from sections left out; nothing where that cannot be done."""
    along_z: Spectrum | None
    """Power of its output along z."""
    seconds: float
    """What that took, loading included."""


def judge(config: JudgeConfig, access: Access = DEFAULT_ACCESS) -> Judgement:
    """Restore boxes of an anisotropic volume with every model, and ask what can be asked.

    Args:
        config: what is judged, on what, and how.
        access: how the source is reached.

    Raises:
        UsageError: the source is isotropic or all background, or the box is outside or too large;
            a report is asked for and matplotlib or jinja2 is not installed.
        ModelError: a model cannot be loaded, or does not suit the source.
        StorageError: the source cannot be read.
    """
    if config.report is not None:
        require_page()
    source, _ = open_mended(config.source, access, config.window, config.sections)
    check_supported(source.spec)
    setup = set_up(config, source.spec)
    if config.box is None:
        sample = draw_sample(source, config.samples, config.seed)
    else:
        sample = read_sample(source, config.box, setup.factor)
    subject = Subject(source.spec, sample, _lateral_tests(sample, source.spec, setup))
    trials = {}
    for name in setup.specs:
        started = time.perf_counter()
        candidate = load_candidate(name, setup, config, source)
        trials[name] = _try(candidate, subject, setup, config.block, started)
        log.info("%s: consistency %.3f grey levels", name, trials[name].consistency.rms)
    judgement = _judgement(config, subject, setup, trials)
    if config.report is not None:
        from isochunk.evaluation.without_truth.page import write_page

        folder = Path(config.report)
        write_judgement(judgement, folder)
        write_page(judgement, folder)
    return judgement


def _lateral_tests(sample: Sample, spec: VolumeSpec, setup: Setup) -> tuple[LateralTest, ...]:
    """Make y of every box coarse; none where they are too small."""
    if why_no_lateral_test(sample.boxes[0].shape, setup.factor):
        return ()
    volumes = any(map(needs_volumes, setup.specs.values()))
    return tuple(lateral_test(v, spec, setup, volumes=volumes) for v in sample.voxels)


def _try(
    candidate: Candidate, subject: Subject, setup: Setup, block: Triple, started: float
) -> Trial:
    """Put one model to every test, on every box."""
    sample, spec = subject.sample, subject.spec
    restored = [predict_volume(candidate.restore, in_memory(v, spec), block) for v in sample.voxels]
    made = [_sections_of(fine, setup) for fine in restored]
    compared = zip(made, sample.voxels, sample.boxes, strict=True)
    consistency = sum(
        (compare_sections(m, v[: len(m)], _first(box, len(m))) for m, v, box in compared),
        Consistency(),
    )
    lateral = [restore_lateral(candidate, test, spec, setup, block) for test in subject.tests]
    held_out = HeldOut()
    if candidate.spread is not None and len(sample.voxels[0]) >= LEAST_SECTIONS:
        parts = (hold_out(candidate.spread, v, spec, setup.phase, block) for v in sample.voxels)
        held_out = sum(parts, HeldOut())
    target_nm = float(spec.spacing.z / setup.factor)
    y_nm = float(spec.spacing.y)
    return Trial(
        consistency=consistency,
        restored=tuple(restored),
        made=tuple(made),
        lateral=lateral_figures(subject.tests, lateral, y_nm) if lateral else None,
        held_out=held_out,
        along_z=mean_spectrum([spectrum_along(fine, 0, target_nm) for fine in restored]),
        seconds=time.perf_counter() - started,
    )


def _sections_of(restored: Voxels, setup: Setup) -> NDArray[np.float32]:
    """Make the sections again that target voxels cover whole, from the first on."""
    count = int(len(restored) / setup.factor) + 1
    while span_of_sections(0, count, setup.factor, setup.phase)[1] > len(restored):
        count -= 1
    return sections_of(restored, 0, range(count), setup.factor, setup.phase)


def _first(box: Box, sections: int) -> Box:
    """Return the first sections of a box."""
    return Box(box.lo, (box.lo[0] + sections, *box.hi[1:]))


def _judgement(
    config: JudgeConfig, subject: Subject, setup: Setup, trials: Mapping[str, Trial]
) -> Judgement:
    """Put together what was found."""
    spec, sample = subject.spec, subject.sample
    lateral = mean_spectrum([lateral_spectrum(v, spec.spacing) for v in sample.voxels])
    section_nm = float(spec.spacing.z)
    results = _results(subject, setup, trials, lateral)
    networks = tuple(n for n, s in setup.specs.items() if s.arch not in INTERPOLATIONS)
    seen = (
        Seen(
            box,
            sample.voxels[i],
            {name: trial.restored[i] for name, trial in trials.items()},
            {name: trial.made[i] for name, trial in trials.items()},
            networks,
        )
        for i, box in enumerate(sample.boxes)
    )
    places = sorted((worst_place(s, setup.factor) for s in seen), key=lambda p: -p.rms)
    anything_held_out = any(trial.held_out.voxels for trial in trials.values())
    return Judgement(
        results=results,
        cards=tuple(setup.specs[name] for name in networks if name not in setup.consistent),
        places=tuple(places),
        source=config.source,
        spacing=spec.spacing,
        factor=setup.factor,
        degradation=setup.degradation,
        boxes=sample.boxes,
        bytes_read=sample.bytes_read,
        passed_over=sample.passed_over,
        lateral_power=lateral,
        source_z_power=mean_spectrum([spectrum_along(v, 0, section_nm) for v in sample.voxels]),
        not_measured=tuple(_not_measured(subject, setup, trials)),
        limits=LIMITS[setup.phase] if anything_held_out else "",
    )


def _results(
    subject: Subject, setup: Setup, trials: Mapping[str, Trial], lateral: Spectrum | None
) -> tuple[JudgedModel, ...]:
    """Return the figures of every model."""
    section_nm = float(subject.spec.spacing.z)
    band = upper_band(section_nm, section_nm / float(setup.factor))
    top = float(np.iinfo(subject.spec.dtype).max)
    cubic = trials["cubic"].lateral
    results = []
    for name, trial in trials.items():
        own = trial.lateral
        figures = JudgedFigures(
            model=name,
            consistency_rms=trial.consistency.rms,
            lateral_psnr=None if own is None else own.psnr,
            lateral_over_cubic=None if own is None or cubic is None else own.psnr - cubic.psnr,
            heldout_psnr=trial.held_out.psnr(top),
            z_to_xy_power=z_to_xy_power(trial.along_z, lateral, band),
            membranes=_membranes(trial.restored),
            seconds=trial.seconds,
        )
        results.append(JudgedModel(figures, trial.consistency, own, trial.along_z))
    return tuple(results)


def _membranes(restored: tuple[Voxels, ...]) -> float | None:
    """Return the mean over boxes of how clear membranes are along z."""
    found = [isotropy for fine in restored if (isotropy := membrane_isotropy(fine)) is not None]
    return float(np.mean(found)) if found else None


def _not_measured(
    subject: Subject, setup: Setup, trials: Mapping[str, Trial]
) -> Iterator[NotMeasured]:
    """Say what is missing, and why."""
    shape = subject.sample.boxes[0].shape
    no_lateral = why_no_lateral_test(shape, setup.factor)
    for name, trial in trials.items():
        spec = setup.specs[name]
        if no_lateral:
            yield NotMeasured(name, "lateral_psnr", no_lateral)
        reason = why_none_held_out(spec, shape[0], fixed=name in setup.fixed)
        if reason or (reason := beyond_training(spec)):
            yield NotMeasured(name, "heldout_psnr", reason)
        if trial.along_z is None:
            yield NotMeasured(name, "z_to_xy_power", "boxes are too thin for a spectrum along z")
