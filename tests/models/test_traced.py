"""Users' networks by valid convolutions: the same answers, and a halo that is no larger."""

from __future__ import annotations

import copy
import json
import re
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import user_networks
from networks import tissue
from torch import nn

from isochunk.core.geometry import Box, cells, reflected, triple
from isochunk.errors import ModelError
from isochunk.models import user_model
from isochunk.models.counting import Recorder
from isochunk.models.interface import predict
from isochunk.models.load import Runtime, describe, load
from isochunk.models.probe import Probe
from isochunk.models.steps import for_slabs
from isochunk.models.traced import TracedEngine, trace
from isochunk.models.user_model import open_user_model

TRACED = ("unet", "residual", "nnunet", "kernels", "resizing", "slices", "finest")
HALO = {
    "unet": (13, 24, 24),
    "residual": (7, 7, 7),
    "nnunet": (3, 7, 7),
    "kernels": (3, 9, 8),
    "resizing": (7, 7, 7),
    "slices": (2, 0, 2),
    "finest": (5, 9, 9),
}
PADDED = {
    "swin": "roll: it is none that is known",
    "deciding": "cannot be traced",
    "counting": r"its trace answers otherwise than it does itself, on an input of",
}
FILE = user_networks.__file__

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def opened(name: str):
    return open_user_model(f"{FILE}:{name}", trust=True)


def predicted(predictor, source, write: Box):
    """Predict a target box of a volume that is continued by reflection."""
    read = predictor.spec.read_box(write)
    index = (
        reflected(lo, hi, 0, n) for lo, hi, n in zip(read.lo, read.hi, source.shape, strict=True)
    )
    return predict(predictor, source[np.ix_(*index)], read, write)


@pytest.mark.parametrize("name", TRACED)
def test_halo_and_alignment_follow_from_the_graph(name):
    model = opened(name)
    assert isinstance(model.traced, TracedEngine)
    assert model.spec.padded_because == ""
    reach = model.traced.reach()
    assert reach.halo == HALO[name]
    with torch.inference_mode():
        assert Probe(model.module, model.module.factor).reach(reach.alignment) == reach


@pytest.mark.parametrize("name", [*TRACED, "swin"])
def test_every_tile_and_block_gives_the_whole(name):
    source = tissue((9, 29, 33), "uint8")
    spec = describe(f"{FILE}:{name}", trust=True)
    whole = Box.from_shape(
        triple(int(n * f) for n, f in zip(source.shape, spec.factor, strict=True))
    )
    runtime = Runtime(spec.resolved_factor, trust=True)
    wanted = predicted(load(f"{FILE}:{name}", runtime), source, whole)
    assert len(np.unique(wanted)) > 40  # a picture, and not clipped flat
    for tile, block in (
        ((8, 16, 16), (64, 64, 64)),
        ((999, 999, 999), (7, 13, 11)),
        ((16, 8, 32), (20, 24, 5)),
    ):
        predictor = load(f"{FILE}:{name}", Runtime(spec.resolved_factor, trust=True, tile=tile))
        got = np.empty(whole.shape, np.uint8)
        for box in cells(whole, block):
            got[box.slices(whole.lo)] = predicted(predictor, source, box)
        difference = np.abs(got.astype(int) - wanted)
        assert difference.max() <= 1
        assert (difference == 0).mean() >= 0.9999


@pytest.mark.parametrize("name", TRACED)
def test_the_whole_is_what_the_network_itself_answers(name):
    model = opened(name)
    engine, halo = model.traced, model.spec.halo
    source = torch.rand(
        1, 1, *(2 * h + 4 * g for h, g in zip(halo, model.spec.alignment, strict=True))
    )
    inner = Box(halo, triple(n - h for n, h in zip(source.shape[2:], halo, strict=True)))
    want = Box(
        *(
            triple(a * f for a, f in zip(at, engine.factor, strict=True))
            for at in (inner.lo, inner.hi)
        )
    )
    for box in cells(want, (5, 7, 3)):  # no multiple of anything
        with torch.inference_mode():
            answer = engine(source[(..., *engine.needs(box).slices((0, 0, 0)))], box)
            wanted = model.module(source)[(..., *box.slices((0, 0, 0)))]
        torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PADDED)
def test_what_cannot_be_interpreted_is_padded_and_cropped(name):
    model = opened(name)
    assert model.traced is None
    assert model.spec.exact
    assert re.search(PADDED[name], model.spec.padded_because)


def test_gates_that_see_the_whole_tile_are_no_trace_and_not_exact():
    model = opened("squeezed")
    assert not model.spec.exact
    assert "mean: it takes in the whole extent of an axis" in model.spec.padded_because


def test_instance_norm_is_not_traced():
    assert "InstanceNorm3d" in opened("nnunet_instance").inexact_because


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", ["unet", "resizing"])
def test_an_exported_program_is_interpreted_at_any_extent(tmp_path, name, dynamic):
    network = getattr(user_networks, name)()
    cell = (2, 4, 4)
    extents = [
        torch.export.Dim(f"n{axis}", min=8, max=1000) * g
        for axis, g in zip("zyx", cell, strict=True)
    ]
    program = torch.export.export(
        network,
        (torch.rand(1, 1, 32, 64, 72),),
        dynamic_shapes=(dict(enumerate(extents, 2)),) if dynamic else None,
    )
    path = tmp_path / "network.pt2"
    torch.export.save(program, path)
    Path(f"{path}.json").write_text(json.dumps({"factor": network.factor}))
    model, wanted = open_user_model(str(path), trust=False), opened(name)
    assert model.spec.padded_because == ""
    assert (model.spec.halo, model.spec.alignment) == (wanted.spec.halo, wanted.spec.alignment)
    source, write = tissue((7, 21, 23), "uint8"), Box.from_shape((28, 21, 23))
    by_program, by_module = (
        predicted(load(n, Runtime(model.spec.resolved_factor, trust=True)), source, write)
        for n in (str(path), f"{FILE}:{name}")
    )
    np.testing.assert_array_equal(by_program, by_module)


class Positions(nn.Module):
    """Adds where a voxel lies in its tile."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)
        self.register_buffer("ramp", torch.arange(96.0))

    def forward(self, x):
        return self.conv(x) + self.ramp[: x.shape[3], None]


class Turned(nn.Module):
    """Exchanges y and x."""

    def forward(self, x):
        return x.transpose(3, 4)


class Cropped(nn.Module):
    """Counts from the far end."""

    def forward(self, x):
        return torch.cat([x, x], 3)[:, :, :, -96:]


class Shuffled(nn.Module):
    """Joins y and x."""

    def forward(self, x):
        return x.reshape(1, 1, 64, -1).relu().reshape(x.shape)


class Corners(nn.Module):
    """Interpolates from corner to corner."""

    def forward(self, x):
        return nn.functional.interpolate(x, size=x.shape[2:], mode="trilinear", align_corners=True)


class Attending(nn.Module):
    """Multiplies voxels with one another."""

    def forward(self, x):
        return torch.softmax(x @ x.transpose(3, 4), 4) @ x


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Positions(), r"add: it has a constant for each place"),
        (Turned(), "does not lie on a grid of factor"),
        (Cropped(), "it puts volumes side by side"),
        (Shuffled(), r"reshape: it joins spatial dimensions"),
        (Corners(), "aligns corners"),
        (Attending(), "it is none that is known"),
        (nn.Sequential(nn.Linear(80, 80)), r"0 \(linear\): it takes in the whole extent"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_operations_that_have_no_meaning_on_parts_are_named(network, message):
    with pytest.raises(ModelError, match=message):
        trace(network.eval(), (1, 1, 1), (64, 96, 80))


def test_batch_norms_are_folded_and_activations_need_no_memory():
    engine = opened("unet").traced
    names = [str(step.node.target) for step in engine.steps]
    assert not any("batch_norm" in name for name in names)
    assert all(step.in_place for step in engine.steps if "relu" in str(step.node.target))


def walked(engine, want: Box):
    """Count on tensors without data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of graphs that are copied
        hollow = replace(engine, module=copy.deepcopy(engine.module).to("meta"))
    with torch.no_grad(), Recorder() as recorder:
        source = torch.empty(1, 1, *hollow.needs(want).shape, device="meta")
        hollow(source, want)
    return recorder


def test_the_finest_steps_need_less_memory_in_slabs():
    engine, want = opened("finest").traced, Box.from_shape((256, 256, 256))
    assert engine.finest
    whole = replace(engine, steps=(*engine.steps, *engine.finest), finest=())
    slabs, once = walked(engine, want), walked(whole, want)
    assert slabs.peak < 0.6 * once.peak
    assert once.macs < slabs.macs < 1.05 * once.macs


class Activated(nn.Module):
    """What is activated is activated where it lies, and not twice."""

    factor = (4, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(1, 8, (4, 3, 3), (4, 1, 1), (0, 1, 1))
        self.mix = nn.Conv3d(8, 8, 3, padding=1)
        self.last = nn.Conv3d(8, 1, 3, padding=1)

    def forward(self, x):
        return self.last(nn.functional.silu(self.mix(nn.functional.silu(self.up(x)))))


@torch.inference_mode()
def test_slabs_may_begin_at_any_step():
    torch.manual_seed(0)
    engine = trace(Activated().eval(), (4, 1, 1), (8, 16, 16))
    steps = (*engine.steps, *engine.finest)
    whole, want = replace(engine, steps=steps, finest=()), Box.from_shape((48, 12, 12))
    source = torch.rand(1, 1, *engine.needs(want).shape)
    wanted = whole(source, want)
    assert sum(step.in_place is not None for step in steps) == 2
    for at in range(len(steps)):
        cut = replace(engine, steps=steps[:at], finest=tuple(for_slabs(steps[at:])))
        torch.testing.assert_close(cut(source, want), wanted)


def test_a_skip_is_cut_to_what_its_decoder_needs():
    engine, want = opened("unet").traced, Box.from_shape((64, 64, 64))
    cut = [step for step in engine.steps if step.cuts]
    assert len(cut) == 2, "before each pooling"
    kept = replace(engine, steps=tuple(replace(step, cuts=()) for step in engine.steps))
    alive = [np.cumsum(walked(e, want).walk.bytes).mean() for e in (engine, kept)]
    assert alive[0] < 0.9 * alive[1]


def test_what_is_known_of_a_model_is_not_found_again(monkeypatch):
    name = f"{FILE}:unet"
    spec = describe(name, trust=True)

    def fail(*_):
        raise AssertionError

    source, write = tissue((7, 21, 23), "uint8"), Box.from_shape((28, 21, 23))
    runtime = Runtime(spec.resolved_factor, trust=True)
    wanted = predicted(load(name, runtime), source, write)
    monkeypatch.setattr(user_model, "prove", fail)
    known = load(name, replace(runtime, known=spec))
    assert known.spec == spec
    np.testing.assert_array_equal(predicted(known, source, write), wanted)
    padded = replace(spec, padded_because="its probe")
    assert load(name, replace(runtime, known=padded)).spec == padded
    with pytest.raises(AssertionError):
        load(name, replace(runtime, known=replace(spec, sha256="0" * 64)))


def test_the_users_own_network_is_left_as_it_was():
    network = user_networks.unet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.rand(1, 1, 32, 64, 64)
    with torch.inference_mode():
        wanted = network(x)
        engine = trace(network, network.factor, (64, 96, 80))
        engine(
            x[(..., *(slice(0, n) for n in engine.needs(Box((52, 24, 24), (56, 28, 28))).shape))],
            Box((52, 24, 24), (56, 28, 28)),
        )
        assert torch.equal(network(x), wanted)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_factors_are_those_declared():
    with pytest.raises(ModelError, match="does not lie on a grid of factor"):
        trace(user_networks.unet(), (2, 1, 1), (64, 96, 80))
    assert describe(f"{FILE}:unet", trust=True).factor == (Fraction(4), Fraction(1), Fraction(1))
