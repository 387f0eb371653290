"""Networks on slices: volumes that teach themselves, any ratio, PSSR, and several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import noise, write_source
from PIL import Image
from trainings import SMALL, config, history, weights, write_em

from isochunk.core.geometry import Box
from isochunk.core.spec import Intensity
from isochunk.core.synthetic import synthetic_pair
from isochunk.errors import TargetConflictError, UsageError
from isochunk.models.a2i import A2IConfig
from isochunk.models.checkpoint import load_module, read_spec
from isochunk.models.degrade import degrade
from isochunk.models.interpolation import whole_axis_taps
from isochunk.models.registry import make
from isochunk.models.torch_interpolation import blended
from isochunk.storage.open import open_volume
from isochunk.train.apply import Application
from isochunk.train.augment import Augmentation
from isochunk.train.data import IN_PLACE, LATERAL, UPRIGHT, Crops, Sampling, Source
from isochunk.train.fingerprint import fingerprint
from isochunk.train.pairs import Sectioned
from isochunk.train.schedule import scheduled_stages
from isochunk.train.training import train

pytestmark = pytest.mark.slow

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """An anisotropic volume, four times coarser along z."""
    return write_em(tmp_path_factory.mktemp("volume"))


@pytest.mark.parametrize("arch", ["a2i", "niiv", "swinir", "srmd", "pssr-z", "srunet", "fsrcnn"])
def test_an_anisotropic_volume_teaches_itself(arch, source, tmp_path):
    out = tmp_path / "out"
    steps = {"a2i": 30, "swinir": 120}.get(arch, 60)
    rate = {"optimisation": {"lr": 1e-3}} if arch in ("a2i", "swinir") else {}
    report = train(config(arch, source, out, steps=steps, **rate))
    figures = [entry["validation_psnr"] for entry in history(out)]
    assert report.stopped == "finished"
    assert report.best_psnr > figures[0]
    # Each starts from what it adds to.
    assert report.best_psnr > (report.linear_psnr if arch == "niiv" else report.cubic_psnr) + 0.03
    spec = read_spec(out)
    assert spec.factor[0] == (4 if arch in ("srunet", "fsrcnn") else None)
    assert spec.plane == "xz"
    assert spec.halo[1] == 0  # slices know nothing of each other
    assert spec.halo[2] > 0
    record = json.loads((out / "model.json").read_text())["card"]["training"]
    assert record["factors"] == ["4"]  # how much coarser z is, where nothing else is said
    assert read_spec(out / "last").arch == arch


@pytest.mark.parametrize("arch", ["pssr", "pssr-mf"])
def test_pssr_learns_to_sharpen_sections(arch, tmp_path, caplog):
    coarse, _ = synthetic_pair((8, 96, 440), 4)
    source = write_source(f"{tmp_path}/em", coarse, "80,8,8")  # z does not matter to it
    report = train(config(arch, source, tmp_path / "out", batch=2))
    assert "z is coarser" not in caplog.text
    figures = [entry["validation_psnr"] for entry in history(tmp_path / "out")]
    assert report.best_psnr > figures[0] + 1
    spec = read_spec(tmp_path / "out")
    assert spec.factor == (1, 4, 4)
    assert spec.sections == (2 if arch == "pssr-mf" else 0)


def test_one_niiv_takes_every_ratio_it_was_trained_for(source, tmp_path):
    out = tmp_path / "out"
    report = train(config("niiv", source, out, factor="2,5/2,4,225/23,10", steps=80))
    assert report.best_psnr > report.linear_psnr
    assert read_spec(out).factor[0] is None
    slices = torch.rand(1, 1, 6, 40)
    with torch.no_grad():
        for factor in (Fraction(2), Fraction(7, 3), Fraction(225, 23)):
            answer = load_module(out).train_on(slices, factor)
            assert answer.shape == (1, 1, int(6 * factor), 40)


def test_crops_lie_anywhere_in_a_tile(tmp_path):
    crops = crops_of(noise((12, 20, 30)), tmp_path, LATERAL, (10, 1, 8))
    corners = [crops.batch(step).corner for step in range(40)]
    assert corners == [crops.batch(step).corner for step in range(40)]
    assert len({z % 32 for z, _ in corners}) > 15
    assert len({x % 32 for _, x in corners}) > 15


def test_validation_on_smaller_crops_than_are_trained_on(source, tmp_path):
    with pytest.raises(UsageError, match=r"validation part .* has 66 voxels along x"):
        train(config("niiv", source, tmp_path / "out", steps=2, patch=[80, 1, 80]))
    network = {**SMALL["niiv"], "tile": 80}
    with pytest.raises(
        UsageError, match="tiles of 80 pixels"
    ):  # validating on them excuses no patch
        config(
            "niiv",
            source,
            tmp_path / "out",
            network=network,
            patch=[48, 1, 48],
            keeping={"patch": [48, 1, 48]},
        )
    keeping = {"crops": 2, "patch": [48, 1, 40]}
    report = train(
        config("niiv", source, tmp_path / "out", steps=2, patch=[80, 1, 80], keeping=keeping)
    )
    assert report.stopped == "finished"


def test_pictures_show_curves_and_slices(source, tmp_path):
    train(config("niiv", source, tmp_path / "out", steps=20))
    curves = Image.open(tmp_path / "out/training/curves.png")
    samples = Image.open(tmp_path / "out/training/samples.png")
    assert len(curves.getcolors(1 << 20)) > 3
    assert samples.size[0] == 3 * (256 + 4)
    shown = np.asarray(samples.convert("L"))[24 : 24 + 256, :256]
    assert len({row.tobytes() for row in shown}) == 8  # eight sections, repeated


def crops_of(voxels: np.ndarray, tmp_path: Path, orders, patch) -> Crops:
    url = write_source(f"{tmp_path}/known", voxels)
    augmentation = Augmentation()
    pairing = Sectioned("avg", augmentation)
    factors = (Fraction(5, 2),)
    sampling = Sampling(patch, 2, factors, ((1, 1, 1),), augmentation, 0, (pairing,), orders)
    box = Box.from_shape(voxels.shape)
    return Crops((Source(open_volume(url), Intensity(0, 1)),), (box,), sampling)


@pytest.mark.parametrize("orders", [LATERAL, UPRIGHT])
def test_crops_have_the_networks_axes(orders, tmp_path):
    shape = (20, 24, 28)
    where = np.indices(shape)
    voxels = (where[0] * 1 + where[1] * 50 + where[2] * 1500).astype(np.uint16)
    crops = crops_of(voxels, tmp_path, orders, (12, 3, 9))
    seen = set()
    for step in range(12):
        batch = crops.batch(step)
        assert batch.coarse.shape == (2, 1, 4, 3, 9)  # floor(12 / 2.5) sections
        assert batch.target.shape == (2, 1, 10, 3, 9)
        torch.testing.assert_close(batch.coarse, degrade(batch.target, Fraction(5, 2), "avg"))
        for crop in batch.target[:, 0].numpy():
            along = [abs(np.diff(crop, axis=a)).reshape(-1)[0] for a in range(3)]
            seen.add(tuple({1: 0, 50: 1, 1500: 2}[int(step)] for step in along))
    assert seen == set(orders)


def test_turned_crops_have_no_empty_corners(tmp_path):
    plane = np.add.outer(np.zeros(3), np.add.outer(7 * np.arange(64), 3 * np.arange(64)) + 1)
    crops = crops_of(plane.astype(np.uint16), tmp_path, IN_PLACE, (3, 32, 32))
    turned = replace(crops.sampling, augmentation=Augmentation(rotation=30.0, zoom=0.5))
    assert turned.read == (3, 44, 44)
    crops = Crops(crops.sources, crops.parts, replace(turned, factors=(Fraction(3, 2),)))
    slopes = set()
    for step in range(8):
        for crop in crops.batch(step).target[:, 0].numpy():
            assert crop.shape == (3, 32, 32)
            assert crop.min() >= 1
            # A ramp stays one, turned and less steep: nothing was made up beyond the volume.
            across, along = np.diff(crop[0], axis=0), np.diff(crop[0], axis=1)
            assert np.ptp(across) < 0.01
            assert np.ptp(along) < 0.01
            slopes.add(round(float(np.hypot(across.mean(), along.mean())), 2))
    assert max(slopes) <= np.hypot(7, 3) + 0.01
    assert min(slopes) < np.hypot(7, 3) / 1.2
    assert len(slopes) == 16


def test_sections_seen_may_be_shifted_or_missing_but_not_the_target(tmp_path):
    voxels = np.random.default_rng(0).integers(1, 255, (8, 32, 64)).astype(np.uint8)
    plain = crops_of(voxels, tmp_path, LATERAL, (20, 1, 24))
    spoilt = Augmentation(jitter=0.7, missing=0.4)
    crops = Crops(plain.sources, plain.parts, replace(plain.sampling, augmentation=spoilt))
    lost = 0
    for step in range(6):
        good, bad = plain.batch(step), crops.batch(step)
        assert torch.equal(good.target, bad.target)
        gone = (bad.coarse == 0).flatten(3).all(3)
        lost += int(gone.sum())
        assert not torch.isclose(good.coarse, bad.coarse).flatten(3).all(3).any()
    assert 0.25 < lost / (6 * 2 * 8) < 0.55


@pytest.mark.parametrize(("degradation", "phase"), [("avg", "mean"), ("skip", "sample")])
@pytest.mark.parametrize("factor", [Fraction(4), Fraction(5, 2)])
def test_sections_lie_where_interpolation_puts_them(degradation, phase, factor):
    ramp = torch.arange(40.0).reshape(1, 1, 40, 1, 1).expand(1, 1, 40, 2, 3)
    sections = degrade(ramp, factor, degradation)
    restored = blended(sections, whole_axis_taps("linear", sections.shape[2], factor, phase))
    inner = slice(int(factor), 40 - 2 * int(factor))
    # A mean over parts of voxels is that of steps, not of the ramp itself.
    off = 1e-4 if factor == 4 or degradation == "skip" else 0.06
    torch.testing.assert_close(restored[:, :, inner], ramp[:, :, inner], atol=off, rtol=0)


def test_a2i_is_trained_on_slices_that_are_no_whole_windows():
    network = Application(make(A2IConfig(width=8, levels=2, heads=(1, 2), blocks=1)))
    answer = network(torch.rand(2, 1, 3, 2, 21), Fraction(225, 23), "mean")
    assert answer.shape == (2, 1, 29, 2, 21)
    assert answer.isfinite().all()


RUN = """
import sys, torch
torch.set_num_threads(1)
from isochunk.train.training import train
from isochunk.train.presets import config_from_table, read_recipe
print(train(config_from_table(read_recipe(sys.argv[1]))).stopped)
"""

RECIPE = """
arch = "{arch}"
sources = ["{source}"]
out = "{out}"
mode = "self"
factor = [2, "5/2", 4]
steps = 120
patch = [32, 1, 32]
batch = 4
device = "cpu"
[network]
{network}
[augmentation]
noise = 0.02
[optimisation]
lr = 1e-3
average = 0.9
[keeping]
validate_every = 50
crops = 4
save_every = 10
"""


def start(recipe: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(recipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("arch", ["a2i", "niiv", "diffusion"])
def test_killed_training_ends_with_the_weights_of_an_undisturbed_one(arch, source, tmp_path):
    network = "\n".join(f"{k} = {json.dumps(v)}" for k, v in SMALL[arch].items())
    outs = tmp_path / "undisturbed" / "model", tmp_path / "killed" / "model"
    recipes = []
    for out in outs:
        out.parent.mkdir()
        recipes.append(out.parent / "recipe.toml")
        recipes[-1].write_text(RECIPE.format(arch=arch, source=source, out=out, network=network))
    assert start(recipes[0]).communicate(timeout=200)[0].strip() == "finished"
    first = start(recipes[1])
    limit = time.monotonic() + 120
    while not (outs[1] / "training" / "state.pt").exists():
        assert first.poll() is None, "training ended before it saved its state"
        assert time.monotonic() < limit, "training saved no state"
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL, "it was killed before it could finish"
    assert start(recipes[1]).communicate(timeout=200)[0].strip() == "finished"
    for name in ("weights.safetensors", "model.json", "last/weights.safetensors"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_two_processes_train_the_same_network_as_one(source, tmp_path):
    options = [
        "--arch",
        "niiv",
        "--mode",
        "self",
        "--source",
        source,
        "--out",
        "both",
        "--blocks",
        "2",
        "--width",
        "16",
        "--hidden",
        "32",
        "--layers",
        "2",
        "--steps",
        "8",
        "--patch",
        "32,1,32",
        "--batch",
        "4",
        "--device",
        "cpu",
        "--lr",
        "1e-3",
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "isochunk.cli",
            "train",
            *options,
            "--json",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)  # one of the two speaks
    assert report["stopped"] == "finished"
    alone = config(
        "niiv",
        source,
        tmp_path / "alone",
        steps=8,
        network={**SMALL["niiv"], "residual": False},
        optimisation={"lr": 1e-3},
    )
    train(alone)
    one, both = weights(tmp_path / "alone"), weights(tmp_path / "both")
    for name, value in one.items():
        torch.testing.assert_close(both[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("precision", "steps"), [("bf16", 60), ("fp16", 60)])
def test_half_precision_learns_too(precision, steps, source, tmp_path):
    report = train(config("niiv", source, tmp_path / "out", precision=precision, steps=steps))
    assert report.best_psnr > report.linear_psnr


def test_progressive_resizing_resumes_where_it_stopped(source, tmp_path):
    stages = [
        {"share": 1, "patch": [1, 64, 64], "batch": 2, "lr": 1e-3, "encoder_lr": 0},
        {"share": 2, "patch": [1, 64, 64], "batch": 1, "lr": 1e-3, "encoder_lr": 1e-4},
    ]
    whole = config(
        "pssr",
        source,
        tmp_path / "out",
        steps=10,
        stages=stages,
        optimisation={"lr": 1e-3, "schedule": "onecycle"},
    )
    assert [span.stop for span in scheduled_stages(whole)] == [2, 10]
    train(whole)
    assert fingerprint(whole)["steps"] == 10  # the rates depend on it
    with pytest.raises(TargetConflictError, match="steps: 10 there, 12 now"):
        train(replace(whole, steps=12))
