"""What only a machine with a GPU can show: ``pytest -m gpu``; skipped where torch sees none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import command, noise, read_all, start, tree_digest, write_source

import isochunk
from isochunk.api.jobs import calibrate
from isochunk.cluster.devices import ask_devices
from isochunk.core.voxels import Voxels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

MODEL = "fsrcnn-z4"
SHAPE = (24, 128, 96)
FLAGS = ("--chunk=32,32,32", "--shard=none", "--block=64,64,64")

HUNGRY = '''
import torch

class Hungry(torch.nn.Module):
    """Repeats sections; on a GPU it holds 64 KiB for each source voxel meanwhile."""

    factor = (4, 1, 1)
    halo = (2, 2, 2)
    alignment = (1, 1, 1)

    def forward(self, x):
        if x.is_cuda:
            held = torch.empty(x.numel() << 16, dtype=torch.uint8, device=x.device)
            held[:: 1 << 20] = 1
        return x.repeat_interleave(4, dim=2)

def make():
    return Hungry()
'''


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Smoothed noise: networks answer to it with values all over the range."""
    soft = noise(SHAPE).astype(np.float32)
    for axis in (1, 2):
        soft = (soft + np.roll(soft, 1, axis) + np.roll(soft, 2, axis)) / 3
    return write_source(f"file://{tmp_path}/in", soft.astype("uint8"))


def run(source: str, target: Path, *more: str) -> Voxels:
    report = command("run", source, str(target), "--model", MODEL, *FLAGS, *more)
    assert report["seam"]["max_difference"] <= 1
    assert report["tile_halvings"] == 0
    assert command("audit", str(target))["complete"]
    return read_all(str(target)).astype(int)


def test_a_gpu_agrees_with_the_cpu_and_with_itself(source: str, tmp_path: Path) -> None:
    cpu = run(source, tmp_path / "cpu", "--device=cpu")
    gpu = run(source, tmp_path / "gpu", "--device=cuda")
    difference = np.abs(cpu - gpu)
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.999  # on one kind of device 0.9999 is promised
    run(source, tmp_path / "again", "--device=cuda")
    assert tree_digest(tmp_path / "gpu") == tree_digest(tmp_path / "again")
    other = run(source, tmp_path / "other", "--device=cuda", "--block=96,32,96")
    assert np.abs(other - gpu).max() <= 1
    assert (other == gpu).mean() >= 0.9999


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_passes_its_gate(source: str, tmp_path: Path, precision: str) -> None:
    exact = run(source, tmp_path / "fp32", "--device=cuda")
    near = run(source, tmp_path / precision, "--device=cuda", f"--precision={precision}")
    error = np.abs(exact - near)
    assert np.sqrt((error**2).mean()) < 1.5, "root mean square in grey levels"
    assert np.percentile(error, 99.9) < 8


def test_memory_of_the_device_runs_out(tmp_path: Path) -> None:
    """1.5 GiB hold what 12 x 36 x 36 source voxels take, and not twice or three times as many."""
    (tmp_path / "hungry.py").write_text(HUNGRY)
    voxels = noise((16, 64, 64))
    source = write_source(f"file://{tmp_path}/in", voxels)
    share = (3 << 29) / torch.cuda.get_device_properties(0).total_memory
    process = start(
        "run",
        source,
        f"{tmp_path}/out",
        "--model",
        f"{tmp_path}/hungry.py:make",
        "--trust",
        "--device=cuda",
        f"--device-memory={share}",
        "--json",
        "--chunk=32,32,32",
        "--shard=none",
        "--block=64,64,32",
    )
    out, err = (text.decode() for text in process.communicate(timeout=200))
    assert process.returncode == 0, err
    assert err.count("ran out of memory on cuda") == json.loads(out)["tile_halvings"] == 2
    np.testing.assert_array_equal(read_all(f"{tmp_path}/out"), voxels.repeat(4, axis=0))


def test_asking_takes_no_memory_of_a_gpu() -> None:
    code = """
import torch
from isochunk.models.gpus import free_bytes, seen_gpus
seen = seen_gpus()
assert len(seen.gpus) == torch.cuda.device_count() and seen.torch == torch.__version__
assert len({gpu.uuid for gpu in seen.gpus}) == len(seen.gpus)
assert seen.cuda and seen.cudnn and int(seen.cudnn.split(".")[0]) >= 9
assert not any(torch._C._cuda_hasPrimaryContext(n) for n in range(len(seen.gpus)))
for n, gpu in enumerate(seen.gpus):
    assert 0 < free_bytes(n) < gpu.total_bytes
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_gpu_that_is_here_is_found(source: str, tmp_path: Path) -> None:
    job = isochunk.Job(source=source, target=f"{tmp_path}/plan", model=MODEL)
    plan = isochunk.plan(job)
    assert (plan.device, plan.on_gpu) == ("cuda", True)
    assert not isochunk.plan(replace(job, device="cpu")).on_gpu
    found = command("run", source, f"{tmp_path}/out", "--model", MODEL, *FLAGS)["device"]
    assert torch.cuda.get_device_name(0) in found["name"]
    assert found["torch"] == torch.__version__
    assert found["cuda"] == torch.version.cuda


def test_two_processes_for_each_gpu_share_its_memory(source: str, tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    here = run(source, tmp_path / "here", "--device=cuda")
    shared = run(source, tmp_path / "shared", f"--workers={2 * count}")
    np.testing.assert_array_equal(here, shared)
    job = isochunk.Job(source=source, target=f"{tmp_path}/plan", model=MODEL, workers=2 * count)
    with isochunk.start_cluster("local", 2 * count) as client:
        devices = ask_devices(isochunk.plan(job), client)
    assert devices.seating is not None
    assert {seat.sharing for seat in devices.seating.seats.values()} == {2}
    total = min(torch.cuda.get_device_properties(n).total_memory for n in range(count))
    assert devices.device_bytes is not None
    assert devices.device_bytes <= total * job.device_memory / 2


SPOILT = '''
import os
from pathlib import Path
import torch

MARKER = Path({marker!r})

class Spoilt(torch.nn.Module):
    """Repeats sections; the first process that computes a block reads beyond a tensor's end."""

    factor = (4, 1, 1)
    halo = (1, 1, 1)

    def forward(self, x):
        if bool(x.isfinite().all()) and x.is_cuda and x.shape[2:] == (10, 34, 34):
            try:
                os.close(os.open(MARKER, os.O_CREAT | os.O_EXCL))
                MARKER.write_text(str(os.getpid()))
                x = x + x.flatten()[torch.full((1,), 1 << 40, device=x.device)]
            except FileExistsError:
                pass
        return x.repeat_interleave(4, dim=2)

def make():
    return Spoilt()
'''


def test_an_error_of_cuda_costs_its_process_and_no_block(tmp_path: Path) -> None:
    marker = tmp_path / "spoilt"
    (tmp_path / "spoilt.py").write_text(SPOILT.format(marker=str(marker)))
    voxels = noise((16, 96, 96))
    job = isochunk.Job(
        source=write_source(f"file://{tmp_path}/in", voxels),
        target=f"{tmp_path}/out",
        model=f"{tmp_path}/spoilt.py:make",
        trust=True,
        device="cuda",
        chunk="32,32,32",
        shard="none",
        block="32,32,32",
    )
    with isochunk.start_cluster("local", 2) as client:
        report = isochunk.run(isochunk.plan(job), client)
        assert report.complete, report.errors
        assert report.retries >= 1
        assert int(marker.read_text()) not in client.run(os.getpid).values()
    np.testing.assert_array_equal(read_all(job.target), voxels.repeat(4, axis=0))


def test_one_worker_a_gpu(source: str, tmp_path: Path) -> None:
    here = run(source, tmp_path / "here", "--device=cuda")
    there = run(source, tmp_path / "there", "--cluster=cuda", "--device=cuda")
    np.testing.assert_array_equal(here, there)
    job = isochunk.Job(
        source=source, target=f"{tmp_path}/plan", model=MODEL, cluster="cuda", device="cuda"
    )
    measured = calibrate(isochunk.plan(job), 2)
    assert measured.workers == torch.cuda.device_count()
