"""What workers compute on is asked of them; here they are told to say that they have GPUs."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clusters import local_cluster
from distributed import Client
from jobs import noise, write_source

import isochunk
from isochunk.cluster import backend
from isochunk.cluster.backend import JobPlugin, dask_backend, fit_to_workers
from isochunk.cluster.devices import WorkerDevices, ask_devices
from isochunk.core.codec import to_json
from isochunk.core.gpus import Gpu
from isochunk.core.limits import MAX_DEPTH
from isochunk.engine import prepare
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import UsageError
from isochunk.planning.plan import Plan
from isochunk.planning.seats import Seat, Seating

GIB = 1 << 30
BOARD = (("GPU-a", "Large", 80), ("GPU-b", "Small", 16))
"""UUID, name and GiB of what a machine has."""


def pretend(gpus: Mapping[str, Any], dask_worker: Any) -> None:
    """Have torch say in this process what GPUs there are, by the name of the worker."""
    import torch

    known = [
        SimpleNamespace(uuid=uuid, name=name, total_memory=size << 30)
        for uuid, name, size in gpus[str(dask_worker.name)]
    ]
    torch.cuda.is_available = lambda: bool(known)
    torch.cuda.device_count = lambda: len(known)
    torch.cuda.get_device_properties = lambda n: known[n]
    torch.cuda.mem_get_info = lambda at: (
        known[at.index].total_memory - (2 << 30),
        known[at.index].total_memory,
    )
    torch.backends.cudnn.version = lambda: 91002


@pytest.fixture(scope="module")
def three() -> Iterator[Client]:
    """Three workers on one machine, named 0, 1 and 2."""
    with local_cluster(3) as client:
        yield client


@pytest.fixture
def job(tmp_path: Path) -> isochunk.Job:
    source = write_source(f"file://{tmp_path}/in", noise((64, 256, 256)))
    return isochunk.Job(source=source, target=f"{tmp_path}/out", model="srunet-z4")


def have(client: Client, *gpus: Any) -> None:
    client.run(pretend, {str(n): found for n, found in enumerate(gpus)})


def fitted(job: isochunk.Job, client: Client) -> tuple[Plan, WorkerDevices]:
    plan = isochunk.plan(job)
    devices = ask_devices(plan, client)
    return fit_to_workers(plan, client, devices), devices


@pytest.mark.slow
def test_workers_say_that_they_have_gpus(
    three: Client, job: isochunk.Job, caplog: pytest.LogCaptureFixture
) -> None:
    have(three, BOARD, BOARD[::-1], BOARD)
    planned = isochunk.plan(job)
    assert (planned.device, planned.on_gpu) == ("cpu", False), "there is none here"
    with caplog.at_level(logging.WARNING, "isochunk.cluster"):
        plan, devices = fitted(job, three)
    assert (plan.device, plan.on_gpu) == ("cuda", True)
    assert devices.seating is not None
    assert devices.seating.seats == {"0": Seat(0, 2), "1": Seat(0, 1), "2": Seat(0, 2)}
    # The small one is worker 1's alone, and 2 GiB of each are taken.
    assert devices.device_bytes == 14 * GIB
    assert "workers have 14.0 to 36.0 GiB of GPU memory; tiles are made for the least" in [
        record.getMessage() for record in caplog.records
    ]
    assert devices.summary is not None
    assert devices.summary["name"] == "Large, Small"
    assert (devices.summary["count"], devices.summary["cudnn"]) == (2, "9.10.2")
    in_flight = plan.depth * plan.block_device_bytes()
    assert plan.tile_bytes(plan.tile) + in_flight <= devices.device_bytes
    assert plan.worker_memory_bytes() == plan.worker_memory_bytes(tile_bytes=0)


@pytest.mark.slow
def test_memory_asked_for_is_the_hosts_alone(three: Client, job: isochunk.Job) -> None:
    have(three, *[[("GPU-a", "Tiny", 3)]] * 3)
    roomy = replace(job, memory="64GiB", device_memory=0.5)
    plan, devices = fitted(roomy, three)
    assert devices.device_bytes == GIB // 3
    assert 2 <= plan.depth <= MAX_DEPTH
    assert plan.tile_bytes(plan.tile) + plan.depth * plan.block_device_bytes() <= GIB // 3
    assert plan.tile != isochunk.plan(roomy).tile
    assert plan.worker_memory_bytes() <= 64 * GIB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("auto", r"1 of 3 workers have a GPU, and 2 of 3 .* as tcp://.*--device cpu"),
        ("cuda", r"--device cuda asks for a GPU in each worker, and 2 of 3 .* as tcp://"),
    ],
)
def test_some_with_a_gpu_and_some_without_are_refused(
    three: Client, job: isochunk.Job, tmp_path: Path, device: str, says: str
) -> None:
    have(three, (), BOARD, ())
    plan = isochunk.plan(replace(job, device=device))
    with pytest.raises(UsageError, match=says), dask_backend(plan, three, Timeouts()):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_cpus_are_asked_for_where_some_have_gpus(three: Client, job: isochunk.Job) -> None:
    have(three, (), BOARD, ())
    with dask_backend(isochunk.plan(replace(job, device="cpu")), three, Timeouts()) as opened:
        assert (opened.plan.device, opened.device) == ("cpu", None)


@pytest.mark.slow
def test_a_worker_that_cannot_say(three: Client, job: isochunk.Job) -> None:
    def broken(dask_worker: Any) -> None:
        import torch

        def fail() -> bool:
            raise RuntimeError("CUDA driver initialization failed")

        if str(dask_worker.name) == "1":
            torch.cuda.is_available = fail

    have(three, BOARD, BOARD, BOARD)
    three.run(broken)
    with pytest.raises(UsageError, match=r"worker tcp://.* cannot say .*initialization failed"):
        ask_devices(isochunk.plan(job), three)


@pytest.mark.slow
def test_interpolations_need_no_torch(job: isochunk.Job) -> None:
    code = f"""
import sys
import isochunk
if __name__ == "__main__":
    job = isochunk.Job(source={job.source!r}, target={job.target!r}, model="cubic")
    with isochunk.start_cluster("local", 1) as client:
        report = isochunk.run(isochunk.plan(job), client)
        loaded = client.run(lambda: "torch" in sys.modules)
    assert report.complete and report.device is None
    print("torch" in sys.modules, *loaded.values())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["False", "False"]


# Without workers


def here(monkeypatch: pytest.MonkeyPatch, *gpus: Any) -> None:
    """Have planning find GPUs in this machine."""
    found = tuple(Gpu(uuid, name, size << 30) for uuid, name, size in gpus)
    monkeypatch.setattr(prepare, "seen_gpus", lambda: SimpleNamespace(gpus=found))


@pytest.mark.parametrize(
    ("options", "device", "share"),
    [
        ({}, "cuda", 80.0),
        ({"workers": 1}, "cuda", 80.0),
        ({"workers": 2}, "cuda", 16.0),
        ({"workers": 3}, "cuda", 16.0),
        ({"workers": 4}, "cuda", 8.0),
        ({"cluster": "cuda"}, "cuda", 16.0),
        ({"device": "cpu"}, "cpu", None),
        ({"scheduler": "tcp://192.0.2.1:8786"}, "auto", None),
        ({"scheduler": "tcp://192.0.2.1:8786", "device": "cuda"}, "cuda", 80.0),
    ],
)
def test_what_is_here_is_asked_for_at_planning(
    job: isochunk.Job,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    device: str,
    share: float | None,
) -> None:
    here(monkeypatch, *BOARD)
    asked = replace(job, device_memory=0.5, memory="16GiB", **options)
    workers, _ = prepare._workers(asked, network=True)
    assert workers.device_bytes == (None if share is None else share * GIB / 2)
    assert isochunk.plan(asked).device == device


def test_a_job_that_leaves_the_device_open_is_recorded_so(
    job: isochunk.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be taken up where there are other machines."""
    here(monkeypatch, *BOARD)
    plan = isochunk.plan(job)
    assert (plan.device, plan.job.device) == ("cuda", "auto")
    assert "cuda" not in str(to_json(plan))
    assert replace(plan, job=replace(job, device="cpu")).device == "cpu"


def test_nothing_is_asked_for_an_interpolation(
    job: isochunk.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "seen_gpus", lambda: pytest.fail("asked for GPUs"))
    for options in ({}, {"device": "cuda"}, {"cluster": "cuda", "workers": 2}):
        plan = isochunk.plan(replace(job, model="cubic", **options))
        assert not plan.on_gpu
        assert plan.block_bytes() == isochunk.plan(replace(job, model="cubic")).block_bytes()


def test_a_worker_opens_the_job_in_its_seat(
    job: isochunk.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(backend, "open_job", lambda *given: opened.append(given))
    monkeypatch.setattr(backend, "Pipeline", lambda job: job)
    seating = Seating({"0": Seat(1, 2), "slurm-7": Seat(0, 1)})
    plugin = JobPlugin("isochunk-test", isochunk.plan(job), {}, seating)
    for name in (0, "slurm-7", "came later"):
        state = SimpleNamespace(nthreads=1)
        worker = SimpleNamespace(name=name, address="tcp://127.0.0.1:1", state=state)
        _, metrics = plugin.open(worker)
        metrics.unregister()
    assert [seat for _, _, seat in opened] == [Seat(1, 2), Seat(0, 1), Seat(0, 2)]
