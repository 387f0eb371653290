"""Layers in half precision, and what stays in single."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from jobs import write_source
from networks import tissue

import isochunk
from isochunk.core.geometry import Box, Spacing
from isochunk.core.precisions import WORTH
from isochunk.core.spec import Intensity
from isochunk.core.synthetic import synthetic_em
from isochunk.engine.report import Seam
from isochunk.models.a2i import A2I, A2IConfig
from isochunk.models.checkpoint import Card, save
from isochunk.models.fsrcnn import FSRCNN, FSRCNNConfig
from isochunk.models.interface import predict
from isochunk.models.load import Runtime, load
from isochunk.models.niiv import NIIV, NIIVConfig
from isochunk.models.pssr import PSSR, PSSRConfig
from isochunk.models.srunet import SRUNet, SRUNetConfig

FOUR = (Fraction(4), Fraction(1), Fraction(1))
FULL = Intensity.full_range("uint8")
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
RESIDUAL = {
    "srunet": SRUNet(SRUNetConfig.compact(3, 3, 1, residual="cubic")),
    "fsrcnn": FSRCNN(FSRCNNConfig.compact(3, 3, 2, residual="linear")),
    "a2i": A2I(A2IConfig(width=4, levels=2, window=4, heads=(1, 2), blocks=1, residual=True)),
    "niiv": NIIV(NIIVConfig(1, 4, 8, 1, residual=True)),
}


def answer(name, precision, source, write):
    runtime = Runtime(FOUR, precision=precision, intensity=FULL, device="cpu", tile=(64, 64, 64))
    predictor = load(name, runtime)
    read = predictor.spec.read_box(write)
    lo = [0 - a for a in read.lo]
    rims = [(a, b - n + a) for a, b, n in zip(lo, read.shape, source.shape, strict=True)]
    padded = np.pad(source, [(a, max(b - a, 0)) for a, b in rims], mode="reflect")
    return predict(predictor, padded[tuple(slice(n) for n in read.shape)], read, write)


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", ["srunet-z4", "fsrcnn-z4"])
def test_few_voxels_are_others_than_in_single_precision(name, precision):
    source = synthetic_em((16, 48, 48), seed=0, spacing=Spacing.parse("40,10,10"))
    write = Box.from_shape((32, 32, 32))
    exact, near = (answer(name, p, source, write).astype(int) for p in ("fp32", precision))
    assert (exact == near).mean() >= WORTH[precision].identical_to_fp32
    assert np.abs(exact - near).max() <= 1
    assert (exact != near).any(), "it was not computed in half precision"


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", RESIDUAL)
def test_what_the_answer_is_added_to_stays_in_single_precision(name, precision, tmp_path):
    """A network fresh from its making adds nothing: what is left is the interpolation."""
    save(tmp_path / name, RESIDUAL[name], Card(name, "CC0-1.0", ""))
    source, write = tissue((6, 40, 40), "uint8"), Box.from_shape((16, 24, 24))
    exact, near = (answer(str(tmp_path / name), p, source, write) for p in ("fp32", precision))
    assert len(np.unique(exact)) > 20
    np.testing.assert_array_equal(near, exact)


@pytest.mark.parametrize("name", RESIDUAL)
def test_it_stays_there_while_a_network_is_trained(name):
    coarse = torch.from_numpy(tissue((8, 16, 16), "uint8"))[None, None] / 255
    network, four = RESIDUAL[name].train(), Fraction(4)
    exact = network.restore_crops(coarse, four, "mean")
    with torch.autocast("cpu", torch.bfloat16):
        near = network.restore_crops(coarse, four, "mean")
    torch.testing.assert_close(near.float(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "network", [*RESIDUAL.values(), PSSR(PSSRConfig(width=4, depths=(1, 1, 1, 1)))]
)
def test_the_first_layer_stays_in_single_precision(network):
    before = [p.detach().clone() for p in network.entrance.parameters()]
    half = type(network)(network.config)
    half.load_state_dict(network.state_dict())
    half.in_format(torch.bfloat16)
    for old, new in zip(before, half.entrance.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old, rtol=0, atol=0)
    kept = {id(p) for p in half.entrance.parameters()}
    assert {p.dtype for p in half.parameters() if id(p) not in kept} == {torch.bfloat16}


def test_pssr_answers_in_half_precision(tmp_path):
    torch.manual_seed(0)
    save(tmp_path / "m", PSSR(PSSRConfig(width=4, depths=(1, 1, 1, 1))), Card("m", "CC0-1.0", ""))
    factor = (Fraction(1), Fraction(4), Fraction(4))
    write, answers = Box.from_shape((2, 64, 64)), []
    for precision in ("fp32", "bf16"):
        predictor = load(str(tmp_path / "m"), Runtime(factor, precision=precision, intensity=FULL))
        read = predictor.spec.read_box(write)
        answers.append(predict(predictor, tissue(read.shape, "uint8"), read, write).astype(int))
    difference = np.abs(answers[0] - answers[1])
    assert 0 < difference.max() < 12


@pytest.mark.parametrize("config", [PSSRConfig(width=4, depths=(1, 1, 1, 1)), PSSRConfig(1, 4)])
def test_what_pssr_costs_is_counted_wherever_its_weights_are(config):
    """Training counts it at each snapshot, of weights that may be on a GPU."""
    network = PSSR(config)
    assert network.to("meta").cost() == PSSR(config).cost()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_seam_is_held_to_what_the_precision_is_worth(precision, tmp_path):
    source = write_source(f"file://{tmp_path}/in", synthetic_em((8, 48, 48), seed=0))
    job = isochunk.Job(
        source=source,
        target=f"{tmp_path}/out",
        model="fsrcnn-z4",
        precision=precision,
        device="cpu",
        chunk="16,16,16",
        shard="none",
        block="32,32,32",
    )
    plan = isochunk.plan(job)
    assert plan.summary()["identical_to_fp32"] == WORTH[precision].identical_to_fp32
    seam = isochunk.run(plan).summary()["seam"]
    assert seam["voxels"] > 0
    assert seam["promised"] == {
        "identical_fraction": WORTH[precision].seam_identical,
        "max_difference": WORTH[precision].seam_difference,
        "kept": True,
    }


def test_nothing_is_expected_of_a_network_that_answers_by_itself(tmp_path):
    save(tmp_path / "m", SRUNet(SRUNetConfig.compact(2, 2, 1)), Card("m", "CC0-1.0", ""))
    source = write_source(f"file://{tmp_path}/in", synthetic_em((8, 32, 32), seed=0))
    job = isochunk.Job(source=source, target=f"{tmp_path}/out", model=f"{tmp_path}/m")
    expected = [
        isochunk.plan(replace(job, precision=precision)).summary()["identical_to_fp32"]
        for precision in ("fp32", "fp16")
    ]
    assert expected == [1.0, None]


def test_a_seam_that_is_larger_than_promised_is_told():
    worth = WORTH["fp32"]
    assert Seam(100_000, 99_990, 1).keeps(worth)
    assert not Seam(100_000, 99_989, 1).keeps(worth)
    assert not Seam(100_000, 99_999, 2).keeps(worth)
