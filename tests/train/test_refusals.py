"""Perceptual losses in training, and what training refuses to start with."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from jobs import write_source
from safetensors.torch import save_file
from trainings import config, write_em

from isochunk.core.synthetic import synthetic_pair
from isochunk.errors import TargetConflictError, UsageError
from isochunk.storage.access import Access
from isochunk.storage.open import open_volume
from isochunk.train.apply import Criterion
from isochunk.train.config import Loss
from isochunk.train.data import Shades
from isochunk.train.perceptual import perceptual_loss
from isochunk.train.sources import likeness
from isochunk.train.training import train
from isochunk.train.vgg import SHAPES

pytestmark = pytest.mark.slow

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """An anisotropic volume, four times coarser along z."""
    return write_em(tmp_path_factory.mktemp("volume"))


def test_training_without_a_vgg_file_says_so_and_records_it(source, tmp_path, caplog):
    train(config("a2i", source, tmp_path / "out", steps=2))
    said = [r.message for r in caplog.records if "no VGG file" in r.message]
    assert len(said) == 1
    assert "goes without pdl" in said[0]
    record = json.loads((tmp_path / "out/model.json").read_text())["card"]["training"]
    assert record["loss"]["perceptual"] == "pdl"
    assert record["loss"]["vgg"] == "none given"


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> Path:
    """A VGG16 of random weights."""
    rng = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    scale = {
        name: 0.1 if len(shape) == 1 else (2 / (9 * shape[1])) ** 0.5
        for name, shape in SHAPES.items()
    }
    save_file({n: scale[n] * torch.randn(s, generator=rng) for n, s in SHAPES.items()}, path)
    return path


@pytest.mark.parametrize("name", ["pdl", "dists"])
def test_the_loss_is_the_weighted_sum_of_its_parts(name, vgg, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu, shades = torch.device("cpu"), Shades(-2.0, 3.0)
    rng = torch.Generator().manual_seed(1)
    target = torch.randn(2, 1, 16, 3, 20, generator=rng)
    predicted = (target + 0.1 * torch.randn(target.shape, generator=rng)).requires_grad_()
    both = Loss("l1", 30.0, name, 0.5, str(vgg))
    whole = Criterion(both, shades, cpu)(predicted, target)
    seen = perceptual_loss(name, vgg)
    xz = [
        torch.stack([x[b, :, :, y] for b in range(2) for y in range(3)]).add(2).div(5)
        for x in (predicted, target)
    ]
    parts = 30 * (predicted - target).abs().mean() + 0.5 * seen(*xz)
    torch.testing.assert_close(whole, parts)
    whole.backward()
    assert predicted.grad.isfinite().all()
    without = Criterion(replace(both, vgg=""), shades, cpu)(predicted, target)
    torch.testing.assert_close(without, 30 * (predicted - target).abs().mean())


def test_as_psnr_an_easy_batch_weighs_as_much_as_a_hard_one():
    rng = torch.Generator().manual_seed(1)
    target = torch.randn(2, 1, 8, 8, 8, generator=rng)
    wrong = torch.randn(target.shape, generator=rng)
    criterion = Criterion(Loss("psnr"), Shades(-2.0, 3.0), torch.device("cpu"))
    pulls = []
    for error in (0.1, 1.0):
        predicted = (target + error * wrong).requires_grad_()
        loss = criterion(predicted, target)
        loss.backward()
        pulls.append((predicted.grad * error * wrong).sum().item())
        decibels = 10 * loss.item() / math.log(10)
        assert decibels == pytest.approx(20 * math.log10(error), abs=0.5)
    assert pulls[0] == pytest.approx(pulls[1], rel=0.02)
    exact = target.clone().requires_grad_()
    criterion(exact, target).backward()
    assert exact.grad.isfinite().all()


def test_training_with_a_vgg_file(source, vgg, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wrong = {"perceptual": "pdl", "vgg": str(tmp_path / "none.pth")}
    with pytest.raises(UsageError, match=r"none\.pth"):
        train(config("a2i", source, tmp_path / "out", steps=1, loss=wrong))
    assert not (tmp_path / "out").exists()
    report = train(config("a2i", source, tmp_path / "out", steps=1, loss={"vgg": str(vgg)}))
    assert report.stopped == "finished"
    record = json.loads((tmp_path / "out/model.json").read_text())["card"]["training"]
    assert record["loss"]["vgg"] == "given"
    assert str(vgg) not in (tmp_path / "out/model.json").read_text()


def test_another_architecture_does_not_overwrite_a_training_or_a_checkpoint(source, tmp_path):
    out = tmp_path / "out"
    train(config("niiv", source, out, steps=5))
    before = (out / "weights.safetensors").read_bytes()
    with pytest.raises(TargetConflictError, match="arch: niiv there, a2i now"):
        train(config("a2i", source, out, steps=5))
    (out / "training" / "config.json").unlink()
    with pytest.raises(TargetConflictError, match="holds a checkpoint, but no training"):
        train(config("a2i", source, out, steps=5))
    assert (out / "weights.safetensors").read_bytes() == before


def turned(source: str, order: tuple[int, int, int], tmp_path: Path, spacing: str) -> str:
    volume = open_volume(source)
    voxels = np.ascontiguousarray(volume.read(volume.spec.box).transpose(order))
    return write_source(f"{tmp_path}/turned", voxels, spacing)


@pytest.mark.parametrize(("order", "axis"), [((1, 0, 2), "y"), ((2, 1, 0), "x")])
def test_axes_in_a_wrong_order_are_refused(order, axis, tmp_path):
    coarse, _ = synthetic_pair((64, 96, 96), 4)
    plain = write_source(f"{tmp_path}/plain", coarse)
    url = turned(plain, order, tmp_path, "32,8,8")
    assert np.argmin(likeness(open_volume(plain))) == 0
    with pytest.raises(UsageError, match=f"neighbours along {axis} are less alike.*order of its"):
        train(config("niiv", url, tmp_path / "out", split_axis=0, patch=[8, 1, 8]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spacing", "arch", "says"),
    [
        ("11,8,8", "niiv", r"coarser by 1\.38, but .* needs at least 1\.5; choose mode supervised"),
        ("32,8,16", "niiv", "needs y and x alike"),
        ("32,8,16", "pssr", "needs y and x alike"),
    ],
)
def test_voxels_of_wrong_proportions_are_refused(spacing, arch, says, source, tmp_path):
    url = turned(source, (0, 1, 2), tmp_path, spacing)
    with pytest.raises(UsageError, match=says):
        train(config(arch, url, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_volumes_are_opened_as_access_says(source, tmp_path):
    volume = open_volume(source)
    zarr.save_array(f"{tmp_path}/plain", volume.read(volume.spec.box), zarr_format=2)
    job = config("niiv", f"{tmp_path}/plain", tmp_path / "out", steps=1)
    with pytest.raises(UsageError, match=r"voxel size of .* is not known"):
        train(job)
    assert train(job, Access(spacing=volume.spec.spacing)).stopped == "finished"


def test_constant_and_small_volumes_are_refused(source, tmp_path):
    flat = write_source(f"{tmp_path}/flat", np.full((8, 96, 440), 9, np.uint8), "32,8,8")
    with pytest.raises(UsageError, match="constant"):
        train(config("niiv", flat, tmp_path / "out"))
    with pytest.raises(UsageError, match="has 96 voxels along y, but a crop needs 128"):
        train(config("niiv", source, tmp_path / "out", patch=[128, 1, 32]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arch", "changes", "says"),
    [
        ("niiv", {"mode": "supervised"}, "needs a factor"),
        ("niiv", {"factor": "1/2"}, "below 1"),
        ("niiv", {"network": {"tile": 64}}, r"tiles of 64 pixels, but sees only those of patch"),
        ("niiv", {"factor": 20}, "fewer than two sections of 20"),
        ("niiv", {"network": {"variant": "planar"}}, "has no variants"),
        ("niiv", {"network": {"window": 8}}, "network niiv: unknown field window"),
        ("a2i", {"degradation": "em"}, "choose one of avg, skip, psf"),
        ("pssr", {"mode": "self"}, "mode supervised"),
        ("pssr", {"factor": 2}, "has factor 4"),
        ("pssr", {"degradation": "avg"}, "choose one of em, fluorescence"),
        ("pssr", {"patch": [1, 40, 40]}, "multiples of 32 from 64"),
        ("pssr-mf", {"patch": [1, 64, 64]}, "needs 5 along z"),
        ("pssr", {"normalisation": "standard"}, "choose normalisation range"),
        ("pssr", {"augmentation": {"jitter": 1.0}}, "which pssr does not make"),
        ("niiv", {"encoder": "resnet.pth"}, "only pssr has one"),
        ("pssr", {"encoder": "/dev/null"}, "weights /dev/null"),
        ("niiv", {"augmentation": {"rotation": 5.0}}, "of mode supervised"),
        (
            "niiv",
            {"augmentation": {"missing": 1.5}},
            "missing, filled, blank and chance of at most 1",
        ),
        ("srunet", {"patch": [32, 1, 31]}, "multiples of"),
    ],
)
def test_what_cannot_be_trained_is_refused(arch, changes, says, source, tmp_path):
    with pytest.raises(UsageError, match=says):
        train(config(arch, source, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()
