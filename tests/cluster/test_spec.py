"""Runs on real Dask clusters of processes, and what happens when processes die."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import Client
from jobs import command, noise, read_all, slow_model, start, tree_digest, wait_until, write_source

import isochunk
from isochunk.engine.target import open_written_target

BLOCKS = {"chunk": "16,16,16", "shard": "32,32,32", "block": "32,32,32"}
FLAGS = [f"--{name}={value}" for name, value in BLOCKS.items()]


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A source of 2 x 5 x 5 target shards."""
    return write_source(f"file://{tmp_path}/in", noise((16, 160, 160)))


@pytest.mark.parametrize("model", ["cubic", pytest.param("fsrcnn-z4", marks=pytest.mark.slow)])
def test_two_processes_give_the_bytes_of_one(client: Client, tmp_path: Path, model: str) -> None:
    source = write_source(f"file://{tmp_path}/in", noise((12, 96, 80)))
    options = {"source": source, "model": model, **BLOCKS}
    here = isochunk.run(isochunk.plan(isochunk.Job(target=f"{tmp_path}/one", **options)))
    there = isochunk.run(isochunk.plan(isochunk.Job(target=f"{tmp_path}/two", **options)), client)
    assert here.complete
    assert there.complete
    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "two")
    assert isochunk.audit(f"{tmp_path}/two").complete


def test_the_lazy_array_on_a_cluster(client: Client, tmp_path: Path) -> None:
    source = write_source(f"file://{tmp_path}/in", noise((6, 40, 40)))
    isochunk.run(isochunk.plan(isochunk.Job(source=source, target=f"{tmp_path}/t", model="cubic")))
    lazy = isochunk.isotropic(source, "cubic")
    part = client.compute(lazy[3:20]).result()
    np.testing.assert_array_equal(part, read_all(f"{tmp_path}/t")[3:20])


def slow_run(source: str, target: Path, folder: Path, workers: int) -> subprocess.Popen[bytes]:
    return start(
        "run",
        source,
        str(target),
        "--model",
        slow_model(folder, 0.15),
        "--trust",
        "--workers",
        str(workers),
        "--json",
        *FLAGS,
    )


def finished(target: Path) -> int:
    """Count finest shards that are stored."""
    return len(list((target / "10_10_10").glob("*.shard")))


@pytest.fixture
def undisturbed(source: str, tmp_path: Path) -> dict[str, str]:
    """Digests of the output of a run that nothing happened to."""
    model = slow_model(tmp_path, 0)
    command("run", source, f"{tmp_path}/good", "--model", model, "--trust", *FLAGS)
    return tree_digest(tmp_path / "good")


@pytest.mark.slow
def test_kill_the_client_and_run_the_same_command_again(
    source: str, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    target = tmp_path / "out"
    process = slow_run(source, target, tmp_path, workers=2)
    children = psutil.Process(process.pid)
    wait_until(lambda: finished(target) >= 20)
    family = children.children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not any(p.is_running() and p.status() != "zombie" for p in family))
    recorded = open_written_target(str(target)).ledger.count()
    stored = finished(target)
    before = {f: f.stat().st_mtime_ns for f in target.rglob("*.shard")}
    result = command(
        "run",
        source,
        str(target),
        "--model",
        slow_model(tmp_path, 0.15),
        "--trust",
        "--workers",
        "2",
        *FLAGS,
    )
    assert result["complete"]
    assert result["blocks"]["resumed"] == recorded
    # What was in flight: two workers, each with tasks of its own and at most half a second of
    # finished blocks that the client had not recorded yet.
    assert 0 < recorded <= stored < 50
    redone = [f for f, at in before.items() if f.stat().st_mtime_ns != at]
    finest = [f for f in redone if f.parent.name == "10_10_10"]
    assert len(finest) <= stored - recorded + 1
    assert tree_digest(target) == undisturbed
    assert command("audit", str(target))["complete"]


@pytest.mark.slow
def test_client_memory_does_not_grow_with_the_number_of_blocks(
    client: Client, tmp_path: Path
) -> None:
    """From 10^3 to 10^5 blocks of background: the client keeps bitmaps, the scheduler a window."""

    def scheduler_tasks(dask_scheduler: object) -> int:
        return len(dask_scheduler.tasks)  # type: ignore[attr-defined]

    def resident() -> int:
        return psutil.Process().memory_info().rss

    grown = {}
    for name, side in (("warm", 40), ("small", 40), ("large", 400)):
        source = write_source(
            f"file://{tmp_path}/{name}", np.zeros((10, side * 4, side * 4), np.uint8), "10,10,10"
        )
        plan = isochunk.plan(
            isochunk.Job(
                source=source,
                target=f"{tmp_path}/t-{name}",
                model="identity",
                levels=1,
                chunk="16,16,16",
                shard="none",
                block="16,16,16",
            )
        )
        before, most = resident(), 0

        def watch(report: object) -> None:
            nonlocal most
            most = max(most, len(client.futures))

        report = isochunk.run(plan, client, watch=watch)
        assert report.complete
        assert report.empty == report.total
        assert most <= 12
        assert client.run_on_scheduler(scheduler_tasks) <= 16
        grown[name] = resident() - before
    assert report.total == 10_000
    assert grown["large"] - grown["small"] < 20 << 20


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer(tmp_path: Path) -> None:
    source = write_source(f"file://{tmp_path}/in", noise((4, 32, 32)))
    begun = time.monotonic()
    address = "tcp://127.0.0.1:9"
    command("run", source, f"{tmp_path}/out", "--model", "cubic", "--scheduler", address, code=2)
    assert time.monotonic() - begun < 120
