"""Jobs from plan to proof, each call a few lines: the rooms below do the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from isochunk.cluster.spec import WORDS
from isochunk.core.job import Job, RunOptions, change
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
from isochunk.host.memory import usable_memory_bytes
from isochunk.models.interface import Predictor
from isochunk.models.load import Runtime, describe, load
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access
from isochunk.viewing.neuroglancer import public_link

if TYPE_CHECKING:
    import dask.array
    from distributed import Client

Watch: TypeAlias = Callable[[Report], None]

TIMEOUTS = Timeouts()


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


def report(
    target: str,
    endpoint_url: str | None = None,
    requester_pays: str | None = None,
    out: str | Path | None = None,
) -> str:
    """Write the page of a target's last run anew, ``.isochunk/report.html``; returns its URL.

    Args:
        target: URL of a target.
        endpoint_url: S3-compatible server; default: ``AWS_ENDPOINT_URL``.
        requester_pays: Google Cloud project that is billed where the bucket's requester pays.
        out: file to write instead, to look at the page of a target in a bucket.

    Raises:
        NotFoundError: isochunk wrote nothing there, or no run has ended.
        StorageError: source or target cannot be read, or the page cannot be written.
    """
    from isochunk.pages.run_page import write_page

    found = records.open_written_target(target, endpoint_url, requester_pays)
    return write_page(found.plan, None if out is None else Path(out))


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
