"""Connect to the Dask cluster that a job asks for, or start it."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import dask
from distributed import Client, LocalCluster

from isochunk.allocator import ENVIRONMENT
from isochunk.config import Job, read_toml
from isochunk.errors import UsageError

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

CONNECT_S = 20.0
"""How long a scheduler may take to answer."""


@contextmanager
def connect(job: Job, client: Client | None) -> Iterator[Client]:
    """Give a client of the cluster that a job asks for; what is started here is closed here.

    Raises:
        UsageError: the scheduler does not answer, or the cluster cannot be started.
    """
    with ExitStack() as closing:
        if client is None and job.scheduler is not None:
            client = closing.enter_context(scheduler_client(job.scheduler))
        elif client is None:
            cluster = closing.enter_context(start_cluster(job))
            client = closing.enter_context(Client(cluster, set_as_default=False))
        log.info("Dask dashboard: %s", client.dashboard_link)
        yield client


def scheduler_client(address: str) -> Client:
    """Connect to a running scheduler."""
    try:
        return Client(address, set_as_default=False, timeout=CONNECT_S)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {address}: {error}; start one, or give its address as "
            "tcp://host:8786"
        ) from error


def start_cluster(job: Job) -> Any:  # noqa: ANN401 - cluster classes share no base
    """Start the cluster that a job names.

    Dask's own memory manager is off: it would pause or kill workers by a measure that knows
    nothing of the plan's byte budget. Local clusters listen on the loopback only.
    """
    if job.cluster == "local":
        spawn = "distributed.nanny.pre-spawn-environ"
        with dask.config.set({f"{spawn}.{name}": v for name, v in ENVIRONMENT.items()}):
            return LocalCluster(
                n_workers=job.workers,
                threads_per_worker=max(1, len(os.sched_getaffinity(0)) // job.workers),
                processes=True,
                memory_limit=0,
                host=LOOPBACK,
                dashboard_address=f"{LOOPBACK}:0",
            )
    if job.cluster == "cuda":
        return cluster_class("dask_cuda.LocalCUDACluster")(
            memory_limit=0, host=LOOPBACK, dashboard_address=f"{LOOPBACK}:0"
        )
    wish = read_toml(job.cluster)
    unknown = sorted(set(wish) - {"class", "workers", "options"})
    if unknown or "class" not in wish:
        raise UsageError(
            f"{job.cluster} has the keys {sorted(wish)}; wanted are class (dotted path of a Dask "
            "cluster class), options (its arguments) and workers (how many to ask for)"
        )
    cluster = cluster_class(wish["class"])(**wish.get("options", {}))
    cluster.scale(wish.get("workers", job.workers))
    return cluster


def cluster_class(path: str) -> Any:  # noqa: ANN401 - cluster classes share no base
    """Import a cluster class by its dotted path."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        extra = "; install isochunk[cuda]" if module == "dask_cuda" else "; is it installed?"
        raise UsageError(f"cluster class {path} cannot be imported: {error}{extra}") from error
