"""A training for sections that are means and for sections that are samples, of one network."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import write_source
from trainings import SMALL

from isochunk.core.spec import Intensity
from isochunk.core.synthetic import synthetic_pair
from isochunk.errors import UsageError
from isochunk.evaluation.config import EvaluateConfig
from isochunk.evaluation.evaluate import evaluate
from isochunk.models.checkpoint import load_module, read_spec
from isochunk.storage.open import open_volume
from isochunk.train.config import TrainConfig
from isochunk.train.data import Crops, Source, validation_crops
from isochunk.train.loop import sampling_of
from isochunk.train.presets import config_from_table
from isochunk.train.training import train

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    _, voxels = synthetic_pair((24, 96, 200), 4, seed=2)
    return write_source(f"{tmp_path_factory.mktemp('volume')}/em", voxels, "8,8,8")


def config(source: str, out: Path, **changes: Any) -> TrainConfig:
    table = {
        "arch": "anyz",
        "sources": [source],
        "out": str(out),
        "factor": [2, "5/2", 4],
        "degradation": "avg+skip",
        "network": {"width": 8, "blocks": 1, "decoded": 8, "bases": 4, "hidden": 8},
        "steps": 60,
        "patch": [40, 24, 24],
        "border": [4, 2, 2],
        "batch": 2,
        "device": "cpu",
        "optimisation": {"lr": 4e-3, "average": 0.9, "warmup": 0, "anneal": 0},
        "keeping": {"validate_every": 30, "crops": 12, "save_every": 30},
    }
    return config_from_table({**table, **changes})


def test_each_step_draws_how_its_sections_came_about(source: str, tmp_path: Path) -> None:
    wanted = config(source, tmp_path / "out")
    volume = open_volume(source)
    sampling = sampling_of(wanted)
    crops = Crops((Source(volume, Intensity()),), (volume.spec.box,), sampling)
    seen = [crops.batch(step) for step in range(40)]
    drawn = {(batch.factor, batch.phase) for batch in seen}
    assert drawn == {(f, p) for f in wanted.factors for p in ("mean", "sample")}
    for batch in seen:
        if batch.phase == "sample" and batch.factor.denominator == 1:
            picked = batch.target[:, :, :: int(batch.factor)]
            noise = float((batch.coarse - picked).std())
            assert noise < 2 * wanted.augmentation.noise
    held_out = validation_crops((crops.sources[0],), (volume.spec.box,), sampling, 6)
    assert {(b.factor, b.phase) for b in held_out} == drawn


@pytest.mark.slow
def test_one_training_leaves_a_checkpoint_for_each(source: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = train(config(source, out))
    assert report.best_psnr > report.cubic_psnr
    mean, sample = read_spec(out), read_spec(out / "sample")
    assert (mean.phase, sample.phase) == ("mean", "sample")
    assert (mean.name, sample.name) == ("out", "out-sample")
    assert mean.sha256 != sample.sha256
    states = [load_module(folder).state_dict() for folder in (out, out / "sample")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for folder, degradation in ((out, "avg"), (out / "sample", "skip")):
        found = evaluate(
            EvaluateConfig(source, (str(folder),), factor=Fraction(4), degradation=degradation)
        )
        psnr = {row.model: row.psnr for row in found.figures}
        assert psnr[str(folder)] > psnr["cubic"], degradation


@pytest.mark.parametrize("arch", ["niiv", "a2i"])
def test_a_network_that_is_not_told_learns_one(arch: str, source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{arch} is not told how sections came about"):
        config(
            source,
            tmp_path / "out",
            arch=arch,
            network=SMALL[arch],
            patch=[32, 1, 32],
            border=[0, 0, 0],
        )


def test_a_degradation_that_is_not_known_is_named(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'avg\+mean' is unknown for anyz"):
        config(source, tmp_path / "out", degradation="avg+mean")
