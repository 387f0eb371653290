"""An error of CUDA spoils its process for good: that process goes, and the run is whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clusters import local_cluster
from distributed import Client
from jobs import command, noise, read_all, start, wait_until, write_source

import isochunk
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import DeviceError

MODEL = '''
import os
import time
from pathlib import Path
import torch

FOLDER = Path({folder!r})
HEALTHY = {healthy}

class Spoilt(torch.nn.Module):
    """Repeats sections; in one process, from some block on, it fails as CUDA does."""

    factor = (4, 1, 1)
    halo = (1, 1, 1)
    calls = 0

    def forward(self, x):
        # Looked at so that it cannot be traced, which would leave out all but its answer.
        known = bool(x.isfinite().all())
        if known and x.shape[2:] == (10, 34, 34):  # a block with its halo; probes have other shapes
            self.calls += 1
            if self.calls > HEALTHY:
                self.fail_here()
            time.sleep(0.05)
        return x.repeat_interleave(4, dim=2)

    def fail_here(self):
        marker = FOLDER / "spoilt"
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            marker.write_text(str(os.getpid()))
        except FileExistsError:
            pass
        if marker.read_text() == str(os.getpid()):
            with open(FOLDER / "failures", "a") as log:
                log.write("x")
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

def make():
    return Spoilt()
'''

SHAPE = (16, 128, 128)
BLOCKS = 32
QUICK = Timeouts(retry_pauses_s=(0.1, 0.1))


def spoilt(folder: Path, healthy: int, block: str = "32,32,32") -> isochunk.Job:
    """A job whose network fails in one process after some blocks."""
    (folder / "model.py").write_text(MODEL.format(folder=str(folder), healthy=healthy))
    return isochunk.Job(
        source=write_source(f"file://{folder}/in", noise(SHAPE)),
        target=f"{folder}/out",
        model=f"{folder}/model.py:make",
        trust=True,
        chunk="32,32,32",
        shard="none",
        block=block,
        levels=1,
    )


def words(job: isochunk.Job) -> list[str]:
    flags = ("--trust", "--chunk=32,32,32", "--shard=none", "--block=32,32,32", "--levels=1")
    return [job.source, job.target, "--model", job.model, *flags]


def assert_whole(job: isochunk.Job) -> None:
    np.testing.assert_array_equal(read_all(job.target), noise(SHAPE).repeat(4, axis=0))
    assert isochunk.audit(job.target).complete


@pytest.fixture
def pair() -> Iterator[Client]:
    """Two workers of their own: one of them is lost."""
    with local_cluster(2) as client:
        yield client


@pytest.mark.slow
def test_a_process_that_lost_its_gpu_leaves_and_the_run_is_whole(
    pair: Client, tmp_path: Path
) -> None:
    job = spoilt(tmp_path, healthy=2)
    before = set(pair.run(os.getpid).values())
    report = isochunk.run(isochunk.plan(job), pair, timeouts=QUICK)
    assert report.complete, report.errors
    assert 1 <= report.retries <= BLOCKS / 2, "others take its blocks, which do not fail in a row"
    assert_whole(job)
    gone = int((tmp_path / "spoilt").read_text())
    assert gone in before
    assert gone not in pair.run(os.getpid).values()
    wait_until(lambda: len(pair.nthreads()) == 2)  # its nanny has started another
    after = set(pair.run(os.getpid).values())
    assert len(after & before) == 1
    # Blocks in flight may have failed one by one; none was computed once that was known.
    assert len((tmp_path / "failures").read_text()) <= isochunk.plan(job).depth


@pytest.mark.slow
def test_a_single_process_stops_at_once_and_the_same_command_goes_on(tmp_path: Path) -> None:
    job = spoilt(tmp_path, healthy=9)
    process = start("run", *words(job), "--json")
    out, err = (text.decode() for text in process.communicate(timeout=120))
    assert process.returncode == 1, (out, err)
    assert "CUDA error: an illegal memory access" in json.loads(out)["error"]
    assert "is lost to process" in json.loads(out)["error"]
    assert "give the same command again" in json.loads(out)["error"]
    assert 1 <= len((tmp_path / "failures").read_text()) <= isochunk.plan(job).depth
    done = command("status", job.target, code=(0, 1))["blocks"]["done"]
    assert 9 - isochunk.plan(job).depth <= done < BLOCKS
    report = command("run", *words(job))
    assert report["complete"]
    assert report["blocks"]["resumed"] == done
    assert_whole(job)


def test_from_python_it_is_a_device_error(tmp_path: Path) -> None:
    job = spoilt(tmp_path, healthy=0)
    with pytest.raises(DeviceError, match=r"lost to process \d+: CUDA error: an illegal .*again"):
        isochunk.run(isochunk.plan(job))
