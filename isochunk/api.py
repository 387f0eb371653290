"""What users call, each a few lines: the rooms below do the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from isochunk.cluster.spec import WORDS
from isochunk.core.geometry import Box, Spacing
from isochunk.core.job import Job, RunOptions, change
from isochunk.core.text_forms import read_box, read_spacing, read_window
from isochunk.core.window import GREY, Window
from isochunk.engine import calibrate as calibration
from isochunk.engine import target as records
from isochunk.engine.audit import AuditReport, AuditWatch, LocalAudit, audit_target
from isochunk.engine.auditor import AuditPool, open_auditor, readers
from isochunk.engine.cost import Calibration, Estimate, estimate, read_prices
from isochunk.engine.events import EventLog
from isochunk.engine.local import LocalBackend
from isochunk.engine.loop import Backend, Recorder, execute
from isochunk.engine.opened import open_job
from isochunk.engine.pipeline import Pipeline
from isochunk.engine.prepare import TargetPlace, plan_job, prepare_target, resolve
from isochunk.engine.report import Report
from isochunk.engine.timeouts import Timeouts
from isochunk.engine.windowed import Opening, find_window, rounded, windowed
from isochunk.errors import UsageError
from isochunk.host.memory import usable_memory_bytes
from isochunk.models.interface import Predictor
from isochunk.models.load import Runtime, describe, load
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access
from isochunk.storage.open import open_volume
from isochunk.storage.volume import Volume
from isochunk.viewing.neuroglancer import public_link

if TYPE_CHECKING:
    import dask.array
    from distributed import Client

    from isochunk.engine.inspection import Inspection

Watch: TypeAlias = Callable[[Report], None]

TIMEOUTS = Timeouts()


def open(
    url: str,
    endpoint_url: str | None = None,
    source_spacing: Spacing | str | None = None,
    channel: int | None = None,
    time: int | None = None,
    requester_pays: str | None = None,
) -> Volume:
    """Open a volume for reading.

    Args:
        url: a path or URL; the format is detected where it is not named.
        endpoint_url: S3-compatible server; default: ``AWS_ENDPOINT_URL``.
        source_spacing: voxel size z, y, x in nm, for volumes that do not say.
        channel: which of several, counting from 0.
        time: which of several time points, counting from 0.
        requester_pays: Google Cloud project that is billed where the bucket's requester pays.

    Raises:
        UsageError: the URL cannot be read as a volume.
        StorageError: storage failed.
    """
    size = None if source_spacing is None else read_spacing(source_spacing, "source_spacing")
    access = Access(
        endpoint_url=endpoint_url,
        requester_pays=requester_pays,
        spacing=size,
        channel=channel,
        time=time,
    )
    return open_volume(url, access)


def inspect(  # noqa: PLR0913 - what to look at, how it is reached, and where
    source: str | Volume,
    box: Box | str | None = None,
    level: int | None = None,
    endpoint_url: str | None = None,
    source_spacing: Spacing | str | None = None,
    window: Window | str | tuple[float, float] | None = None,
    *,
    client: Client | None = None,
) -> Inspection:
    """Find sections that are lost, uneven or displaced; each is read coarsely, nothing is written.

    Args:
        source: a path or URL, or a volume that :func:`open` gave.
        box: source voxels to look at; None for all.
        level: level of the source to read; None for the finest whose sections are small.
        endpoint_url: as for :func:`open`.
        source_spacing: as for :func:`open`.
        window: stored values that become black and white, or ``auto``; None for uint8 and uint16.
        client: a Dask client, on whose workers sections are read; None for this process.

    Returns:
        What was found; ``inspection.table`` is the :class:`~isochunk.SectionTable`.

    Raises:
        UsageError: the source, the box or the level cannot be read.
        StorageError: storage failed.
        ClusterError: the cluster went away.
    """
    where = None if box is None else read_box(box, "box")
    size = None if source_spacing is None else read_spacing(source_spacing, "source_spacing")
    wanted = None if window is None else read_window(window, "window")
    if isinstance(source, str):
        opening = Opening(source, Access(endpoint_url=endpoint_url, spacing=size), wanted)
        volume, opening = opening.fixed()
        return inspect_on(volume, opening, client, where, level)
    if client is not None:
        raise UsageError(
            f"workers open a volume by its URL, and got {source.spec.url} open already; give "
            "inspect the URL, or leave client out"
        )
    from isochunk.engine.inspection import inspect_volume

    grey = windowed(source, find_window(wanted, source), GREY)
    return inspect_volume(rounded(grey), where, level)


def inspect_on(
    volume: Volume,
    opening: Opening,
    client: Client | None,
    box: Box | None = None,
    level: int | None = None,
) -> Inspection:
    """Inspect a volume on the workers of a client, or in this process where there is none.

    Args:
        volume: what is inspected.
        opening: how workers open it.
        client: a Dask client.
        box: as for :func:`inspect`.
        level: as for :func:`inspect`.
    """
    # What inspects a volume brings scipy, which takes longer to load than all the rest.
    from isochunk.engine.inspection import inspect_volume

    if client is None:
        return inspect_volume(volume, box, level)
    from isochunk.cluster.inspection import DaskMeasure

    wait_s = getattr(client, "wait_s", None) or TIMEOUTS.no_workers_s
    timeouts = replace(TIMEOUTS, no_workers_s=wait_s)
    return inspect_volume(volume, box, level, DaskMeasure(client, volume.spec, opening, timeouts))


def plan(job: Job) -> Plan:
    """Find out everything that can be known before spending; nothing is written.

    Raises:
        UsageError: the job cannot be done; the message says what would work.
        StorageError: the source cannot be read.
    """
    if job.cluster not in WORDS:
        from isochunk.cluster.start import check_cluster

        check_cluster(job)
    return plan_job(job)


def run(
    plan: Plan,
    client: Client | None = None,
    watch: Watch | None = None,
    timeouts: Timeouts = TIMEOUTS,
) -> Report:
    """Carry out a plan; what is already recorded as done is not done again.

    Args:
        plan: from :func:`plan`.
        client: a Dask client; without one the job's ``scheduler``, ``cluster`` and ``workers``
            decide, and a single worker runs in this process.
        watch: called often with the report so far.
        timeouts: how long to wait for what is slow, silent or gone.

    Returns:
        The report; ``report.complete`` tells whether every block is done.

    Raises:
        TargetConflictError: the target holds something else.
        ClusterError: the cluster went away; what is done is recorded.
        StorageError: what is done cannot be recorded any more.
    """
    begun = time.monotonic()
    # Opened first: a cluster or a model that cannot be had leaves nothing at the target.
    with open_backend(plan, client, timeouts) as backend:
        ledger = prepare_target(plan)
        recorder = Recorder(ledger, EventLog(ledger.store), timeouts)
        report = execute(plan, recorder, backend, watch or (lambda _: None), begun)
    report = replace(report, neuroglancer_url=public_link(plan, Access.for_job(plan.job)))
    if report.done > report.resumed:  # else the page of the run that did it stays
        from isochunk.pages.run_page import keep_page

        keep_page(plan, report.summary())
    return report


@contextmanager
def open_backend(
    plan: Plan, client: Client | None, timeouts: Timeouts = TIMEOUTS
) -> Iterator[Backend]:
    """Open a job where it runs: in this process, or on the workers of a Dask cluster."""
    if client is None and runs_here(plan.job):
        with Pipeline(open_job(plan)) as pipeline:
            yield LocalBackend(pipeline)
        return
    from isochunk.cluster.backend import dask_backend

    with dask_backend(plan, client, timeouts) as backend:
        yield backend


def runs_here(options: RunOptions) -> bool:
    """Tell whether a job asks for no more than this process."""
    alone = options.scheduler is None and options.cluster == "local"
    return alone and (options.workers or 1) == 1


@contextmanager
def open_cluster(options: RunOptions, client: Client | None) -> Iterator[Client | None]:
    """Give a client of the cluster that a job asks for; None where that is this process."""
    if client is None and runs_here(options):
        yield None
        return
    from isochunk.cluster.start import connected

    with connected(options, client) as found:
        yield found


def start_cluster(
    cluster: str = "local", workers: int | None = None
) -> AbstractContextManager[Client]:
    """Start a Dask cluster for several runs, keep its workers at their number, and close it.

    Args:
        cluster: ``local``, ``cuda``, or a TOML file that describes a cluster.
        workers: worker processes, whatever the file says.

    Returns:
        A context manager that gives a client, for :func:`run`.

    Raises:
        UsageError: the file cannot be read, or the cluster cannot be started.
    """
    from isochunk.cluster.start import start_cluster as start

    return start(cluster, workers)


def calibrate(plan: Plan, blocks: int, client: Client | None = None) -> Calibration:
    """Run blocks, spread over the volume, where the job would run.

    They are read and computed as in a run, and written to the memory of the workers, which keep the
    last few. :func:`estimate_cost` turns the result into what the whole job costs.

    Raises:
        UsageError: ``blocks`` is less than 1.
        IsochunkError: a block failed.
    """
    trial = calibration.trial(plan)
    with open_backend(trial, client) as backend:
        return calibration.measure(trial, backend, blocks)


def estimate_cost(plan: Plan, measured: Calibration, prices: str | None = None) -> Estimate:
    """Estimate what a whole job takes and costs.

    Args:
        plan: the job.
        measured: from :func:`calibrate`.
        prices: a TOML file; None for ``isochunk/engine/prices.toml``, whose prices are examples.

    Raises:
        UsageError: the prices cannot be read.
    """
    return estimate(plan, measured, read_prices(prices))


def status(
    target: str, endpoint_url: str | None = None, requester_pays: str | None = None
) -> dict[str, Any]:
    """Return what the records say of a target, without reading voxels.

    Raises:
        NotFoundError: isochunk wrote nothing there.
    """
    return records.status(target, endpoint_url, requester_pays)


def report(target: str, endpoint_url: str | None = None, requester_pays: str | None = None) -> str:
    """Write the page of a target's last run anew, ``.isochunk/report.html``; returns its URL.

    Raises:
        NotFoundError: isochunk wrote nothing there, or no run has ended.
        StorageError: source or target cannot be read, or the page cannot be written.
    """
    from isochunk.pages.run_page import write_page

    return write_page(records.open_written_target(target, endpoint_url, requester_pays).plan)


def audit(
    target: str,
    endpoint_url: str | None = None,
    watch: AuditWatch = lambda _: None,
    *,
    client: Client | None = None,
    changes: Mapping[str, Any] | None = None,
    timeouts: Timeouts = TIMEOUTS,
) -> AuditReport:
    """Read every object of a target again and compare it with the record.

    Nothing is written, at the target or elsewhere.

    Args:
        target: URL of a target.
        endpoint_url: S3-compatible server; default: ``AWS_ENDPOINT_URL``.
        watch: called often with how far it is.
        client: a Dask client; without one ``scheduler``, ``cluster`` and ``workers`` of the changes
            decide, and where they are not given, threads of this process read.
        changes: fields of :class:`~isochunk.core.job.RunOptions` that say where and how to read.
        timeouts: how long to wait for workers that are slow, silent or gone.

    Returns:
        What was found; ``report.complete`` tells whether every object is as it should be.

    Raises:
        NotFoundError: isochunk wrote nothing there.
        UsageError: a change is none, or the cluster cannot be had.
        ClusterError: the cluster went away.
    """
    changes = changes or {}
    found = records.open_written_target(
        target, endpoint_url or changes.get("endpoint_url"), changes.get("requester_pays")
    )
    job = change(found.plan.job, changes)
    access = reading(found.store.access, job, changes)
    with open_cluster(job, client) as cluster_client:
        return audit_on(found, access, cluster_client, watch, timeouts)


def reading(access: Access, job: Job, changes: Mapping[str, Any]) -> Access:
    """Return how to read a target: as changed now, not as the job that wrote it was told."""
    names = {"timeout_s", "requests", "slow_start"} & changes.keys()
    return replace(access, **{name: getattr(job, name) for name in names})


def audit_on(
    found: records.WrittenTarget,
    access: Access,
    client: Client | None,
    watch: AuditWatch,
    timeouts: Timeouts,
) -> AuditReport:
    """Audit on the workers of a client, or in this process where there is none."""
    plan, ledger = found.plan, found.ledger
    if client is None:
        auditor = open_auditor(plan, found.store.url, access)
        with AuditPool(auditor, readers(plan, usable_memory_bytes())) as pool:
            return audit_target(plan, ledger, LocalAudit(pool, ledger), watch, timeouts)
    from isochunk.cluster.audit import dask_audit

    with dask_audit(client, found, access, timeouts) as backend:
        return audit_target(plan, ledger, backend, watch, timeouts)


def repair(
    target: str,
    changes: dict[str, Any] | None = None,
    client: Client | None = None,
    watch: Watch | None = None,
    watch_audit: AuditWatch = lambda _: None,
    timeouts: Timeouts = TIMEOUTS,
) -> tuple[AuditReport, Report]:
    """Audit a target and compute exactly the blocks again that have a hole.

    Both happen in the same place, and a cluster is started once for both.

    Args:
        target: URL of a target.
        changes: fields of :class:`~isochunk.core.job.RunOptions`: model path, device, workers, ...
        client: as for :func:`run`.
        watch: as for :func:`run`.
        watch_audit: as ``watch`` of :func:`audit`.
        timeouts: as for :func:`run`.

    Returns:
        What was found, and the report of the blocks computed.

    Raises:
        NotFoundError: isochunk wrote nothing there.
        UsageError: a change is none that leaves the output as it is.
        ClusterError: the cluster went away; what is done is recorded.
    """
    changes = changes or {}
    found = records.open_written_target(
        target, changes.get("endpoint_url"), changes.get("requester_pays")
    )
    made = replace(found.plan, job=change(found.plan.job, changes))
    access = reading(found.store.access, made.job, changes)
    with open_cluster(made.job, client) as cluster_client:
        audited = audit_on(found, access, cluster_client, watch_audit, timeouts)
        found.forget(audited)
        return audited, run(made, cluster_client, watch, timeouts)


def load_model(name_or_path: str, *, trust: bool = False) -> Predictor:
    """Load a model that has a factor of its own, for uint8 in [0, 255].

    Interpolations take any factor and need a volume to fix it: use :func:`plan`.

    Raises:
        ModelError: it cannot be found, trusted or loaded.
    """
    spec = describe(name_or_path, trust=trust)
    return load(name_or_path, Runtime(factor=spec.resolved_factor, trust=trust))


def isotropic(source: str, model: str, **options: Any) -> dask.array.Array:
    """Return the isotropic volume as a lazy array; slices are computed when asked for.

    Args:
        source: URL of the anisotropic volume.
        model: as for :class:`~isochunk.Job`.
        options: further fields of :class:`~isochunk.Job`; there is no target.

    Raises:
        UsageError: an option is no field of a job, or the job cannot be done.
    """
    from isochunk.cluster.lazy import lazy_array

    chunks = {"target": "memory", "shard": "none", "levels": 1}
    job = Job.from_mapping({**chunks, **options, "source": source, "model": model})
    return lazy_array(resolve(job, TargetPlace("memory://array", "zarr3")))
