"""From a job to a plan, and from a plan to a target that blocks can be written to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isochunk.core.job import FoundDevice, Job
from isochunk.core.sections import SectionTable
from isochunk.core.spec import Format, Intensity, ModelSpec, VolumeSpec
from isochunk.core.window import GREY, Window
from isochunk.engine.ledger import Ledger, check_same_job, read_job, write_job
from isochunk.engine.mended import AUTO, find_table, mended
from isochunk.engine.windowed import find_window, rounded, windowed
from isochunk.errors import TargetConflictError, UsageError
from isochunk.host.memory import usable_memory_bytes
from isochunk.models.gpus import seen_gpus
from isochunk.models.interpolation import INTERPOLATIONS
from isochunk.models.load import examine
from isochunk.planning.blocks import Workers
from isochunk.planning.intensity import measure_intensity
from isochunk.planning.make import Inputs, make_plan
from isochunk.planning.plan import Plan
from isochunk.planning.seats import least_device_bytes, seats_here
from isochunk.storage.access import Access
from isochunk.storage.objects import Store
from isochunk.storage.open import (
    MARKERS,
    check_creatable,
    check_supported,
    create_volume,
    open_store,
    open_volume,
)
from isochunk.storage.url import FILE_FORMATS, parse_url
from isochunk.storage.volume import Volume

log = logging.getLogger(__name__)

FALLBACK_MEMORY_BYTES = 4 << 30
"""Planned with where the system does not tell how much memory it has."""

FALLBACK_DEVICE_BYTES = 16 << 30
"""Memory of a GPU that is not here."""


@dataclass(frozen=True, slots=True)
class TargetPlace:
    """Where a volume is written, and as what."""

    url: str
    """Canonical URL."""
    format: Format
    """Storage format."""


WRITABLE: Mapping[str | None, Format | None] = {
    None: None,
    "precomputed": "precomputed",
    "zarr": "zarr3",
    "zarr2": "zarr2",
    "zarr3": "zarr3",
}
"""Formats that a target's URL may name, and what is written then."""


def plan_job(job: Job) -> Plan:
    """Find out everything that can be known before spending; nothing is written.

    Raises:
        UsageError: the job cannot be done; the message says what would work.
        StorageError: the source cannot be read.
    """
    place = target_place(job)
    if job.overwrite:
        plan = resolve(job, place)
        check_creatable(plan.target)
        return plan
    store = open_store(place.url, Access.for_job(job))
    begun = read_job(store)
    plan = resolve(job, place, begun)
    check_creatable(plan.target)
    holds_job(store, plan)
    return plan


def resolve(job: Job, place: TargetPlace, begun: Plan | None = None) -> Plan:
    """Open the source, describe the model, measure the intensity, and plan.

    Args:
        job: what to do.
        place: where it is written.
        begun: by what the target was begun: its block is kept, though the memory that is free now
            may suggest another, and so are its encoding, whose default may have been another, and
            what ``auto`` found then, window and sections.

    Raises:
        UsageError: the job cannot be done.
        StorageError: the source cannot be read.
    """
    access = Access.for_job(job)
    source = open_volume(job.source, access)
    check_apart(place, source.spec)
    window = _window(job, source, begun)
    background = job.missing == "background"
    grey = windowed(source, window, job.dtype or GREY, background=background)
    check_supported(grey.spec)
    described = examine(job.model, trust=job.trust)
    model = described.spec.on_plane(job.plane or described.spec.plane)
    mask = open_volume(job.mask, access.beside()).spec if job.mask else None
    table = _sections(job, rounded(grey), begun)
    full = Intensity.full_range(grey.spec.dtype)
    # Planned before the source is measured, so that mistakes cost no reading.
    found = Inputs(source.spec, model, full, place.url, place.format, mask)
    block = None if begun is None else begun.stages[0].block
    workers, device = _workers(job, network=model.arch not in INTERPOLATIONS)
    found = replace(found, workers=workers, device=device, costs=described.costs, block=block)
    found = replace(found, window=window, sections=table)
    if begun is not None and begun.target.format == place.format:
        found = replace(found, encoding=begun.target.encoding)
    plan = make_plan(job, found)
    _warn_beyond_training(plan.model)
    intensity = measure_intensity(mended(grey, plan.mending), model.normalisation)
    return replace(plan, intensity=intensity, examined_by=described.examined_by)


def _window(job: Job, source: Volume, begun: Plan | None) -> Window | None:
    """Return the window through which the source is read; None where there is none."""
    if job.window == AUTO and begun is not None and begun.window is not None:
        return begun.window
    return find_window(job.window, source)


def _sections(job: Job, source: Volume, begun: Plan | None) -> SectionTable | None:
    """Return which sections of the source are not used as they are stored; None where none is."""
    if job.sections is None:
        return None
    if job.sections == AUTO and begun is not None and begun.sections is not None:
        return begun.sections
    return find_table(job.sections, source)


def _workers(job: Job, *, network: bool) -> tuple[Workers, FoundDevice | None]:
    """Return what workers will have, as far as that can be known here.

    Their memory is as asked for, or what is free here over those that share it. Workers elsewhere
    are asked when they are there, see ``cluster.backend``; till then they are taken for machines
    like this.

    Args:
        job: what to do.
        network: whether a network computes; else torch is not asked for anything.

    Returns:
        What they have, and where they compute; None where only they can tell.
    """
    here = job.scheduler is None and job.cluster in ("local", "cuda")
    asked = network and job.device != "cpu" and (here or job.device == "cuda")
    gpus = seen_gpus().gpus if asked else ()
    count = job.workers if here else None
    if here and job.cluster == "cuda":
        # One a GPU; more are refused later. Interpolations do not ask how many there are: what
        # their workers have is asked of them.
        count = max(1, min(count or len(gpus), len(gpus)))
    memory = job.memory
    if memory is None:
        memory = (usable_memory_bytes() or FALLBACK_MEMORY_BYTES) // (count or 1)
    device: FoundDevice | None = None if job.device == "auto" else job.device
    if network and device is None and here:
        device = "cuda" if gpus or job.cluster == "cuda" else "cpu"
    if device != "cuda" or not network:
        return Workers(memory, None, count), device
    if not gpus:
        least = int(job.device_memory * FALLBACK_DEVICE_BYTES)
    else:
        seats = seats_here(count or 1, (gpu.uuid for gpu in gpus)).seats.values()
        room = ((seat, gpus[seat.index].total_bytes, None) for seat in seats)
        least, _ = least_device_bytes(room, job.device_memory)
    return Workers(memory, least, count), device


def _warn_beyond_training(model: ModelSpec) -> None:
    """Say that a network is asked for what it was not trained for."""
    factor = model.resolved_factor[0]
    if (
        model.trained_factors is not None
        and not model.trained_factors[0] <= factor <= model.trained_factors[1]
    ):
        log.warning(
            "model %s was trained for factors %s to %s, and is asked for %s; look at the result "
            "closely",
            model.name,
            *model.trained_factors,
            factor,
        )


def target_place(job: Job) -> TargetPlace:
    """Return where and as what a job writes.

    Raises:
        UsageError: the URL and ``--format`` disagree, or the format cannot be written.
    """
    target, source = parse_url(job.target), parse_url(job.source)
    if target.url == source.url:
        raise UsageError(f"source and target are both {target.url}; choose another target")
    if source.url.startswith(f"{target.url}/"):
        raise UsageError(
            f"source {source.url} lies within the target {target.url}; choose another target"
        )
    if target.format not in WRITABLE:
        raise UsageError(
            f"{target.format} cannot be written; --format can be precomputed or ome-zarr"
        )
    by_url = WRITABLE[target.format]
    if by_url is None and job.format is None and target.url.endswith(".zarr"):
        by_url = "zarr3"
    both = job.format is not None and by_url is not None
    if both and (job.format == "precomputed") != (by_url == "precomputed"):
        raise UsageError(
            f"target {job.target} names {by_url} but --format is {job.format}; drop one of them"
        )
    by_job: Format = "zarr3" if job.format == "ome-zarr" else "precomputed"
    return TargetPlace(target.url, by_url or by_job)


def check_apart(place: TargetPlace, source: VolumeSpec) -> None:
    """Check that a target does not lie among the sections, or within the file, that is read.

    Raises:
        UsageError: it does.
    """
    target, read = parse_url(place.url), parse_url(source.url)
    if source.format not in FILE_FORMATS or target.scheme != "file":
        return
    if Path(target.path).resolve().is_relative_to(Path(read.path).resolve()):
        raise UsageError(
            f"target {place.url} lies within the source {source.url}; choose a target outside"
        )


def holds_job(store: Store, plan: Plan) -> bool:
    """Tell whether the target already holds this very job.

    Raises:
        TargetConflictError: it holds another job, or something else.
    """
    old = read_job(store)
    if old is not None:
        check_same_job(store, old, plan)
        return True
    found = store.get_many(MARKERS)
    if found:
        raise TargetConflictError(
            f"{store.url} already holds {', '.join(sorted(found))}, which isochunk did not write; "
            "choose another target, or --overwrite to delete what is there first"
        )
    return False


def prepare_target(plan: Plan) -> Ledger:
    """Create the target, or take up where an earlier run of the same job left it.

    Raises:
        TargetConflictError: it holds another job, or something else.
    """
    access = Access.for_job(plan.job)
    store = open_store(plan.target.url, access)
    same = False
    try:
        same = holds_job(store, plan)
    except TargetConflictError:
        if not plan.job.overwrite:
            raise
        log.warning("deleting what is stored at %s", store.url)
        store.delete(store.keys())
    if not same:
        # The job is written first: whatever happens next, the same command can take it up.
        write_job(store, plan, version("isochunk"))
    create_volume(plan.target, access, attributes=provenance(plan))
    return Ledger(store, plan)


def provenance(plan: Plan) -> dict[str, Any]:
    """Return what is written beside the output of where it comes from."""
    source = plan.source
    chosen = {"channel": source.channel, "time": source.time}
    return {
        "software": f"isochunk {version('isochunk')}",
        "source": source.url,
        **{name: number for name, number in chosen.items() if number is not None},
        "region": str(plan.region),
        "factor": [str(r) for r in plan.model.resolved_factor],
        "model": plan.model.name,
        "model_sha256": plan.model.sha256,
        "model_trained_on": plan.model.trained_on,
        "model_licence": plan.model.licence,
        "intensity_offset": plan.intensity.offset,
        "intensity_scale": plan.intensity.scale,
        "precision": plan.precision,
        **({} if plan.window is None else {"window": plan.window.summary()}),
        **({} if plan.sections is None else {"sections": plan.sections_summary()}),
        **({"consistent": True} if plan.job.consistent else {}),
    }
