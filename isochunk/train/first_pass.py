"""The first pass of mode ``self3d``: a network for slices makes the user's volume isotropic.

The result is an ordinary target of an ordinary run, with its ledger, so that a killed pass goes on
where it stopped, and one that a cluster has written serves as well.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from isochunk.core.consistency import why_not_consistent
from isochunk.core.degradation import degradations_of
from isochunk.core.geometry import Box
from isochunk.core.job import Job
from isochunk.core.mending import Mending, Run
from isochunk.core.spec import AXIAL
from isochunk.core.text_forms import read_box
from isochunk.engine.events import EventLog
from isochunk.engine.local import LocalBackend
from isochunk.engine.loop import Recorder, execute
from isochunk.engine.mended import mended
from isochunk.engine.opened import open_job
from isochunk.engine.pipeline import Pipeline
from isochunk.engine.prepare import plan_job, prepare_target
from isochunk.engine.report import Report
from isochunk.engine.target import open_written_target
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import NotFoundError, StorageError, TargetConflictError, UsageError
from isochunk.models.load import describe
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access
from isochunk.storage.open import open_volume
from isochunk.storage.volume import Volume
from isochunk.train.config import TrainConfig
from isochunk.train.data import in_room, require_rooms, split
from isochunk.train.loop import LINE_S, sampling_of
from isochunk.train.options import with_sources
from isochunk.train.presets import config_from_table, read_recipe
from isochunk.train.sources import anisotropy

log = logging.getLogger(__name__)

RECIPE = "niiv-z2-10"
"""What the network for slices is trained by, where none is given."""

SLICES, ISOTROPIC = "slices", "isotropic.zarr"
"""Folders in ``out``: that network, and the volume that it makes, wherever its first voxel lies."""

MOST_VOXELS = 1 << 32
"""Target voxels that one process makes isotropic without being told to: a night's work."""


def slices_config(config: TrainConfig) -> TrainConfig:
    """Return the training of a network for slices of the very volume, in mode ``self``."""
    table = with_sources(read_recipe(RECIPE), config.sources)
    for own in ("factor", "averages"):
        table.pop(own)
    return config_from_table(
        {
            **table,
            "out": str(Path(config.out) / SLICES),
            "mode": "self",
            "steps": config.first_pass.slices_steps,
            "degradation": degradations_of(config.degradation)[0],
            "grey_window": config.grey_window,
            "sections": config.sections,
            "precision": config.precision,
            "device": config.device,
            "seed": config.seed,
            "licence": config.licence,
            "trained_on": config.trained_on,
        }
    )


def require_room_for_crops(config: TrainConfig, source: Volume) -> None:
    """Refuse, before anything takes time, a volume that is too small once it is isotropic.

    Args:
        config: of mode ``self3d``.
        source: the user's volume.

    Raises:
        UsageError: a part of it will hold no crop.
    """
    told = config.first_pass.box
    nz, ny, nx = (read_box(told, "box") if told else source.spec.box).shape
    fine = Box.from_shape((int(nz * anisotropy(source, (1, 1, 1))), ny, nx))
    trained, validated, _ = split(fine, config.split_axis)
    usual, url = sampling_of(config), source.spec.url
    require_rooms([url], [trained], in_room(usual, [trained]), "training")
    held_out = replace(usual, patch=config.validation_patch, averages=usual.averages[:1])
    require_rooms([url], [validated], in_room(held_out, [validated]), "validation")


def isotropic_volume(config: TrainConfig, source: Volume, access: Access) -> Volume:
    """Return the user's volume made isotropic; what is missing of it is computed in this process.

    Args:
        config: of mode ``self3d``.
        source: the user's volume, through its section table.
        access: how it is reached.

    Returns:
        A volume of isotropic voxels, that knows where sections were lost.

    Raises:
        TargetConflictError: what is there was made of another volume or by another network.
        StorageError: not all of it could be written.
    """
    first = config.first_pass
    target = first.isotropic or str(Path(config.out) / ISOTROPIC)
    try:
        written = open_written_target(target, access.endpoint_url, access.requester_pays)
    except NotFoundError:
        # Read at random, again and again: decoding would take longer than the room is worth.
        plan = plan_job(replace(_job(config, target, source, access), encoding="raw"))
        _require_few(plan)
        _run(plan)
    else:
        plan = written.plan
        _require_same(config, plan, source)
        if written.ledger.count() < plan.total_blocks:
            _run(plan_job(_job(config, target, source, access)))
    stored = open_volume(plan.target.url, replace(access.beside(), missing="auto"))
    return mended(stored, _lost(plan))


def _job(config: TrainConfig, target: str, source: Volume, access: Access) -> Job:
    slices = config.first_pass.slices or str(Path(config.out) / SLICES)
    spec, one = describe(slices), Fraction(1)
    told = spec.for_factor((anisotropy(source, (1, 1, 1)), one, one))
    return Job.from_mapping(
        {
            "source": config.sources[0],
            "target": target,
            "model": slices,
            "plane": "xz+yz" if spec.plane in AXIAL else None,
            # Else what was recorded within sections would be smoothed, and that is to be learnt.
            "consistent": not why_not_consistent(told),
            "box": config.first_pass.box or None,
            "window": config.grey_window or None,
            "sections": config.sections or None,
            "levels": 1,
            "device": config.device,
            "endpoint_url": access.endpoint_url,
            "requester_pays": access.requester_pays,
            "source_spacing": access.spacing,
            "channel": access.channel,
            "time": access.time,
            "missing": access.missing,
            "timeout_s": access.timeout_s,
            "requests": access.requests,
        }
    )


def _require_same(config: TrainConfig, plan: Plan, source: Volume) -> None:
    """Refuse what was made of another volume, or not by the network that is asked for."""
    first, there = config.first_pass, plan.target.url
    if plan.source.url != source.spec.url:
        raise TargetConflictError(
            f"{there} was made of {plan.source.url}, not of {source.spec.url}; choose another "
            "volume with --isotropic, or another out folder"
        )
    if len(set(plan.target.spacing)) > 1:
        raise TargetConflictError(
            f"{there} has voxels of {', '.join(map(str, plan.target.spacing))} nm (z, y, x), not "
            "isotropic ones; run it without --spacing, into another target"
        )
    wanted = first.slices or ("" if first.isotropic else str(Path(config.out) / SLICES))
    if wanted and describe(wanted).sha256 != plan.model.sha256:
        raise TargetConflictError(
            f"{there} was made by {plan.model.name}, which is not the network of {wanted}; choose "
            "another volume with --isotropic, or another out folder"
        )


def _require_few(plan: Plan) -> None:
    """Refuse what one process would take days for."""
    if (voxels := plan.target.box.size) > MOST_VOXELS:
        raise UsageError(
            f"the first pass would make {voxels:.3g} voxels in this process; choose a part of the "
            "volume with --box, or write it on a cluster with isochunk run, and name that target "
            "with --isotropic"
        )


def _run(plan: Plan) -> None:
    """Carry out what is missing of a plan, in this process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"{plan.target.url} is not complete, and several processes would write it at once; "
            "start the same command without torchrun, or write it with isochunk run"
        )
    log.info("first pass: %s makes %s", plan.model.name, plan.target.url)
    begun = said = time.monotonic()

    def watch(report: Report) -> None:
        nonlocal said
        if time.monotonic() - said > LINE_S:
            said = time.monotonic()
            log.info("first pass: %d of %d blocks", report.done, report.total)

    with Pipeline(open_job(plan)) as pipeline:
        ledger = prepare_target(plan)
        recorder = Recorder(ledger, EventLog(ledger.store), Timeouts())
        report = execute(plan, recorder, LocalBackend(pipeline), watch, begun)
    if not report.complete:
        raise StorageError(
            f"{report.failed} of {report.total} blocks of {plan.target.url} failed; the same "
            "command tries them again"
        )


def _lost(plan: Plan) -> Mending | None:
    """Return which of the planes that were made lie in lost sections."""
    if plan.mending is None or not plan.mending.runs:
        return None
    lo, hi = plan.target.box.lo[0], plan.target.box.hi[0]
    runs = []
    for start, stop in plan.mending.spans(plan.model.resolved_factor[0]):
        first, end = max(start + plan.shift[0], lo), min(stop + plan.shift[0], hi)
        if (first, end) == (lo, hi):
            raise UsageError(
                f"all sections of {plan.region} are lost; choose another --box to learn from"
            )
        if first < end:
            runs.append(Run.within(first, end, lo, hi))
    return Mending({}, tuple(runs))
