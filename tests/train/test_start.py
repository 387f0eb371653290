"""Trainings that start from weights that are there: what they take, record and refuse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trainings import config, weights, write_em

from isochunk.errors import ModelError, TargetConflictError, UsageError
from isochunk.models.checkpoint import load_module, read_spec
from isochunk.models.load import checkpoint_folder
from isochunk.train.apply import build
from isochunk.train.fingerprint import fingerprint
from isochunk.train.presets import config_from_table, read_recipe
from isochunk.train.start import start_from
from isochunk.train.training import train

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An anisotropic volume, four times coarser along z."""
    return write_em(tmp_path_factory.mktemp("volume"))


@pytest.fixture(scope="module")
def trained(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that learnt something."""
    out = tmp_path_factory.mktemp("trained") / "first"
    train(config("niiv", source, out))
    return out


def test_it_goes_on_from_the_weights_it_is_given(source: str, trained: Path, tmp_path: Path):
    once = {"steps": 1, "optimisation": {"lr": 1e-9}}
    fresh = train(config("niiv", source, tmp_path / "fresh", **once))
    started = train(config("niiv", source, tmp_path / "more", **once, start=str(trained)))
    before = read_spec(trained)
    first = json.loads((trained / "model.json").read_text())["card"]["training"]
    assert started.best_psnr > fresh.best_psnr + 0.05
    assert started.best_psnr == pytest.approx(first["validation_psnr"], abs=1e-3)
    told = json.loads((tmp_path / "more" / "model.json").read_text())["card"]["training"]
    assert (told["start"], told["start_sha256"]) == (str(trained), before.sha256)
    assert {"start", "start_sha256"}.isdisjoint(first)


def test_a_resumed_training_does_not_start_again(source: str, trained: Path, tmp_path: Path):
    kept = shutil.copytree(trained, tmp_path / "kept")
    wanted = config("niiv", source, tmp_path / "parts", steps=10, start=str(kept))
    train(wanted)
    digest = read_spec(kept).sha256
    shutil.rmtree(kept)  # its weights are those of the state by now
    train(replace(wanted, steps=20))
    shutil.copytree(trained, kept)
    train(replace(wanted, steps=20, out=str(tmp_path / "all")))
    parts, whole = weights(tmp_path / "parts"), weights(tmp_path / "all")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    told = json.loads((tmp_path / "parts" / "model.json").read_text())["card"]["training"]
    assert told["start_sha256"] == digest


def test_without_hyperparameters_it_has_those_of_what_it_starts_from() -> None:
    table = {"arch": "anyz", "sources": ["em"], "out": "x", "factor": 10, "start": "anyz-z2-10"}
    assert config_from_table(table).network == load_module(checkpoint_folder("anyz-z2-10")).config
    wider = config_from_table({**table, "network": {"width": 48}}).network
    assert (wider.width, wider.changes) == (48, 0)
    with pytest.raises(UsageError, match=r"changes: 3 there, 0 now.*width: 24 there, 48 now"):
        start_from(build(wider, 0), "anyz-z2-10", "standard")
    assert config_from_table({**table, "start": "gone"}).network.changes == 0


def test_another_start_is_another_training(source: str, trained: Path, tmp_path: Path):
    wanted = config("niiv", source, tmp_path / "out", steps=5, start=str(trained))
    train(wanted)
    with pytest.raises(TargetConflictError, match=r"start: .*first there, None now"):
        train(replace(wanted, start=""))
    assert fingerprint(wanted)["start"] == str(trained)


@pytest.mark.parametrize(
    ("arch", "changes", "says"),
    [
        ("niiv", {"network": {"blocks": 3, "width": 16}}, r"blocks: 2 there, 3 now"),
        ("niiv", {"normalisation": "standard"}, "normalisation: range there, standard now"),
        ("srunet", {}, "arch: niiv there, srunet now"),
    ],
)
def test_weights_of_another_network_are_refused(
    arch: str, changes: dict, says: str, source: str, trained: Path, tmp_path: Path
):
    with pytest.raises(UsageError, match=says):
        train(config(arch, source, tmp_path / "out", start=str(trained), **changes))
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint_is_refused(source: str, trained: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="no model 'nowhere'"):
        train(config("niiv", source, tmp_path / "out", start="nowhere"))
    spoilt = shutil.copytree(trained, tmp_path / "spoilt")
    (spoilt / "weights.safetensors").write_bytes(b"\0" * 99)
    with pytest.raises(ModelError, match="was damaged or changed"):
        train(config("niiv", source, tmp_path / "out", start=str(spoilt)))
    with pytest.raises(UsageError, match="leave one of them out"):
        config("pssr", source, tmp_path / "out", start=str(trained), encoder="resnet34.pth")
    assert not (tmp_path / "out").exists()


def test_another_factor_is_refused(tmp_path: Path):
    table = {**read_recipe("srunet-z4"), "factor": 2}
    network = build(config_from_table(table).network, 0)
    with pytest.raises(UsageError, match=r"factor: 4 there, 2 now"):
        start_from(network, "srunet-z4", "standard")


@pytest.mark.parametrize("name", ["srunet-z4", "niiv-z2-10", "anyz-z2-10"])
def test_a_shipped_network_can_be_started_from_by_its_recipe(name: str):
    recipe = config_from_table({**read_recipe(name), "start": name})
    network = build(recipe.network, 1)
    digest = start_from(network, recipe.start, recipe.normalisation)
    assert digest == read_spec(checkpoint_folder(name)).sha256
    stored = load_module(checkpoint_folder(name)).state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in network.state_dict().items())
