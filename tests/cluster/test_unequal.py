"""Workers of unequal memory: a plan is made for the least of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster
from jobs import noise, write_source

import isochunk
from isochunk.cluster.backend import WORKER_SHARE, dask_backend, fit_to_workers
from isochunk.cluster.devices import ask_devices
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import UsageError

pytestmark = pytest.mark.slow

GIB = 1 << 30


def workers_of(*limits: int) -> Iterator[Client]:
    nanny = {"nthreads": 1, "host": "127.0.0.1", "dashboard": False}
    with (
        SpecCluster(
            workers={
                n: {"cls": Nanny, "options": {**nanny, "memory_limit": limit}}
                for n, limit in enumerate(limits)
            },
            scheduler={
                "cls": Scheduler,
                "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
            },
            silence_logs=False,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(len(limits), timeout=60)
        yield client


@pytest.fixture(scope="module")
def unequal() -> Iterator[Client]:
    """A worker of 2 GiB and one of 4."""
    yield from workers_of(2 * GIB, 4 * GIB)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Client]:
    """A worker in which no network fits."""
    yield from workers_of(800 << 20)


@pytest.fixture
def job(tmp_path: Path) -> isochunk.Job:
    """A job that leaves memory open."""
    source = write_source(f"file://{tmp_path}/in", noise((64, 256, 256)))
    return isochunk.Job(source=source, target=f"{tmp_path}/out", model="fsrcnn-z4")


def test_tiles_are_made_for_the_least_and_the_log_says_so(
    unequal: Client, job: isochunk.Job, caplog: pytest.LogCaptureFixture
) -> None:
    plan = replace(isochunk.plan(replace(job, memory="16GiB")), job=job)  # for a large client
    least = int(WORKER_SHARE * 2 * GIB)
    assert plan.worker_memory_bytes() > least
    with caplog.at_level(logging.WARNING, "isochunk.cluster.backend"):
        fitted = fit_to_workers(plan, unequal, ask_devices(plan, unequal))
    assert least / 2 < fitted.worker_memory_bytes() <= least
    assert fitted.stages == plan.stages
    (said,) = [r.getMessage() for r in caplog.records if "workers have" in r.getMessage()]
    assert re.fullmatch(r"workers have 1\.5 to \d\.\d GiB of memory; tiles are .* least", said)


def test_memory_asked_for_goes_before_what_workers_have(unequal: Client, job: isochunk.Job) -> None:
    plan = isochunk.plan(replace(job, memory="16GiB"))
    assert fit_to_workers(plan, unequal, ask_devices(plan, unequal)) is plan


def test_workers_in_which_nothing_fits_are_refused_with_what_does(
    tiny: Client, job: isochunk.Job, tmp_path: Path
) -> None:
    plan = replace(isochunk.plan(replace(job, memory="16GiB")), job=job)
    with (
        pytest.raises(UsageError, match=r"and it has 600 MiB; raise --memory") as refused,
        dask_backend(plan, tiny, Timeouts()),
    ):
        pass
    needed = re.search(r"need (\d+) MiB", str(refused.value))
    assert needed is not None
    block = plan.stages[0].block
    least = replace(job, memory=f"{needed[1]}MiB", block=block)
    assert isochunk.plan(least).worker_memory_bytes() <= int(needed[1]) << 20
    assert not (tmp_path / "out").exists()
