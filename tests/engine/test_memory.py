"""Memory that runs out, of a device or of the host, and models that stay out of tasks."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import Client
from distributed.protocol.pickle import dumps
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import command, noise, read_all, start, write_source

import isochunk
from isochunk.cluster.backend import JobPlugin
from isochunk.core.geometry import Box
from isochunk.core.limits import MIN_TILE
from isochunk.core.spec import Intensity, ModelSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import PredictionError, UsageError
from isochunk.models.interface import predict
from isochunk.models.predictor import TorchPredictor
from isochunk.models.tiling import SameSizeEngine
from isochunk.planning.tiles import block_tile, device_tile

MODEL = '''
import os
import threading
import time
import torch
from torch import nn

FULL = {
    "device": lambda: exec('raise torch.OutOfMemoryError("CUDA out of memory. Tried 20 GiB.")'),
    "host": lambda: torch.empty(1 << 50, dtype=torch.uint8),
    "array": lambda: exec("raise MemoryError"),
    "other": lambda: torch.zeros(2) + torch.zeros(3),
}

class Greedy(nn.Module):
    """A network with 4 MiB of weights that finds no memory for more than LIMIT source voxels."""

    factor = (4, 1, 1)
    halo = (2, 2, 2)
    alignment = (1, 1, 1)

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a = nn.Conv3d(1, 4, 3, padding=1)
        self.b = nn.ConvTranspose3d(4, 1, (4, 3, 3), (4, 1, 1), (0, 1, 1))
        self.unused = nn.Parameter(torch.zeros(1 << 20))
        with open(os.environ["MADE"], "a") as made:
            made.write(f"{os.getpid()}\\n")

    def forward(self, x):
        if torch.isinf(x).any():  # looking at values keeps it from being traced
            raise ValueError("infinite")
        if threading.current_thread().name.startswith("isochunk-compute"):  # not when probed
            time.sleep(float(os.environ.get("PAUSE", 0)))
            if x.numel() > int(os.environ.get("LIMIT", 1 << 40)):
                FULL[os.environ["KIND"]]()
        return self.b(torch.relu(self.a(x)))

def make():
    return Greedy()
'''

SHAPE = (16, 64, 64)
OPTIONS = {"chunk": "32,32,32", "shard": "none", "block": "64,64,32", "levels": 1}
FLAGS = [f"--{name}={value}" for name, value in OPTIONS.items()]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> isochunk.Job:
    """A job of two blocks with a model that has no limit yet."""
    (tmp_path / "greedy.py").write_text(MODEL)
    monkeypatch.setenv("MADE", str(tmp_path / "made"))
    source = write_source(f"file://{tmp_path}/in", noise(SHAPE))
    return isochunk.Job(
        source=source,
        target=f"{tmp_path}/out",
        model=f"{tmp_path}/greedy.py:make",
        trust=True,
        **OPTIONS,
    )


def words(job: isochunk.Job, *more: str) -> tuple[str, ...]:
    return ("run", job.source, job.target, "--model", job.model, "--trust", *FLAGS, *more)


def whole_answer(job: isochunk.Job, tmp_path: Path) -> Voxels:
    assert isochunk.run(isochunk.plan(replace(job, target=f"{tmp_path}/whole"))).complete
    return read_all(f"{tmp_path}/whole")


def assert_same_picture(got: Voxels, wanted: Voxels) -> None:
    difference = np.abs(got.astype(int) - wanted.astype(int))
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["device", "host"])
def test_a_run_halves_its_tile_and_says_so(
    job: isochunk.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    wanted = whole_answer(job, tmp_path)
    monkeypatch.setenv("KIND", kind)
    monkeypatch.setenv("LIMIT", "20000")
    process = start(*words(job, "--json"))
    out, err = (text.decode() for text in process.communicate(timeout=120))
    assert process.returncode == 0, err
    report = json.loads(out)
    # A block reads 20 x 68 x 36 voxels; halved along z, y and again z it is 10 x 36 x 36.
    said = [line for line in err.splitlines() if "ran out of memory" in line]
    assert len(said) == report["tile_halvings"] == 2, err
    assert "in a tile of (64, 64, 32) target voxels; going on with (32, 64, 32)" in said[0]
    assert_same_picture(read_all(job.target), wanted)
    assert isochunk.audit(job.target).complete


@pytest.mark.slow
def test_workers_of_a_cluster_say_it_too(
    job: isochunk.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = whole_answer(job, tmp_path)
    monkeypatch.setenv("KIND", "device")
    monkeypatch.setenv("LIMIT", "20000")
    report = command(*words(job, "--workers=2"))
    assert report["tile_halvings"] == 2
    assert_same_picture(read_all(job.target), wanted)


def test_a_cell_that_does_not_fit_fails_its_block(
    job: isochunk.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIND", "host")
    monkeypatch.setenv("LIMIT", "10")
    report = isochunk.run(isochunk.plan(job))
    assert not report.complete
    assert len(report.errors) == 2
    for error in report.errors:
        assert "PredictionError" in error
        assert "ran out of memory on cpu in a tile of (4, 1, 1) target voxels" in error
        assert "that is its smallest; give workers more memory" in error


@pytest.mark.parametrize("kind", ["array", "other"])
def test_only_memory_is_answered_by_smaller_tiles(
    job: isochunk.Job, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("KIND", kind)
    monkeypatch.setenv("LIMIT", "30000")
    report = isochunk.run(isochunk.plan(job))
    assert report.complete == (kind == "array")
    assert report.halvings == (1 if kind == "array" else 0)
    if kind == "other":
        assert "must match the size" in report.errors[0]


class Repeat(torch.nn.Module):
    """Repeats sections, and finds no memory above a limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.largest = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.largest = max(self.largest, x.numel())
        return x.repeat_interleave(4, dim=2)


def repeating(limit: int, halo: int, alignment: int, shape: Any = None) -> TorchPredictor:
    one = Fraction(1)
    spec = ModelSpec("repeat", "module", (Fraction(4), one, one), (halo,) * 3, (alignment,) * 3)
    engine = SameSizeEngine(Repeat(limit), spec, shape)
    return TorchPredictor(spec, engine, torch.device("cpu"), "fp32", Intensity(), (64, 64, 64))


@settings(deadline=None, max_examples=60)
@given(
    limit=st.integers(1, 30_000),
    halo=st.sampled_from([0, 2, 4]),
    alignment=st.sampled_from([1, 2]),
    corner=st.tuples(*[st.integers(-9, 9)] * 3),
    extent=st.tuples(*[st.integers(1, 40)] * 3),
)
def test_any_limit_gives_the_answer_or_an_error(limit, halo, alignment, corner, extent) -> None:
    predictor = repeating(limit, halo, alignment)
    write = Box.from_shape(extent, corner)
    read = predictor.spec.read_box(write)
    source = noise(read.shape)
    smallest = (alignment + 2 * halo) ** 3
    if limit < smallest:
        with pytest.raises(PredictionError, match="that is its smallest"):
            predict(predictor, source, read, write)
        assert predictor.tile == (4 * alignment, alignment, alignment) or not predictor.halvings
        return
    got = predict(predictor, source, read, write)
    along = [np.arange(a, b) for a, b in zip(write.lo, write.hi, strict=True)]
    index = [along[0] // 4 - read.lo[0], along[1] - read.lo[1], along[2] - read.lo[2]]
    np.testing.assert_array_equal(got, source[np.ix_(*index)])
    assert predictor.engine.module.largest <= limit
    halvings = predictor.halvings
    np.testing.assert_array_equal(predict(predictor, source, read, write), got)
    assert predictor.halvings == halvings, "the smaller tile is kept"


def test_one_shape_only_cannot_be_halved() -> None:
    predictor = repeating(100, 1, 1, shape=(10, 10, 10))
    write = Box.from_shape((32, 8, 8))
    read = predictor.spec.read_box(write)
    with pytest.raises(PredictionError, match="it takes inputs of one shape only"):
        predict(predictor, noise(read.shape), read, write)


# What a device has


@pytest.mark.parametrize("value", ["0", "1.5", "-0.1", "nan", "half"])
def test_a_share_of_a_device_that_is_none(job: isochunk.Job, value: str) -> None:
    with pytest.raises(UsageError, match="device_memory is"):
        replace(job, device_memory=value)
    told = command(*words(job, f"--device-memory={value}"), code=2)["error"]
    assert "--device-memory is" in told


def test_tiles_fit_the_device_whatever_the_host_has(job: isochunk.Job) -> None:
    large = replace(job, block="256,256,256", chunk="256,256,256", memory="100GiB")
    roomy = isochunk.plan(replace(large, device="cuda"))
    blocks_alone = roomy.worker_memory_bytes(tile_bytes=0)
    assert roomy.worker_memory_bytes() == blocks_alone
    made = isochunk.plan(replace(large, device="cuda", memory=blocks_alone))
    assert made.depth == roomy.depth
    assert made.tile == block_tile(made), "host memory does not cut what lies on a device"
    sizes = [2**n for n in range(18, 40)]
    tiles = [device_tile(made, size) for size in sizes]
    for size, tile in zip(sizes, tiles, strict=True):
        assert made.tile_bytes(tile) <= size or min(tile) <= 2 * MIN_TILE
    volumes = [int(np.prod(tile)) for tile in tiles]
    assert volumes == sorted(volumes)
    assert tiles[0] != tiles[-1] == block_tile(made)


# Models and tasks


def task_sizes(dask_scheduler: Any) -> list[int]:
    return [
        len(pickle.dumps(task.run_spec))
        for task in dask_scheduler.tasks.values()
        if task.run_spec is not None
    ]


@pytest.mark.slow
def test_tasks_carry_no_model(
    client: Client, job: isochunk.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = isochunk.plan(replace(job, block="32,32,32"))
    assert len(dumps(JobPlugin("job", plan, {}))) < 20_000
    made = tmp_path / "made"
    values = {"MADE": str(made), "PAUSE": "0.3"}
    client.run(lambda values: os.environ.update(values), values)
    sizes: list[int] = []
    ran: list[isochunk.Report] = []
    thread = threading.Thread(target=lambda: ran.append(isochunk.run(plan, client)))
    thread.start()
    while thread.is_alive():
        sizes += client.run_on_scheduler(task_sizes)
        thread.join(0.05)
    client.run(lambda: [os.environ.pop(name) for name in ("MADE", "PAUSE")])
    assert ran[0].complete
    assert 0 < max(sizes) < 2_000, "the weights alone are 4 MiB"
    loads = Counter(made.read_text().split())
    pids = {str(pid) for pid in client.run(os.getpid).values()}
    assert {pid: loads[pid] for pid in pids} == dict.fromkeys(pids, 1)
