"""The shipped networks: what they gain on a cube that none was trained on, and what they say."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import write_source
from PIL import Image

from isochunk.core.geometry import Box
from isochunk.core.spec import AXIAL
from isochunk.evaluation.evaluate import EvaluateConfig, evaluate
from isochunk.evaluation.results import ModelFigures
from isochunk.models.load import (
    BASELINES,
    RETIRED,
    SHIPPED,
    Runtime,
    baselines,
    checkpoint_folder,
    describe,
    load,
    shipped,
)
from isochunk.storage.open import open_volume

torch.set_num_threads(1)

ALL = dict((*shipped(), *baselines()))
NAMES = [*ALL]
MIDDLE = Box((60, 60, 60), (156, 156, 156))

GAINS = {
    "a2i-z2-10": [("4", "avg", 1.15), ("2", "avg", 0.2), ("225/23", "avg", 0.35)],
    "anyz-z2-10": [
        ("4", "avg", 1.45),
        ("2", "avg", 0.35),
        ("8", "avg", 1.05),
        ("225/23", "avg", 0.5),
    ],
    "anyz-z2-10-sample": [("8", "skip", 0.85)],
    "anyz-z4": [("4", "avg", 1.5)],
    "swinir-z2-10": [("4", "avg", 0.9)],
    "srmd-z2-10": [("4", "avg", 0.65)],
    "fsrcnn-z4": [("4", "avg", 1.4)],
    "niiv-z2-10": [
        ("4", "avg", 1.2),
        ("2", "avg", 0.3),
        ("8", "avg", 0.8),
        ("225/23", "avg", 0.3),
    ],
    "niiv-z2-10-robust": [
        ("4", "avg", 1.1),
        ("2", "avg", 0.15),
        ("8", "avg", 0.7),
        ("225/23", "avg", 0.25),
    ],
    "srunet-z4": [("4", "avg", 1.45)],
}
"""By name: factor, degradation, and least gain in dB over the better of linear and cubic."""


SLOW = ("diffusion-z2-10", "pssr-z2-10")
"""Read far beyond a block; see tests/evaluation/test_evaluate.py for these."""


def rows(config: EvaluateConfig) -> dict[str, ModelFigures]:
    return {row.model: row for row in evaluate(config).figures}


def test_every_shipped_network_is_promised_something() -> None:
    assert sorted([*GAINS, *SLOW]) == sorted(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "factor", "degradation", "gain"),
    [(name, *promise) for name, promises in GAINS.items() for promise in promises],
)
def test_it_beats_interpolation_on_a_cube_it_never_saw(
    shared_data: Path, name: str, factor: str, degradation: str, gain: float
) -> None:
    truth = str(shared_data / "medulla_fibsem_250.ome.zarr")
    found = rows(
        EvaluateConfig(
            truth,
            (name,),
            factor=Fraction(factor),
            degradation=degradation,
            box=MIDDLE,
            plane="xz+yz",
        )
    )
    linear, cubic, network = (found[row] for row in ("linear", "cubic", name))
    if degradation == "avg":
        assert linear.psnr < cubic.psnr
        assert linear.ssim < cubic.ssim
    best = max((linear, cubic), key=lambda row: row.psnr)
    assert network.psnr > best.psnr + gain
    assert network.wpsnr > best.wpsnr + gain / 2
    assert network.ssim > best.ssim
    assert network.cf_psnr > best.cf_psnr


@pytest.mark.slow
@pytest.mark.parametrize("change", ["darker", "gamma", "16 bits"])
@pytest.mark.parametrize("name", [name for name, _ in shipped()])
def test_it_beats_interpolation_at_other_contrasts(
    shared_data: Path, tmp_path: Path, name: str, change: str
) -> None:
    volume = open_volume(str(shared_data / "medulla_fibsem_250.ome.zarr"))
    voxels = volume.read(Box((60, 60, 60), (140, 140, 140)))
    if change == "darker":
        voxels = np.rint(voxels * 0.4 + 10).astype(np.uint8)
    elif change == "gamma":
        voxels = np.rint(255 * (voxels / 255) ** 2).astype(np.uint8)
    else:
        voxels = voxels.astype(np.uint16) * 90 + 3000
    truth = write_source(f"{tmp_path}/changed", voxels, "10,10,10")
    factor, degradation, gain = GAINS[name][0]
    found = rows(EvaluateConfig(truth, (name,), factor=Fraction(factor), degradation=degradation))
    least = gain / 2 if degradation == "skip" else max(gain / 2, 0.7)
    assert found[name].psnr > max(found["linear"].psnr, found["cubic"].psnr) + least


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_by_name(name: str) -> None:
    spec = describe(name)
    assert spec == ALL[name]
    fixed = spec.for_factor((spec.factor[0] or Fraction(225, 23), Fraction(1), Fraction(1)))
    assert load(name, Runtime(fixed.resolved_factor)).spec == fixed


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    spec, card = describe(name), (checkpoint_folder(name) / "CARD.md").read_text()
    assert (spec.name, spec.normalisation, spec.exact) == (name, "standard", True)
    assert spec.plane in ("3d", *AXIAL)
    assert spec.licence == "CC-BY-4.0"
    assert spec.licence in card
    for text in (card, spec.trained_on):
        assert "FlyEM" in text
        assert "10.1371/journal.pone.0125825" in text
    assert f"{spec.parameters:,} parameters" in card
    assert f"--recipe {name.removesuffix('-sample')} " in card
    assert "## Limits" in card


@pytest.mark.parametrize("name", NAMES)
def test_its_curve_can_be_looked_at(name: str) -> None:
    with Image.open(checkpoint_folder(name) / "curve.png") as curve:
        assert min(curve.size) > 300
        assert len(curve.convert("RGB").getcolors(1 << 20)) > 3


def test_there_are_few_and_they_are_small() -> None:
    assert len(list(SHIPPED.iterdir())) <= 6
    files = (path for home in (SHIPPED, BASELINES) for path in home.rglob("*"))
    assert sum(path.stat().st_size for path in files) < 8e6


@pytest.mark.parametrize("name", RETIRED)
def test_a_name_that_is_no_longer_shipped_says_what_takes_its_place(name: str, caplog) -> None:
    heir = RETIRED[name]
    assert describe(name) == describe(heir)
    assert caplog.messages == [
        f"{name} is no longer shipped; {heir} takes its place, other weights with answers of "
        "their own"
    ]
    assert checkpoint_folder(name) == checkpoint_folder(heir)


def test_a_folder_of_the_users_own_may_have_such_a_name(tmp_path, monkeypatch, caplog) -> None:
    shutil.copytree(SHIPPED / "fsrcnn-z4", tmp_path / "srunet-z4-small")
    monkeypatch.chdir(tmp_path)
    assert describe("srunet-z4-small").arch == "fsrcnn"
    assert checkpoint_folder("srunet-z4-small") == Path("srunet-z4-small")
    assert caplog.messages == []
