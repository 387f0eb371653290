"""Checkpoint folders: what is saved comes back, and what was changed is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isochunk.errors import ModelError
from isochunk.models.checkpoint import (
    MODEL_FILE,
    WEIGHTS_FILE,
    Card,
    load_module,
    read_spec,
    save,
)
from isochunk.models.fsrcnn import FSRCNN, FSRCNNConfig
from isochunk.models.load import checkpoint_folder, describe
from isochunk.models.srunet import SRUNet, SRUNetConfig

torch.set_num_threads(1)

CARD = Card("small", "CC0-1.0", "a synthetic volume", training={"steps": 12, "psnr": 30.5})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(tmp_path / "model", SRUNet(SRUNetConfig.compact(4, 3, 2, residual="cubic")), CARD)
    return tmp_path / "model"


@pytest.mark.parametrize(
    "network",
    [
        SRUNet(SRUNetConfig.compact(2, 3, 2, factor=10)),
        SRUNet(SRUNetConfig.paper(1, 2, 2)),
        FSRCNN(FSRCNNConfig.compact(3, 2, 2, residual="linear")),
    ],
    ids=["compact", "paper", "fsrcnn"],
)
def test_a_network_comes_back_with_its_answers(network, tmp_path):
    spec = save(tmp_path, network, CARD)
    again = load_module(tmp_path)
    x = torch.rand(1, 1, *(8 * g for g in network.alignment))
    with torch.inference_mode():
        torch.testing.assert_close(again(x), network(x), rtol=0, atol=0)
    assert again.config == network.config
    assert not again.training
    assert spec == read_spec(tmp_path) == describe(str(tmp_path))
    assert spec.name == "small"
    assert spec.arch == type(network).__name__.lower()
    assert spec.factor == network.factor
    assert spec.licence == "CC0-1.0"
    assert spec.parameters == sum(p.numel() for p in network.parameters())
    assert spec.exact


def test_saving_again_replaces_and_leaves_nothing_else(folder):
    before = read_spec(folder)
    save(folder, SRUNet(SRUNetConfig.compact(4, 3, 2)), CARD)
    assert read_spec(folder).sha256 != before.sha256
    assert sorted(path.name for path in folder.iterdir()) == [MODEL_FILE, WEIGHTS_FILE]


def test_digest_covers_answers_and_not_the_card(folder, tmp_path):
    network = load_module(folder)
    first = read_spec(folder).sha256
    same = save(tmp_path / "renamed", network, Card("other", "MIT", "elsewhere"))
    assert same.sha256 == first
    with torch.no_grad():
        network.last.bias += 1e-3
    assert save(tmp_path / "changed", network, CARD).sha256 != first


def test_half_precision_halves_the_file_and_little_else(tmp_path):
    network = load_module(checkpoint_folder("fsrcnn-z4"))
    save(tmp_path / "full", network, CARD)
    save(tmp_path, network, CARD, half=True)
    full, half = (path.stat().st_size for path in sorted(tmp_path.rglob(WEIGHTS_FILE)))
    assert half < 0.6 * full
    rounded = load_module(tmp_path)
    for mine, theirs in zip(rounded.parameters(), network.parameters(), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs.half().float(), rtol=0, atol=0)
    x = torch.rand(1, 1, *(8 * g for g in network.alignment))
    with torch.inference_mode():
        assert 0 < (rounded(x) - network(x)).abs().max() < 1e-3
    name, first = next(network.named_parameters())
    first.detach().fill_(7e4)
    with pytest.raises(ModelError, match=rf"cannot hold {name}, .*half = false"):
        save(tmp_path, network, CARD, half=True)


def test_reading_a_spec_needs_no_torch(folder):
    code = (
        "import sys, pathlib; from isochunk.models.load import describe;"
        f"print(describe({str(folder)!r}).halo); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["(9, 26, 26)", "False"]


def test_nothing_is_pickled(folder):
    assert load_file(folder / WEIGHTS_FILE).keys() == load_module(folder).state_dict().keys()
    assert json.loads((folder / MODEL_FILE).read_text())["card"]["training"]["steps"] == 12


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(folder: Path, **changes) -> None:
    told = json.loads((folder / MODEL_FILE).read_text())
    told["model"].update(changes)
    (folder / MODEL_FILE).write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip(f / WEIGHTS_FILE), "has sha256 .* but model.json records"),
        (lambda f: (f / WEIGHTS_FILE).write_bytes(b""), "has sha256"),
        (lambda f: (f / WEIGHTS_FILE).unlink(), "cannot be read"),
        (lambda f: (f / MODEL_FILE).unlink(), "holds no model.json"),
        (lambda f: (f / MODEL_FILE).write_text("{"), "cannot be read"),
        (lambda f: (f / MODEL_FILE).write_text("[]"), "cannot be read"),
        (lambda f: edit(f, arch="gan"), "architecture 'gan'"),
        (lambda f: edit(f, factor=["four", "1", "1"]), "cannot be read"),
    ],
)
def test_what_planning_refuses(folder, damage, message):
    damage(folder)
    for use in (read_spec, load_module, lambda f: describe(str(f))):
        if use is load_module and message == "cannot be read" and (folder / MODEL_FILE).exists():
            continue
        with pytest.raises(ModelError, match=message):
            use(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"halo": [8, 26, 26]}, r"declares halo \[8, 26, 26\].* have \[9, 26, 26\]"),
        ({"config": {"depth": 3}}, "do not fit"),
        ({"config": {**{"width": 4}, "levels": 3}}, "do not fit"),
        ({"arch": "fsrcnn"}, "do not fit"),
    ],
)
def test_what_loading_refuses(folder, change, message):
    edit(folder, **change)
    with pytest.raises(ModelError, match=message):
        load_module(folder)


def test_weights_of_another_width_are_refused(folder, tmp_path):
    told = json.loads((folder / MODEL_FILE).read_text())
    edit(folder, config={**told["model"]["config"], "width": 5})
    with pytest.raises(ModelError, match="size mismatch"):
        load_module(folder)


def test_only_known_networks_are_saved(tmp_path):
    class Mine(SRUNet):
        pass

    with pytest.raises(ModelError, match="Mine cannot be saved"):
        save(tmp_path, Mine(SRUNetConfig.compact(1, 2, 1)), CARD)


def test_a_name_that_is_nothing_lists_what_there_is():
    with pytest.raises(ModelError, match="identity, nearest, linear, cubic"):
        describe("srunet-of-nobody")
