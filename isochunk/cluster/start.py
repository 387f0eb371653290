"""Start a Dask cluster and keep its workers, or connect to one that runs."""

from __future__ import annotations

import copy
import importlib
import inspect
import ipaddress
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import urlsplit

import dask
from distributed import Client, LocalCluster, Nanny, SpecCluster, Worker

from isochunk.cluster.replace import WorkerReplacer, in_a_line, start_workers
from isochunk.cluster.spec import WORDS, ClusterSpec, named_cluster, requested_cluster
from isochunk.core.job import RunOptions
from isochunk.errors import UsageError
from isochunk.host.allocator import ENVIRONMENT

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

CONNECT_S = 20.0
"""How long a scheduler may take to answer."""

SPOT: Mapping[str, Any] = {
    # A task is lost with its worker. With the default, 3, one in 100 tasks fails where a third of
    # the workers go while it waits and runs; with 10 it is one in 10^6. What a block that kills
    # its workers costs is that many restarts.
    "distributed.scheduler.allowed-failures": 10,
    # A worker that loads a network from a shared file system and compiles it may hold its loop for
    # minutes; its blocks get speculative copies elsewhere long before this.
    "distributed.scheduler.worker-ttl": "10 minutes",
    # Sooner, the job of a worker that its nanny is just starting again would be given up: on a
    # busy shared file system Python takes its time.
    "distributed.deploy.lost-worker-timeout": "60s",
}
"""Dask configuration for machines that come and go, where the user's own says nothing else."""

QUEUES = ("slurm", "lsf", "pbs")
"""Kinds of dask-jobqueue, and their names in its configuration."""

START_S = 300
"""How long a worker of a queue may take to start, the job opened: dask-jobqueue's 60 s are too
short for PyTorch and a network on a busy file system, and it would end each worker in turn."""

CLOSE_S = 5.0
"""How long a connection that was interrupted may take to close."""

_ABSENT = object()


class ClusterClient(Client):
    """A client that is closed at once where Ctrl-C interrupts its start.

    Else Python closes it at its very end, and waits a minute for an event loop that is gone.
    """

    def __init__(self, at: Any, timeout: float | str, wait_s: float | None = None) -> None:
        """Connect.

        Args:
            at: an address or a cluster.
            timeout: how long it may take to answer, as dask writes it.
            wait_s: how long a run is to wait while there is no worker; None for the usual time.

        Raises:
            OSError: nothing answers.
        """
        self.wait_s = wait_s
        try:
            super().__init__(at, set_as_default=False, timeout=timeout)  # type: ignore[no-untyped-call]
        except BaseException:
            with suppress(Exception):
                self.close(timeout=CLOSE_S)  # type: ignore[no-untyped-call]
            self.status = "closed"
            raise


@contextmanager
def start_cluster(cluster: str = "local", workers: int | None = None) -> Iterator[Client]:
    """Start a Dask cluster for several runs, keep its workers at their number, and close it.

    ``isochunk.start_cluster``; use it as a context manager that gives a client for ``run``.

    Args:
        cluster: ``local``, ``cuda``, or a TOML file that describes a cluster.
        workers: worker processes, whatever the file says.

    Raises:
        UsageError: the file cannot be read, or the cluster cannot be started.
    """
    with client_of(named_cluster(cluster, workers)) as client:
        yield client


@contextmanager
def connected(options: RunOptions, client: Client | None) -> Iterator[Client]:
    """Give a client of the cluster that a job asks for; what is started here is closed here.

    Raises:
        UsageError: the scheduler does not answer, or the cluster cannot be started.
    """
    with ExitStack() as closing:
        if client is None and options.scheduler is not None:
            client = closing.enter_context(scheduler_client(options.scheduler))
        elif client is None:
            client = closing.enter_context(client_of(requested_cluster(options)))
        warn_if_open(client)
        log.info("Dask dashboard: %s", client.dashboard_link)
        yield client


@contextmanager
def client_of(spec: ClusterSpec) -> Iterator[ClusterClient]:
    """Start a cluster and connect to it; both are closed.

    Raises:
        UsageError: it cannot be started.
    """
    with running_cluster(spec) as cluster:
        usual = dask.config.get("distributed.comm.timeouts.connect")
        with ClusterClient(cluster, usual, spec.wait_s) as client:
            yield client


def scheduler_client(address: str) -> ClusterClient:
    """Connect to a running scheduler; TLS is as dask's own configuration says.

    Raises:
        UsageError: it does not answer.
    """
    try:
        return ClusterClient(address, CONNECT_S)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        tls = address.startswith("tls:")
        advice = (
            "give certificates as docs/security.md says"
            if tls
            else "start one, or give its address as tcp://host:8786, or tls://host:8786 if it "
            "wants TLS"
        )
        raise UsageError(f"no Dask scheduler answers at {address}: {error}; {advice}") from error


def warn_if_open(client: Client) -> None:
    """Warn of a scheduler that hosts other than this may reach, and that asks for no certificate.

    Whoever reaches it runs code as the user on every worker.
    """
    own: str = client.scheduler_info(n_workers=0)["address"]
    for address in (own, str(getattr(client.scheduler, "address", own))):
        host = urlsplit(address).hostname or ""
        if not address.startswith(("tls:", "inproc:", "wss:")) and not is_loopback(host):
            log.warning(
                "the Dask scheduler at %s listens beyond this machine without TLS: whoever "
                "reaches it can run code on the workers; docs/security.md says how to close it",
                address,
            )
            return


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine and reached from nowhere else."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_versions(client: Client) -> None:
    """Refuse workers that do not have the client's version of isochunk.

    Raises:
        UsageError: it names such a worker, and says what it has and what is wanted.
    """
    wanted = version("isochunk")
    found = client.run(version, "isochunk", on_error="return")
    # A worker that cannot be reached is gone; the run does without it.
    other = {
        worker: has
        for worker, has in found.items()
        if has != wanted and not isinstance(has, OSError)
    }
    if not other:
        return
    worker, has = next(iter(other.items()))
    if isinstance(has, PackageNotFoundError):
        got = "has no isochunk"
    elif isinstance(has, Exception):
        got = f"cannot say which isochunk it has ({has})"
    else:
        got = f"has isochunk {has}"
    raise UsageError(
        f"worker {worker} {got}, and the client has {wanted}; install isochunk=={wanted} for all "
        f"workers (so it is with {len(other)} of {len(found)})"
    )


def check_cluster(options: RunOptions) -> None:
    """Refuse a cluster file that could not be started, without starting anything.

    Raises:
        UsageError: a key, a value or an option is not what it should be, or a package is missing.
    """
    if options.cluster not in WORDS:
        checked_class(requested_cluster(options))


def checked_class(spec: ClusterSpec) -> Any:
    """Return the class of a cluster, which takes what the spec says.

    Raises:
        UsageError: it is not installed, or an option or a dask key is not known.
    """
    made = cluster_class(spec)
    check_options(spec, made)
    check_dask(spec)
    return made


@contextmanager
def running_cluster(spec: ClusterSpec) -> Iterator[Any]:
    """Start a cluster, keep its workers at their number, and close it.

    Raises:
        UsageError: its class is not installed, takes no such options, or cannot start.
    """
    check_gpus(spec)
    made = checked_class(spec)
    with configured(spec):
        # Cluster classes print while they start; standard output is for results.
        with redirect_stdout(sys.stderr):
            cluster = make_cluster(spec, made)
        cluster.quiet = True
        try:
            yield cluster
        finally:
            close_cluster(cluster)


def make_cluster(spec: ClusterSpec, made: Any) -> Any:
    """Make the cluster and ask for its workers.

    Raises:
        UsageError: no worker could be started.
    """
    try:
        cluster = made(**arguments(spec))
    except Exception as error:
        raise UsageError(
            f"{spec.path} of {spec.origin} cannot start: {in_a_line(error)}"
        ) from error
    try:
        if isinstance(cluster, SpecCluster):
            start_workers(cluster, spec.workers or 1, spec.origin)
            # A SpecCluster forgets what it lost; others, as Kubernetes' operator, do not.
            cluster.adapt(Adaptive=WorkerReplacer)
        elif spec.workers is not None:
            cluster.scale(spec.workers)
    except BaseException:
        close_cluster(cluster)
        raise
    return cluster


def close_cluster(cluster: Any) -> None:
    """Close a cluster; what stands in the way of that is told, not raised."""
    try:
        cluster.close()
    except Exception:
        log.warning(
            "the Dask cluster could not be closed; see that none of its jobs and machines is left",
            exc_info=True,
        )


def arguments(spec: ClusterSpec) -> dict[str, Any]:
    """Return the arguments of a cluster class: the options, and what local clusters need besides.

    Dask's own memory manager is off: it would pause or kill workers by a measure that knows
    nothing of the plan's byte budget. Local clusters listen on the loopback only.
    """
    if spec.kind not in WORDS:
        return dict(spec.options)
    own = {"memory_limit": 0, "host": LOOPBACK, "dashboard_address": f"{LOOPBACK}:0"}
    if spec.kind == "cuda":
        # One process per GPU; device memory is the business of the plan as well.
        return {**own, "n_workers": spec.workers, "device_memory_limit": 0, **spec.options}
    workers = spec.workers or 1
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    return {**own, "n_workers": workers, "threads_per_worker": threads, **spec.options}


@contextmanager
def configured(spec: ClusterSpec) -> Iterator[None]:
    """Hold a cluster's dask configuration, and undo what its class changes besides.

    dask-cloudprovider leaves the certificates of a cluster that is gone, which would keep the
    process from ever reaching one without TLS.
    """
    before = copy.deepcopy(dask.config.config)
    try:
        with dask.config.set(configuration(spec)):
            yield
    finally:
        dask.config.config.clear()
        dask.config.config.update(before)


def configuration(spec: ClusterSpec) -> dict[str, Any]:
    """Return the dask configuration that holds while a cluster lives."""
    spawn = "distributed.nanny.pre-spawn-environ"
    found: dict[str, Any] = {f"{spawn}.{name}": value for name, value in ENVIRONMENT.items()}
    if spec.kind not in WORDS:
        ours = dict(SPOT)
        if spec.kind in QUEUES:
            ours[f"jobqueue.{spec.kind}.death-timeout"] = START_S
        usual = dask.config.merge(*dask.config.defaults)
        found |= {
            key: value
            for key, value in ours.items()
            if dask.config.get(key, None) == dask.config.get(key, None, config=usual)
        }
    return {**found, **spec.dask}


def check_gpus(spec: ClusterSpec) -> None:
    """Refuse a cluster of more GPUs than this machine has.

    Raises:
        UsageError: it has fewer.
    """
    if spec.kind != "cuda":
        return
    import torch

    chosen = spec.options.get("CUDA_VISIBLE_DEVICES")
    listed = chosen.split(",") if isinstance(chosen, str) else chosen
    there = torch.cuda.device_count() if listed is None else len(listed)
    if there < (spec.workers or 1):
        raise UsageError(
            f"{spec.origin} wants {spec.workers or 'at least 1'} GPU(s), one for each worker, and "
            f"there are {there} here; lower --workers, or see what nvidia-smi and "
            "CUDA_VISIBLE_DEVICES say"
        )


def cluster_class(spec: ClusterSpec) -> Any:
    """Import the class of a cluster.

    Raises:
        UsageError: it cannot be imported.
    """
    module, _, name = spec.path.rpartition(".")
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        advice = f"pip install '{spec.install}'" if spec.install else "is its package installed?"
        first = str(error).partition("\n")[0]
        raise UsageError(
            f"{spec.origin} wants {spec.path}, which cannot be imported: {first}; {advice}"
        ) from error
    finally:
        # dask-jobqueue, once imported, has Ctrl-C end the process as if all were done.
        if signal.getsignal(signal.SIGINT) is not interrupt:
            signal.signal(signal.SIGINT, interrupt)


def check_options(spec: ClusterSpec, made: Any) -> None:
    """Refuse options that the class of a cluster does not take.

    Raises:
        UsageError: it names them, and lists those there are.
    """
    known = option_names(made)
    unknown = sorted(set(spec.options) - known) if spec.kind or not open_ended(made) else []
    if unknown:
        raise UsageError(
            f"[options] of {spec.origin} has the unknown {', '.join(unknown)}; {spec.path} takes "
            f"{', '.join(sorted(known))}"
        )


def open_ended(made: Any) -> bool:
    """Tell whether a class takes arguments that it does not name."""
    kinds = {p.kind for p in inspect.signature(made).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds


def option_names(made: Any) -> set[str]:
    """Return the arguments that a cluster class names, or hands on to what it is made of."""
    classes = list(inspect.getmro(made))
    job = getattr(made, "job_cls", None)  # of dask-jobqueue
    classes += inspect.getmro(job) if job is not None else ()
    classes += (Nanny, Worker) if issubclass(made, LocalCluster) else ()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        p.name
        for c in classes
        if "__init__" in vars(c) and c is not object
        for p in inspect.signature(vars(c)["__init__"]).parameters.values()
        if p.kind in named and p.name != "self"
    }


def check_dask(spec: ClusterSpec) -> None:
    """Refuse dask configuration that nothing reads.

    Raises:
        UsageError: a key is not known; those beside it are listed.
    """
    for key in spec.dask:
        table = key.rpartition(".")[0]
        if table.endswith("environ") or dask.config.get(key, _ABSENT) is not _ABSENT:
            continue
        while table and not isinstance(dask.config.get(table, None), dict):
            table = table.rpartition(".")[0]
        beside = sorted(dask.config.get(table) if table else dask.config.config)
        raise UsageError(
            f"[dask] of {spec.origin} has the unknown {key}; {table or 'dask'} has "
            f"{', '.join(beside)}"
        )
