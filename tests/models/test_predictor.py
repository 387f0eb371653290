"""Tiled prediction equals whole prediction, for real networks, everywhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import network_of, tissue
from torch import nn

from isochunk.core.geometry import Box, Spacing, cells, target_box, triple
from isochunk.core.spec import Intensity, LevelSpec, ModelSpec, VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import ModelError, PredictionError, UsageError
from isochunk.models import interface
from isochunk.models.checkpoint import Card, save
from isochunk.models.fsrcnn import FSRCNNConfig
from isochunk.models.interface import Predictor
from isochunk.models.load import Runtime, describe, load
from isochunk.models.predictor import TorchPredictor
from isochunk.models.srunet import SRUNet, SRUNetConfig
from isochunk.models.tiled_network import ValidEngine, derived_halo
from isochunk.storage.volume import read_reflected

torch.set_num_threads(1)

FOUR = (Fraction(4), Fraction(1), Fraction(1))
ONE = Fraction(1)


@dataclass(frozen=True)
class Memory:
    """A volume in memory, anywhere on the grid."""

    voxels: Voxels
    origin: tuple[int, int, int] = (0, 0, 0)

    @property
    def spec(self) -> VolumeSpec:
        box = Box.from_shape(triple(self.voxels.shape), self.origin)
        level = LevelSpec("0", box, Spacing(ONE * 4, ONE, ONE), (1, 1, 1), None)
        corner = (Fraction(0),) * 3
        return VolumeSpec("memory", "zarr3", str(self.voxels.dtype), "raw", corner, (level,))

    def read(self, box: Box, level: int = 0) -> Voxels:
        return self.voxels[box.slices(self.origin)]


def predictor_of(config, dtype, tile=(64, 64, 64), intensity=None) -> TorchPredictor:
    network = network_of(config)
    z, y, x = network.factor
    spec = ModelSpec(
        name="test",
        arch="test",
        factor=(Fraction(z), Fraction(y), Fraction(x)),
        halo=derived_halo(network),
        alignment=network.alignment,
    )
    return TorchPredictor(
        spec,
        ValidEngine(network, spec.halo),
        torch.device("cpu"),
        "fp32",
        intensity or Intensity.full_range(dtype),
        tile,
    )


def predict(predictor: Predictor, volume: Memory, write: Box) -> Voxels:
    read = predictor.spec.read_box(write)
    return interface.predict(predictor, read_reflected(volume, read), read, write)


def by_blocks(predictor: Predictor, volume: Memory, whole: Box, block) -> Voxels:
    result = np.empty(whole.shape, volume.voxels.dtype)
    for box in cells(whole, block):
        result[box.slices(whole.lo)] = predict(predictor, volume, box)
    return result


def assert_same_picture(got: Voxels, wanted: Voxels) -> None:
    difference = np.abs(got.astype(np.int64) - wanted.astype(np.int64))
    assert difference.max() <= 1
    if got.dtype == np.uint8:
        assert (difference == 0).mean() >= 0.9999


CONFIGS = {
    "srunet-h3": SRUNetConfig.compact(3, 3, 2),
    "srunet-h2-paper": SRUNetConfig.paper(1, 2, 1),
    "srunet-residual": SRUNetConfig.compact(3, 3, 1, residual="cubic"),
    "srunet-z10": SRUNetConfig.compact(3, 3, 1, factor=10),
    "fsrcnn": FSRCNNConfig.compact(3, 3, 2),
}
BLOCKS = [(64, 64, 64), (16, 64, 64), (64, 16, 16), (20, 24, 28), (7, 13, 29), (40, 33, 5)]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_block_shape_gives_the_whole(name, dtype):
    volume = Memory(tissue((7, 31, 37), dtype), origin=(3, -5, 11))  # thinner than the halo
    predictor = predictor_of(CONFIGS[name], dtype)
    whole = target_box(volume.spec.box, predictor.spec.resolved_factor)
    wanted = predict(predictor, volume, whole)
    assert wanted.dtype == dtype
    assert len(np.unique(wanted)) > 40  # a picture, and not clipped flat
    for block in BLOCKS:
        assert_same_picture(by_blocks(predictor, volume, whole, block), wanted)


def test_the_whole_is_the_network_on_the_reflected_volume():
    volume = Memory(tissue((6, 20, 24), "uint8"))
    predictor = predictor_of(CONFIGS["srunet-h3"], "uint8")
    network = predictor.engine.module
    around = Box((-20, -40, -40), (30, 68, 68))  # far beyond the halo, on the pooling grid
    x = torch.from_numpy(read_reflected(volume, around)).float()[None, None] / 255
    with torch.inference_mode():
        answer = network(x)[0, 0, 80:104, 40:60, 40:64] * 255
    wanted = answer.round().clamp(0, 255).to(torch.uint8).numpy()
    whole = target_box(volume.spec.box, FOUR)
    assert_same_picture(by_blocks(predictor, volume, whole, (8, 12, 16)), wanted)


@pytest.mark.parametrize("tile", [(4, 4, 4), (12, 20, 36), (64, 64, 64), (1, 1, 1)])
def test_every_tile_shape_gives_the_whole(tile):
    volume = Memory(tissue((4, 24, 20), "uint8"))
    whole = target_box(volume.spec.box, FOUR)
    config = SRUNetConfig.compact(2, 2, 1)
    wanted = predict(predictor_of(config, "uint8", (999, 999, 999)), volume, whole)
    assert_same_picture(predict(predictor_of(config, "uint8", tile), volume, whole), wanted)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_box_in_any_place_gives_its_part_of_the_whole(data):
    shape = tuple(data.draw(st.integers(1, n), label="extent") for n in (6, 24, 24))
    origin = tuple(data.draw(st.integers(-9, 9), label="origin") for _ in range(3))
    volume = Memory(tissue(shape, "uint8", seed=sum(shape)), origin)
    predictor = PREDICTOR
    whole = target_box(volume.spec.box, FOUR)
    wanted = predict(predictor, volume, whole)
    lo = triple(data.draw(st.integers(a, b - 1)) for a, b in zip(whole.lo, whole.hi, strict=True))
    hi = triple(data.draw(st.integers(a + 1, b)) for a, b in zip(lo, whole.hi, strict=True))
    part = Box(lo, hi)
    assert_same_picture(predict(predictor, volume, part), wanted[part.slices(whole.lo)])


PREDICTOR = predictor_of(SRUNetConfig.compact(2, 3, 1), "uint8", (16, 16, 16))


def test_tiles_cover_a_block_once_on_the_absolute_grid():
    write = Box((6, -7, 3), (150, 99, 130))
    count = np.zeros(write.shape, int)
    shapes = set()
    for tile in PREDICTOR.tiles(write):
        count[tile.slices(write.lo)] += 1
        shapes.add(tile.shape)
        assert all(a % 4 == 0 or a == b for a, b in zip(tile.lo, write.lo, strict=True))
    assert (count == 1).all()


def test_a_tile_never_exceeds_its_limit():
    predictor = predictor_of(SRUNetConfig.compact(2, 3, 1), "uint8", (20, 30, 50))
    for tile in predictor.tiles(Box((4, 1, 2), (200, 203, 211))):
        assert all(n <= m for n, m in zip(tile.shape, (20, 28, 48), strict=True))


def test_intensity_is_the_jobs_and_not_the_tiles():
    volume = Memory(tissue((5, 16, 16), "uint16"))
    predictor = predictor_of(CONFIGS["srunet-residual"], "uint16", intensity=Intensity(900, 7000))
    network = predictor.engine.module
    around = Box((-20, -40, -40), (28, 64, 64))
    x = (torch.from_numpy(read_reflected(volume, around)).float()[None, None] - 900) / 7000
    with torch.inference_mode():
        answer = network(x)[0, 0, 80:100, 40:56, 40:56] * 7000 + 900
    wanted = answer.round().clamp(0, 65535).numpy().astype(np.uint16)
    assert_same_picture(
        by_blocks(predictor, volume, Box.from_shape((20, 16, 16)), (8, 8, 8)), wanted
    )


def test_black_is_skipped_only_where_the_network_keeps_it_black():
    black = np.zeros((30, 60, 60), np.uint8)
    volume = Memory(black)
    write = Box((40, 28, 28), (48, 32, 32))
    for bias, wanted in ((-0.1, 0), (0.2, 51)):
        predictor = predictor_of(SRUNetConfig.compact(2, 2, 1), "uint8")
        with torch.no_grad():
            for parameter in predictor.engine.module.parameters():
                if parameter.ndim == 1:
                    parameter.zero_()
            predictor.engine.module.last.bias.fill_(bias)
        assert (predict(predictor, volume, write) == wanted).all()


def test_nan_fails_with_the_box():
    predictor = predictor_of(SRUNetConfig.compact(2, 2, 1), "uint8")
    with torch.no_grad():
        predictor.engine.module.last.bias.fill_(float("nan"))
    with pytest.raises(PredictionError, match="0:8,0:8,0:8"):
        predict(predictor, Memory(tissue((4, 8, 8), "uint8")), Box.from_shape((8, 8, 8)))


def test_too_little_source_is_refused():
    with pytest.raises(UsageError, match="needs source box"):
        PREDICTOR.stage(
            np.zeros((2, 8, 8), np.uint8), Box.from_shape((2, 8, 8)), Box((0,) * 3, (8,) * 3)
        )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_near(precision):
    volume = Memory(tissue((4, 16, 16), "uint8"))
    exact = predictor_of(CONFIGS["srunet-residual"], "uint8")
    near = TorchPredictor(
        exact.spec,
        ValidEngine(network_of(CONFIGS["srunet-residual"]), exact.spec.halo),
        torch.device("cpu"),
        precision,
        exact.intensity,
        exact.tile,
    )
    box = Box.from_shape((16, 16, 16))
    a, b = (predict(p, volume, box).astype(int) for p in (exact, near))
    assert 0 < np.abs(a - b).max() < 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_tiles_exactly_and_agrees_with_the_cpu():
    volume = Memory(tissue((9, 60, 60), "uint8"))
    predictor = predictor_of(SRUNetConfig.compact(8, 3, 2), "uint8")
    whole = target_box(volume.spec.box, FOUR)
    cpu = predict(predictor, volume, whole)
    gpu = TorchPredictor(
        predictor.spec,
        predictor.engine,
        torch.device("cuda"),
        "fp32",
        predictor.intensity,
        predictor.tile,
    )
    wanted = predict(gpu, volume, whole)
    assert_same_picture(wanted, cpu)
    for block in BLOCKS:
        assert_same_picture(by_blocks(gpu, volume, whole, block), wanted)


# Networks that users bring.

USER_MODEL = """
import torch
from torch import nn

class Upsample(nn.Module):
    factor = (4, 1, 1)

    def __init__(self, norm=None):
        super().__init__()
        torch.manual_seed(1)
        self.a = nn.Conv3d(1, 4, 3, padding=1)
        self.norm = norm or nn.Identity()
        self.b = nn.ConvTranspose3d(4, 1, (4, 3, 3), (4, 1, 1), (0, 1, 1))

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x))))

class Pooled(Upsample):
    def forward(self, x):
        low = nn.functional.max_pool3d(torch.relu(self.a(x)), (1, 2, 2))
        return self.b(nn.functional.interpolate(low, scale_factor=(1.0, 2.0, 2.0)))

def make(): return Upsample()
def pooled(): return Pooled()
def instance(): return Upsample(nn.InstanceNorm3d(4))
def wide():
    model = Upsample()
    model.halo = (2, 5, 5)
    return model
def narrow():
    model = Upsample()
    model.halo = (2, 1, 1)
    return model
def lying():
    model = Upsample()
    model.factor = (2, 1, 1)
    return model
def mute(): return nn.Conv3d(1, 1, 1)
def broken(): raise RuntimeError("no weights here")
"""


@pytest.fixture
def user(tmp_path: Path) -> str:
    (tmp_path / "my_model.py").write_text(USER_MODEL)
    return f"{tmp_path}/my_model.py"


def check_tiling(predictor: Predictor) -> None:
    volume = Memory(tissue((6, 30, 26), "uint8"), (1, 3, -5))
    whole = target_box(volume.spec.box, FOUR)
    wanted = predict(predictor, volume, whole)
    assert len(np.unique(wanted)) > 20
    for block in BLOCKS:
        assert_same_picture(by_blocks(predictor, volume, whole, block), wanted)


@pytest.mark.parametrize(
    ("function", "halo", "alignment"),
    [
        ("make", (1, 2, 2), (1, 1, 1)),
        ("pooled", (1, 4, 4), (1, 2, 2)),
        ("wide", (2, 5, 5), (1, 1, 1)),
    ],
)
def test_a_trusted_python_file_is_measured_and_tiles_exactly(user, function, halo, alignment):
    spec = describe(f"{user}:{function}", trust=True)
    assert (spec.halo, spec.alignment, spec.factor) == (halo, alignment, FOUR)
    assert spec.exact
    assert spec.parameters > 0
    assert spec.macs_per_voxel > 0
    assert spec.bytes_per_voxel > 4
    predictor = load(f"{user}:{function}", Runtime(FOUR, trust=True, tile=(16, 24, 24)))
    assert predictor.spec == spec
    check_tiling(predictor)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("narrow", r"declares a halo of \(2, 1, 1\).* \(1, 2, 2\)"),
        ("mute", "declares no factor"),
        ("broken", "no weights here"),
        ("absent", "absent"),
    ],
)
def test_python_models_that_are_refused(user, function, message):
    with pytest.raises(ModelError, match=message):
        describe(f"{user}:{function}", trust=True)


def test_a_python_file_does_not_run_without_trust(tmp_path):
    (tmp_path / "evil.py").write_text("import pathlib; pathlib.Path(__file__).unlink()")
    with pytest.raises(ModelError, match="--trust"):
        describe(f"{tmp_path}/evil.py:make")
    with pytest.raises(ModelError, match="--trust"):
        load(f"{tmp_path}/evil.py:make", Runtime(FOUR))
    assert (tmp_path / "evil.py").exists()


def test_instance_norm_is_refused_unless_seams_are_accepted(user):
    name = f"{user}:instance"
    assert not describe(name, trust=True).exact
    with pytest.raises(ModelError, match=r"norm: InstanceNorm3d.*--allow-inexact"):
        load(name, Runtime(FOUR, trust=True))
    accepted = load(name, Runtime(FOUR, trust=True, allow_inexact=True))
    answer = predict(accepted, Memory(tissue((6, 30, 26), "uint8")), Box.from_shape((8, 8, 8)))
    assert answer.shape == (8, 8, 8)


def test_an_answer_of_the_wrong_shape_fails(user):
    name = f"{user}:lying"
    with pytest.raises(ModelError, match="answers"):
        load(name, Runtime((Fraction(2), ONE, ONE), trust=True))


def export(path: Path, network: nn.Module, told: dict, dynamic: bool) -> str:
    names = [torch.export.Dim(axis, min=2, max=4096) for axis in "zyx"]
    program = torch.export.export(
        network.eval(),
        (torch.rand(1, 1, 12, 32, 32),),
        dynamic_shapes=({2: names[0], 3: names[1], 4: names[2]},) if dynamic else None,
    )
    torch.export.save(program, path)
    path.with_name(f"{path.name}.json").write_text(json.dumps(told))
    return str(path)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a = nn.Conv3d(1, 4, 3, padding=1)
        self.b = nn.ConvTranspose3d(4, 1, (4, 3, 3), (4, 1, 1), (0, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
def test_an_exported_program_tiles_exactly(tmp_path, dynamic):
    told = {"factor": [4, 1, 1], "alignment": [1, 1, 1]}
    name = export(tmp_path / "small.pt2", Small(), told, dynamic)
    spec = describe(name)
    assert spec.halo == (1, 2, 2)
    predictor = load(name, Runtime(FOUR, tile=(64, 64, 64)))
    assert predictor.spec.sha256 == spec.sha256
    check_tiling(predictor)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, "declares no factor"),
        ({"factor": [4, 1]}, "three whole numbers"),
        ({"factor": [4, 1, 1], "alignment": [1, 1, 1], "halo": [1, 1, 1]}, r"halo of \(1, 1, 1\)"),
        ({"factor": [4, 1, 1], "plane": "diagonal"}, "plane 'diagonal'"),
    ],
)
def test_exported_programs_that_are_refused(tmp_path, told, message):
    with pytest.raises(ModelError, match=message):
        describe(export(tmp_path / "small.pt2", Small(), told, dynamic=False))


def test_a_program_without_description_or_that_is_none(tmp_path):
    with pytest.raises(ModelError, match="no model file"):
        describe(str(tmp_path / "absent.pt2"))
    (tmp_path / "x.pt2").write_bytes(b"not a program")
    with pytest.raises(ModelError, match=r"x\.pt2\.json is missing"):
        describe(str(tmp_path / "x.pt2"))
    (tmp_path / "x.pt2.json").write_text('{"factor": [4, 1, 1]}')
    with pytest.raises(ModelError, match=r"no torch\.export program"):
        describe(str(tmp_path / "x.pt2"))


def test_a_factor_that_the_model_does_not_have(tmp_path):
    spec = save(tmp_path / "m", SRUNet(SRUNetConfig.compact(2, 2, 1)), Card("m", "CC0-1.0", ""))
    assert load(str(tmp_path / "m"), Runtime(FOUR)).spec == spec
    with pytest.raises(ModelError, match="factor 4 x 1 x 1"):
        load(str(tmp_path / "m"), Runtime((Fraction(10), ONE, ONE)))


def test_interpolations_load_by_name_for_any_factor():
    factor = (Fraction(225, 23), ONE, ONE)
    for name in ("nearest", "linear", "cubic"):
        assert load(name, Runtime(factor)).spec == describe(name).for_factor(factor)


def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    save(tmp_path / "m", SRUNet(SRUNetConfig.compact(2, 2, 1)), Card("m", "CC0-1.0", ""))
    with pytest.raises(ModelError, match="torch sees no GPU"):
        load(str(tmp_path / "m"), Runtime(FOUR, device="cuda"))
