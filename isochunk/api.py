"""What users call: plan, run, audit, repair, open and what goes with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias

from isochunk.cluster.spec import WORDS, wait_s
from isochunk.core.geometry import Box, triple
from isochunk.core.job import Job
from isochunk.core.spec import Format, Intensity, ModelSpec, VolumeSpec
from isochunk.engine.audit import AuditReport, audit_target
from isochunk.engine.calibrate import measure, trial
from isochunk.engine.cost import Calibration
from isochunk.engine.events import EventLog
from isochunk.engine.ledger import Ledger, check_same_job, read_job, write_job
from isochunk.engine.local import LocalBackend, WorkerSettings, open_pipeline
from isochunk.engine.loop import Backend, Recorder, execute
from isochunk.engine.report import Report
from isochunk.engine.target import open_result
from isochunk.engine.timeouts import Patience
from isochunk.errors import TargetConflictError, UsageError
from isochunk.models.interface import Predictor
from isochunk.models.load import Runtime, describe, load
from isochunk.planning.intensity import measure_intensity
from isochunk.planning.plan import Inputs, Plan, make_plan
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
from isochunk.storage.url import parse_url
from isochunk.storage.volume import Volume
from isochunk.viewing.neuroglancer import (
    PUBLIC_NEUROGLANCER,
    Layer,
    contrast_range,
    neuroglancer_state,
    neuroglancer_url,
)
from isochunk.viewing.preview import preview_job, serve_preview
from isochunk.viewing.server import LOCAL, RunningViewer, view

if TYPE_CHECKING:
    import dask.array
    from distributed import Client

log = logging.getLogger(__name__)

Watch: TypeAlias = Callable[[Report], None]

PATIENCE = Patience()

CONTRAST_REACH = (32, 128, 128)
"""How far around the middle the data sets the contrast, in voxels."""


def open_any(url: str, endpoint_url: str | None = None) -> Volume:
    """Open a volume for reading; ``isochunk.open``.

    Raises:
        UsageError: the URL cannot be read as a volume.
        StorageError: storage failed.
    """
    return open_volume(url, Access(endpoint_url=endpoint_url))


def access_for(job: Job) -> Access:
    """Return how a job reaches storage."""
    return Access(
        endpoint_url=job.endpoint_url,
        timeout_s=job.timeout_s,
        requests=job.requests,
        slow_start=job.slow_start,
        spacing=job.source_spacing,
        missing=job.missing,
    )


def plan(job: Job) -> Plan:
    """Find out everything that can be known before spending; nothing is written.

    Raises:
        UsageError: the job cannot be done; the message says what would work.
        StorageError: the source cannot be read.
    """
    made, _ = resolve(job, *target_place(job))
    check_creatable(made.target)
    if not job.overwrite:
        check_target(open_store(made.target.url, access_for(job)), made)
    return made


def resolve(job: Job, target_url: str, target_format: Format) -> tuple[Plan, Volume]:
    """Open the source, describe the model and plan; return the plan and the open source."""
    if job.cluster not in WORDS:
        from isochunk.cluster.start import check_cluster

        check_cluster(job)
    access = access_for(job)
    source = open_volume(job.source, access)
    check_supported(source.spec)
    model = describe(job.model, trust=job.trust)
    model = model.on_plane(job.plane or model.plane)
    mask = open_volume(job.mask, access).spec if job.mask else None
    full = Intensity.full_range(source.spec.dtype)
    # Planned before the source is measured, so that mistakes cost no reading.
    made = make_plan(job, Inputs(source.spec, model, full, target_url, target_format, mask))
    _warn_beyond_training(made.model)
    return replace(made, intensity=measure_intensity(source, model.normalisation)), source


def _warn_beyond_training(model: ModelSpec) -> None:
    """Say that a network is asked for what it was not trained for."""
    factor = model.resolved_factor[0]
    if model.taught is not None and not model.taught[0] <= factor <= model.taught[1]:
        log.warning(
            "model %s was trained for factors %s to %s, and is asked for %s; look at the result "
            "closely",
            model.name,
            *model.taught,
            factor,
        )


def target_place(job: Job) -> tuple[str, Format]:
    """Return the canonical URL and format of a job's target.

    Raises:
        UsageError: the URL and ``--format`` disagree, or the format cannot be written.
    """
    location, source = parse_url(job.target), parse_url(job.source)
    if location.url == source.url:
        raise UsageError(f"source and target are both {location.url}; choose another target")
    if source.url.startswith(f"{location.url}/"):
        raise UsageError(
            f"source {source.url} lies within the target {location.url}; choose another target"
        )
    named: dict[str | None, Format | None] = {
        None: None,
        "precomputed": "precomputed",
        "zarr": "zarr3",
        "zarr2": "zarr2",
        "zarr3": "zarr3",
    }
    if location.format not in named:
        raise UsageError(
            f"{location.format} cannot be written; --format can be precomputed or ome-zarr"
        )
    by_url = named[location.format]
    if by_url is None and job.format is None and location.url.endswith(".zarr"):
        by_url = "zarr3"
    both = job.format is not None and by_url is not None
    if both and (job.format == "precomputed") != (by_url == "precomputed"):
        raise UsageError(
            f"target {job.target} names {by_url} but --format is {job.format}; drop one of them"
        )
    by_job: Format = "zarr3" if job.format == "ome-zarr" else "precomputed"
    return location.url, by_url or by_job


def check_target(store: Store, made: Plan) -> bool:
    """Tell whether the target already holds this very job.

    Raises:
        TargetConflictError: it holds another job, or something else.
    """
    old = read_job(store)
    if old is not None:
        check_same_job(store, old, made)
        return True
    found = store.get_many(MARKERS)
    if found:
        raise TargetConflictError(
            f"{store.url} already holds {', '.join(sorted(found))}, which isochunk did not write; "
            "choose another target, or --overwrite to delete what is there first"
        )
    return False


def run(
    plan: Plan,
    client: Client | None = None,
    watch: Watch | None = None,
    patience: Patience = PATIENCE,
) -> Report:
    """Carry out a plan; what is already recorded as done is not done again.

    Args:
        plan: from :func:`plan`.
        client: a Dask client; without one the job's ``scheduler``, ``cluster`` and ``workers``
            decide, and a single worker runs in this process.
        watch: called often with the report so far.
        patience: how long to wait for what is slow, silent or gone.

    Returns:
        The report; ``report.complete`` tells whether every block is done.

    Raises:
        TargetConflictError: the target holds something else.
        ClusterError: the cluster went away; what is done is recorded.
        StorageError: what is done cannot be recorded any more.
    """
    # Opened first: a cluster or a model that cannot be had leaves nothing at the target.
    with backend_for(plan, client, patience) as backend:
        ledger = prepare_target(plan)
        recorder = Recorder(ledger, EventLog(ledger.store), patience)
        report = execute(plan, recorder, backend, watch or (lambda _: None))
    return replace(report, neuroglancer_url=link(plan))


def calibrate(plan: Plan, blocks: int, client: Client | None = None) -> Calibration:
    """Run blocks, spread over the volume, where the job would run; see :func:`calibrating.measure`.

    They are read and computed as in a run, and written to the memory of the workers, which keep the
    last few. :func:`isochunk.engine.cost.estimate` turns the result into what the whole job costs.

    Raises:
        UsageError: ``blocks`` is less than 1.
        IsochunkError: a block failed.
    """
    tried = trial(plan)
    with backend_for(tried, client) as backend:
        return measure(tried, backend, blocks)


def prepare_target(made: Plan) -> Ledger:
    """Create the target, or take up where an earlier run of the same job left it."""
    access = access_for(made.job)
    store = open_store(made.target.url, access)
    same = False
    try:
        same = check_target(store, made)
    except TargetConflictError:
        if not made.job.overwrite:
            raise
        log.warning("deleting what is stored at %s", store.url)
        store.delete(store.keys())
    if not same:
        # The job is written first: whatever happens next, the same command can take it up.
        write_job(store, made, version("isochunk"))
    create_volume(made.target, access, attributes=provenance(made))
    return Ledger(store, made)


def worker_settings(job: Job) -> WorkerSettings:
    """Return what a job says of the processes that run it."""
    return WorkerSettings(
        model=job.model,
        device=job.device,
        device_memory=job.device_memory,
        access=access_for(job),
        trust=job.trust,
        allow_inexact=job.allow_inexact,
    )


@contextmanager
def backend_for(
    made: Plan, client: Client | None, patience: Patience = PATIENCE
) -> Iterator[Backend]:
    """Open what a job runs on."""
    job, settings = made.job, worker_settings(made.job)
    few = (job.workers or 1) == 1
    if client is None and job.scheduler is None and job.cluster == "local" and few:
        with open_pipeline(made, settings) as pipeline:
            yield LocalBackend(pipeline)
        return
    from isochunk.cluster.backend import DaskBackend
    from isochunk.cluster.start import connect

    patience = replace(patience, workers_s=wait_s(job) or patience.workers_s)
    with (
        connect(job, client) as connected,
        DaskBackend(connected, made, settings, patience) as backend,
    ):
        yield backend


def provenance(made: Plan) -> dict[str, Any]:
    """Return what is written beside the output of where it comes from."""
    return {
        "software": f"isochunk {version('isochunk')}",
        "source": made.source.url,
        "region": str(made.region),
        "factor": [str(r) for r in made.model.resolved_factor],
        "model": made.model.name,
        "model_sha256": made.model.sha256,
        "model_trained_on": made.model.trained_on,
        "model_licence": made.model.licence,
        "intensity_offset": made.intensity.offset,
        "intensity_scale": made.intensity.scale,
        "precision": made.precision,
    }


def link(made: Plan) -> str:
    """Return a link to the public neuroglancer; empty where the target is files."""
    access = access_for(made.job)
    target, source = (as_seen(spec, access) for spec in (made.target, made.source))
    if target.url.startswith(LOCAL):
        return ""
    shown = [Layer("result", target)]
    if not source.url.startswith(LOCAL):
        shown.append(Layer("source", source))
    return neuroglancer_url(PUBLIC_NEUROGLANCER, neuroglancer_state(shown))


def as_seen(spec: VolumeSpec, access: Access) -> VolumeSpec:
    """Name the S3-compatible server in a volume's URL, since a browser knows no other way."""
    location = parse_url(spec.url)
    if location.scheme != "s3":
        return spec
    return replace(spec, url=replace(location, endpoint_url=access.endpoint(location)).url)


def view_result(url: str, source: str | None, endpoint_url: str | None = None) -> RunningViewer:
    """Show a volume, beside its source if that is given; see :func:`isochunk.viewing.server.view`.

    Contrast is set from the middle of the data.
    """
    access = Access(endpoint_url=endpoint_url)
    result = open_volume(url, access)
    beside = as_seen(open_volume(source, access).spec, access) if source else None
    whole = result.spec.box
    middle = triple((a + b) // 2 for a, b in zip(whole.lo, whole.hi, strict=True))
    sample = result.read(Box(middle, middle).grow(CONTRAST_REACH) & whole)
    return view(as_seen(result.spec, access), beside, contrast_range(sample))


@contextmanager
def preview(job: Job, port: int = 0) -> Iterator[RunningViewer]:
    """Serve a job's predictions on demand, beside the source, in a local neuroglancer."""
    made, source = resolve(preview_job(job), "memory://preview", "precomputed")
    with serve_preview(made, source, worker_settings(job), port) as served:
        shown = replace(served.plan.target, url=served.url)
        level = shown.levels[-1]
        with view(shown, made.source) as viewer:
            log.info("previewing %s voxels at %s nm", level.box, level.spacing)
            yield viewer


def load_model(name_or_path: str, *, trust: bool = False) -> Predictor:
    """Load a model that has a factor of its own, for uint8 in [0, 255]; ``isochunk.load_model``.

    Interpolations take any factor and need a volume to fix it: use :func:`plan`.

    Raises:
        ModelError: it cannot be found, trusted or loaded.
    """
    spec = describe(name_or_path, trust=trust)
    return load(name_or_path, Runtime(factor=spec.resolved_factor, trust=trust))


def isotropic(source: str, model: str, job: Job | None = None) -> dask.array.Array:
    """Return the isotropic volume as a lazy array; slices are computed when asked for.

    Args:
        source: URL of the anisotropic volume.
        model: as for :class:`Job`.
        job: for further options; its target is not used.
    """
    from isochunk.cluster.lazy import lazy_array

    wanted = job or Job(source=source, target="memory", model=model, shard="none", levels=1)
    made, _ = resolve(wanted, "memory://array", "zarr3")
    return lazy_array(made, worker_settings(wanted))


def audit(
    target: str, endpoint_url: str | None = None, watch: Callable[[int], None] = lambda _: None
) -> AuditReport:
    """Read every object of a target again and compare it with the record.

    Raises:
        NotFoundError: isochunk wrote nothing there.
    """
    return audit_target(open_result(target, endpoint_url).auditor(), watch)


def repair(
    target: str,
    changes: dict[str, Any] | None = None,
    client: Client | None = None,
    watch: Watch | None = None,
) -> tuple[AuditReport, Report]:
    """Audit a target and compute exactly the blocks again that have a hole.

    Args:
        target: URL of a target.
        changes: fields of :class:`Job` that say how to run: model path, device, workers, ...
        client: as for :func:`run`.
        watch: as for :func:`run`.

    Returns:
        What was found, and the report of the blocks computed.
    """
    changes = changes or {}
    found = open_result(target, changes.get("endpoint_url"))
    audited = audit_target(found.auditor())
    made = replace(found.plan, job=replace(found.plan.job, **changes))
    for hole in audited.holes:
        found.ledger.forget(hole.stage, hole.block)
    found.ledger.flush()  # whatever happens now, these blocks are not done
    # A block that the mask leaves out writes nothing, so it would not replace what is there.
    found.store.delete(hole.object for hole in audited.holes if hole.kind == "corrupt")
    return audited, run(made, client, watch)
