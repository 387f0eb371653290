"""Training as a user runs it: from stored volumes, killed, resumed, and refused where it must."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import write_source
from safetensors.torch import load_file

from isochunk.core.geometry import Box
from isochunk.core.spec import Intensity
from isochunk.errors import TargetConflictError, UsageError
from isochunk.models.checkpoint import WEIGHTS_FILE, read_spec
from isochunk.models.load import baselines, checkpoint_folder, shipped
from isochunk.storage.open import open_volume
from isochunk.train.apply import build
from isochunk.train.augment import Augmentation
from isochunk.train.config import Keeping, Optimisation, TrainConfig
from isochunk.train.data import Crops, Sampling, Source, read_ahead, read_crop, split
from isochunk.train.fingerprint import fingerprint
from isochunk.train.pairs import Sectioned
from isochunk.train.presets import config_from_table, read_recipe
from isochunk.train.schedule import learning_rate
from isochunk.train.training import train

torch.set_num_threads(1)

LONG = 300
"""Steps of a training that is still going on when it is killed."""

RECIPE = """
sources = ["{source}"]
out = "{out}"
arch = "srunet"
factor = 4
steps = {steps}
batch = 2
patch = [16, 16, 16]
normalisation = "standard"
device = "cpu"
seed = 3
[network]
variant = "compact"
width = 2
levels = 2
convs = 1
residual = "linear"
[augmentation]
contrast = 0.2
brightness = 0.2
noise = 0.1
[optimisation]
lr = 3e-3
period = 50
average = 0.9
[keeping]
validate_every = 20
crops = 4
save_every = 10
"""

RUN = """
import sys, torch
torch.set_num_threads(1)
from isochunk.train.training import train
from isochunk.train.presets import config_from_table, read_recipe
print(train(config_from_table(read_recipe(sys.argv[1]))).stopped)
"""


SHAPE = (48, 48, 112)


def blobs() -> np.ndarray:
    """Smooth structure with noise: something that can be learnt."""
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[tuple(map(slice, SHAPE))] / 1.8
    waves = np.sin(z + np.cos(y)) + np.sin(y * 0.7 + x) + np.cos(x * 0.9 - z)
    return np.clip(128 + 30 * waves + rng.normal(0, 2, waves.shape), 1, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return write_source(f"{tmp_path_factory.mktemp('volume')}/blobs", blobs(), "10,10,10")


def config(source: str, out: Path, steps: int = 40) -> TrainConfig:
    file = out.parent / f"{out.name}.toml"
    file.write_text(RECIPE.format(source=source, out=out, steps=steps))
    return config_from_table(read_recipe(str(file)))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "training" / "state.pt", weights_only=True)["network"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def start(out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(out.parent / f"{out.name}.toml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wait_for_state(process: subprocess.Popen[str], out: Path) -> None:
    limit = time.monotonic() + 120
    while not (out / "training" / "state.pt").exists():
        assert process.poll() is None, "training ended before it saved its state"
        assert time.monotonic() < limit, "training saved no state"
        time.sleep(0.01)


def test_training_beats_cubic_and_lowers_the_loss(source, tmp_path):
    wanted = config(source, tmp_path / "out", steps=120)
    report = train(wanted)
    history = torch.load(tmp_path / "out/training/state.pt", weights_only=True)["history"]
    assert report.stopped == "finished"
    assert report.step == 120
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert report.best_psnr == max(entry["validation_psnr"] for entry in history)
    assert report.best_psnr > report.cubic_psnr + 1
    spec = read_spec(tmp_path / "out")
    assert (spec.arch, spec.factor, spec.phase) == ("srunet", (4, 1, 1), "mean")
    assert spec.normalisation == "standard"


def test_same_seed_same_weights_other_seed_others(source, tmp_path):
    for name in "ab":
        train(config(source, tmp_path / name))
    train(replace(config(source, tmp_path / "c"), seed=4))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("training") / "undisturbed"
    train(config(source, out, LONG))
    return out


@pytest.mark.slow
def test_killed_training_ends_with_the_weights_of_an_undisturbed_one(source, undisturbed, tmp_path):
    killed = tmp_path / "undisturbed"  # the folder's name is the model's
    config(source, killed, LONG)
    first = start(killed)
    wait_for_state(first, killed)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL, "it was killed before it could finish"
    second = start(killed)
    said, _ = second.communicate(timeout=120)
    assert said.strip() == "finished"
    assert same(weights(undisturbed), weights(killed))
    for name in ("weights.safetensors", "model.json"):
        assert (undisturbed / name).read_bytes() == (killed / name).read_bytes()


@pytest.mark.slow
def test_sigterm_saves_the_state_and_the_same_command_goes_on(source, undisturbed, tmp_path):
    asked = tmp_path / "asked"
    wanted = config(source, asked, LONG)
    process = start(asked)
    wait_for_state(process, asked)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert said.strip() == "terminated"
    assert process.returncode == 0
    assert train(wanted).stopped == "finished"
    assert same(weights(undisturbed), weights(asked))


def test_more_steps_go_on_from_fewer(source, tmp_path):
    train(config(source, tmp_path / "all", 60))
    train(config(source, tmp_path / "parts", 30))
    train(config(source, tmp_path / "parts", 60))
    assert same(weights(tmp_path / "all"), weights(tmp_path / "parts"))


def test_the_end_may_be_annealed_while_training_runs(source, tmp_path):
    train(config(source, tmp_path / "parts", 30))
    wanted = config(source, tmp_path / "parts", 60)
    annealed = replace(wanted, optimisation=replace(wanted.optimisation, anneal=20))
    train(annealed)
    train(replace(annealed, out=str(tmp_path / "all")))
    assert same(weights(tmp_path / "all"), weights(tmp_path / "parts"))


def test_another_config_does_not_overwrite_a_training(source, tmp_path):
    wanted = config(source, tmp_path / "out", 20)
    train(wanted)
    before = weights(tmp_path / "out")
    with pytest.raises(TargetConflictError, match=r"seed: 3 there, 5 now.*another out folder"):
        train(replace(wanted, seed=5))
    assert same(before, weights(tmp_path / "out"))


def test_divergence_stops_and_keeps_the_last_good_snapshot(source, tmp_path):
    wanted = config(source, tmp_path / "out", 40)
    train(wanted)
    good = (tmp_path / "out" / "weights.safetensors").read_bytes()
    state = torch.load(tmp_path / "out/training/state.pt", weights_only=True)
    next(iter(state["network"].values()))[:] = math.nan
    torch.save(state, tmp_path / "out/training/state.pt")
    report = train(replace(wanted, steps=80))
    assert report.stopped == "diverged"
    assert report.step == 40
    assert (tmp_path / "out" / "weights.safetensors").read_bytes() == good


def test_weights_that_are_not_finite_are_never_kept(source, tmp_path):
    wanted = config(source, tmp_path / "out", 40)
    often = replace(wanted.keeping, save_every=1, validate_every=1)
    wild = replace(wanted.optimisation, lr=math.inf)
    report = train(replace(wanted, keeping=often, optimisation=wild))
    assert report.stopped == "diverged"
    assert not (tmp_path / "out" / "training" / "state.pt").exists()
    assert not (tmp_path / "out" / "last").exists()


def test_weights_are_kept_in_half_precision_where_asked_and_learnt_in_full(source, tmp_path):
    wanted = config(source, tmp_path / "full", 12)
    half = replace(wanted, out=str(tmp_path / "half"), keeping=replace(wanted.keeping, half=True))
    train(wanted)
    train(replace(half, steps=6))
    train(half)  # goes on with what was not rounded
    full, rounded = (load_file(tmp_path / o / "last" / WEIGHTS_FILE) for o in ("full", "half"))
    for name, value in full.items():
        torch.testing.assert_close(rounded[name], value.half(), rtol=0, atol=0)


def test_training_leaves_torchs_generator_alone(source, tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    train(config(source, tmp_path / "out", 1))
    assert torch.equal(torch.rand(3), expected)


def sampling_of(batch: int, augmentation: Augmentation, seed: int) -> Sampling:
    averages = ((1, 1, 1), (2, 2, 2))
    pairing = Sectioned("avg", augmentation)
    patch, factors = (16, 16, 16), (Fraction(4),)
    return Sampling(patch, batch, factors, averages, augmentation, seed, (pairing,))


def test_crops_are_functions_of_seed_step_and_place(source):
    volume = open_volume(source)
    sampling = sampling_of(3, Augmentation(0.1, 0.1, 0.1), 7)
    sources = (Source(volume, Intensity()),)
    part = Box((0, 0, 0), (48, 48, 44))
    crops, again = (Crops(sources, (part,), sampling) for _ in range(2))
    later = [again.batch(step) for step in (5, 4, 3)]
    for step, batch in zip((5, 4, 3), later, strict=True):
        assert torch.equal(crops.batch(step).target, batch.target)
        assert torch.equal(crops.batch(step).coarse, batch.coarse)
    assert crops.batch(0).target.shape == (3, 1, 16, 16, 16)
    assert crops.batch(0).coarse.shape == (3, 1, 4, 16, 16)
    assert not torch.equal(crops.batch(0).target, crops.batch(1).target)


def test_processes_share_a_batch(source):
    sampling = sampling_of(4, Augmentation(0.1, 0.1, 0.1), 7)
    part = Box((0, 0, 0), (48, 48, 44))
    sources = (Source(open_volume(source), Intensity()),)
    whole = Crops(sources, (part,), sampling).batch(2)
    for rank in (0, 1):
        mine = Crops(sources, (part,), replace(sampling, rank=rank, ranks=2)).batch(2)
        assert torch.equal(mine.target, whole.target[rank::2])
        assert torch.equal(mine.coarse, whole.coarse[rank::2])


def test_crops_stay_inside_their_part(source):
    class Watched:
        def __init__(self, volume):
            self.spec, self._volume, self.boxes = volume.spec, volume, []

        def read(self, box, level=0):
            self.boxes.append(box)
            return self._volume.read(box, level)

    watched = Watched(open_volume(source))
    part = Box((0, 0, 10), (48, 48, 43))
    sampling = sampling_of(4, Augmentation(), 0)
    crops = Crops((Source(watched, Intensity()),), (part,), sampling)
    for step in range(60):
        crops.batch(step)
    assert all(box in part for box in watched.boxes)
    assert {box.shape for box in watched.boxes} == {(16, 16, 16), (32, 32, 32)}
    small = [box for box in watched.boxes if box.shape == (16, 16, 16)]
    assert {box.lo[2] for box in small} == set(range(10, 28))  # every place can be drawn


def test_read_crop_averages_and_normalises(source):
    crop = read_crop(
        Source(open_volume(source), Intensity(100.0, 20.0)), (3, 4, 5), (4, 3, 2), (2, 2, 4)
    )
    stored = blobs()[3:11, 4:10, 5:13].astype(np.float64)
    expected = (stored.reshape(4, 2, 3, 2, 2, 4).mean((1, 3, 5)) - 100) / 20
    np.testing.assert_allclose(crop, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_split_is_70_15_15_and_a_partition(axis):
    box = Box((5, 6, 7), (105, 106, 107))
    parts = split(box, axis)
    assert [part.shape[axis] for part in parts] == [70, 15, 15]
    assert sum(part.size for part in parts) == box.size
    assert all((a & b).size == 0 for a in parts for b in parts if a is not b)


def test_read_ahead_keeps_order_and_bounds_what_is_held():
    lock, started, most, taken = threading.Lock(), 0, 0, 0

    def make(step: int) -> int:
        nonlocal started, most
        with lock:
            started += 1
            most = max(most, started - taken)
        time.sleep(0.002 * (step % 3))
        return step

    steps = []
    for step in read_ahead(make, range(40), depth=4):
        steps.append(step)
        with lock:
            taken += 1
    assert steps == list(range(40))
    assert 2 <= most <= 5


def test_read_ahead_passes_errors_on():
    def make(step: int) -> int:
        if step == 3:
            raise OSError("gone")
        return step

    ahead = read_ahead(make, range(10), depth=2)
    assert list(islice(ahead, 3)) == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(ahead)


def test_schedules():
    paper = Optimisation(lr=1e-4, period=100)
    assert [learning_rate(paper, step, 1000) for step in (0, 99, 300)] == [1e-4, 1e-4, 5e-5]
    warm = Optimisation(lr=1.0, warmup=4)
    assert [learning_rate(warm, step, 10) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    anneal = Optimisation(lr=1.0, anneal=4)
    assert [learning_rate(anneal, step, 10) for step in (5, 6, 8, 9)] == [1, 1, 0.5, 0.25]
    cosine = Optimisation(lr=1.0, schedule="cosine")
    assert [learning_rate(cosine, step, 10) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


def test_defaults_are_the_papers():
    paper = config_from_table(
        {"sources": ["a"], "out": "b", "network": {"width": 64, "levels": 3, "convs": 3}}
    )
    assert (paper.patch, paper.batch, paper.steps) == ((64, 64, 64), 6, 290_000)
    assert (paper.optimisation.lr, paper.optimisation.schedule) == (1e-4, "sqrt")
    assert (paper.degradation, paper.network.factor, paper.mode) == ("avg", 4, "supervised")
    assert paper.augmentation == Augmentation(0, 0, 0)
    parameters = sum(p.numel() for p in build(paper.network, 0).parameters())
    assert round(parameters / 1e6, 3) == 21.288  # Table 2, h3 w64 d3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": 1}, "unknown field colour"),
        ({"mode": "blind"}, "choose one of supervised, self"),
        ({"mode": "self"}, "choose network variant planar"),
        ({"arch": "vdsr"}, "choose one of a2i, anyz, diffusion, fsrcnn, srunet"),
        ({"degradation": "em"}, "'em' is unknown for srunet; choose one of avg, skip, psf"),
        ({"precision": "int8"}, "choose one of fp32, bf16, fp16"),
        ({"factor": "four"}, "'four' is no number"),
        ({"factor": [2, 4]}, "one whole factor; got 2, 4"),
        ({"factor": "5/2"}, "one whole factor; got 5/2"),
        ({"keeping": {"crops": 0}}, "at least 1"),
        ({"loss": {"pixel": "l3"}}, "'l3' is unknown"),
        ({"loss": {"weight": 0}}, "weight > 0"),
        ({"loss": 1}, "loss must be a table"),
        ({"factor": 3}, "64 voxels along z is no multiple of the network's factor 3"),
        ({"factor": 4, "network": {"factor": 2}}, "got 4 and network.factor 2"),
        ({"network": {"width": "wide"}}, "network srunet: a value of the wrong kind"),
        ({"network": {"variant": "huge"}}, "choose one of paper, compact, planar"),
        ({"patch": [64, 64, 32]}, "must be square"),
        ({"border": [32, 0, 0]}, "leaves nothing of a patch of 64 voxels along z"),
        ({"sources": []}, "no source"),
        ({"steps": 0}, "at least 1"),
        ({"steps": "many"}, "wrong kind"),
        ({"patch": [64, 64]}, "wrong kind"),
        ({"augmentation": {"fog": 1}}, "augmentation: unknown field fog"),
        ({"optimisation": {"lr": -1}}, "lr > 0"),
        ({"optimisation": {"clip": -1.0}}, "clip -1.0 must be"),
        ({"optimisation": {"schedule": "step"}}, "'step' is unknown"),
        ({"degradation": "skip", "network": {"phase": "mean"}}, "lie at network phase 'sample'"),
    ],
)
def test_configs_that_cannot_train_are_refused(changes, says):
    table = {"sources": ["a"], "out": "b", "network": {"width": 4, "levels": 2, "convs": 1}}
    with pytest.raises(UsageError, match=says):
        config_from_table({**table, **changes})


def test_unknown_recipe_names_the_committed_ones():
    with pytest.raises(UsageError, match=r"there are a2i, .*heinrich-fsrcnn.*srunet-z4-self"):
        read_recipe("no-such-recipe")


@pytest.mark.parametrize("name", [name for name, _ in (*shipped(), *baselines())])
def test_recipe_of_a_shipped_network_is_the_one_it_records(name):
    card = json.loads((checkpoint_folder(name) / "model.json").read_text())["card"]
    name = name.removesuffix("-sample")  # of a training of two kinds of sections
    recipe = config_from_table(read_recipe(name))
    assert "10.1371/journal.pone.0125825" in recipe.trained_on == card["trained_on"]
    assert recipe.name == name
    assert recipe.steps == card["training"]["steps"]
    told = fingerprint(recipe)
    del told["sources"]
    for key in card["training"].keys() & told.keys():
        mine, theirs = told[key], card["training"][key]
        if isinstance(theirs, dict):  # what older checkpoints did not yet have to say
            mine = {field: mine[field] for field in theirs}
        assert mine == theirs, key


def test_committed_recipe_runs_on_its_volume(shared_data, tmp_path):
    recipe = config_from_table(read_recipe("srunet-z4"))
    report = train(
        replace(
            recipe,
            sources=(str(shared_data / Path(recipe.sources[0]).name),),
            out=str(tmp_path / "out"),
            steps=3,
            keeping=Keeping(validate_every=3, crops=2, save_every=3),
        )
    )
    # The residual over cubic is where training starts, so three steps do not leave it far.
    assert report.best_psnr == pytest.approx(report.cubic_psnr, abs=0.5)
    assert read_spec(tmp_path / "out").trained_on == recipe.trained_on


def test_volume_smaller_than_a_patch_is_refused(source, tmp_path):
    wanted = replace(config(source, tmp_path / "out"), patch=(16, 64, 64))
    with pytest.raises(UsageError, match=r"has 48 voxels along y, but a crop needs 64"):
        train(wanted)


def test_averaging_counts_towards_the_room_a_crop_needs(source, tmp_path):
    wanted = replace(config(source, tmp_path / "out"), averages=((4, 4, 4),))
    with pytest.raises(UsageError, match=r"48 voxels along z, but a crop needs 64"):
        train(wanted)


def test_constant_volume_is_refused(tmp_path):
    flat = np.full(SHAPE, 7, np.uint8)
    url = write_source(f"{tmp_path}/flat", flat, "10,10,10")
    with pytest.raises(UsageError, match="constant"):
        train(config(url, tmp_path / "out"))
    with pytest.raises(UsageError, match="constant"):
        train(replace(config(url, tmp_path / "out"), normalisation="range"))


def test_anisotropic_source_is_refused_unless_averaging_mends_it(tmp_path):
    url = write_source(f"{tmp_path}/flat", blobs(), "20,10,10")
    wanted = config(url, tmp_path / "out", 1)
    with pytest.raises(UsageError, match=r"20,10,10 nm .*needs an isotropic volume"):
        train(wanted)
    mended = replace(wanted, averages=((1, 2, 2),), patch=(8, 4, 4))
    assert train(mended).stopped == "finished"


def test_cuda_without_a_gpu_is_refused(source, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UsageError, match="no GPU"):
        train(replace(config(source, tmp_path / "out"), device="cuda"))
