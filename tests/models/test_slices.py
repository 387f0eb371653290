"""Networks for slices, a2i, niiv and pssr: sizes, halos, and blocks that equal the whole.

As in test_exactness, blocks go through the whole product, and the whole does not: slices are cut,
interpolated and put through the network's layers here, on a volume continued by reflection.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import read_all, write_source
from networks import network_of as tiled_network_of
from networks import tissue
from torch.nn import functional
from whole import Model, assert_equals_whole

import isochunk
from isochunk.core.geometry import Box, Spacing
from isochunk.errors import ModelError
from isochunk.models.a2i import A2IConfig
from isochunk.models.checkpoint import Card, load_module, read_spec, save
from isochunk.models.diffusion import DiffusionConfig
from isochunk.models.fsrcnn import FSRCNNConfig
from isochunk.models.load import Runtime, load
from isochunk.models.network import NetworkConfig
from isochunk.models.niiv import NIIV, NIIVConfig
from isochunk.models.pssr import PSSR, PSSRConfig
from isochunk.models.pssr_z import PSSRZ, PSSRZConfig
from isochunk.models.refining import RefiningNetwork
from isochunk.models.registry import make
from isochunk.models.srmd import SRMDConfig
from isochunk.models.srunet import SRUNetConfig
from isochunk.models.swinir import SwinIRConfig

torch.set_num_threads(1)

SMALL = {
    "a2i": A2IConfig(width=4, levels=2, window=4, heads=(1, 2), blocks=1, residual=True),
    "a2i-printed": A2IConfig(4, 2, 4, (2, 2), 2, attention="printed"),
    "niiv": NIIVConfig(blocks=2, width=6, hidden=16, layers=2, residual=True),
    "niiv-tile": NIIVConfig(blocks=1, width=4, hidden=12, layers=3, tile=20),
    "swinir": SwinIRConfig(width=4, groups=2, depth=2, heads=2, window=4),
    "srmd": SRMDConfig(width=4, layers=4, components=3),
    "diffusion": DiffusionConfig(width=4, blocks=1, rounds=2),
    "pssr-z": PSSRZConfig(width=4, depths=(1, 1, 1, 1)),
    "pssr": PSSRConfig(width=4, depths=(1, 1, 1, 1)),
    "pssr-mf": PSSRConfig(sections=2, width=4, depths=(1, 1, 1, 1)),
}
AXIAL = [name for name in SMALL if name not in ("pssr", "pssr-mf")]


def network_of(config: NetworkConfig) -> torch.nn.Module:
    """A network whose random weights make a visible difference."""
    torch.manual_seed(1)
    network = make(config).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 2)
        # Answers of some contrast in the middle of the range.
        sample = torch.from_numpy(tissue((1, 32, 32), "uint8"))[None] / 255
        last = network.layers.last if isinstance(network, PSSRZ) else network.last
        last.bias.fill_(0)
        if isinstance(network, PSSR):
            seen = network.sharpen(sample.expand(1, 2 * config.sections + 1, 32, 32))
        else:
            seen = network.train_on(sample, Fraction(4))
            if config.residual:
                last.weight.normal_()
                seen = network.train_on(sample, Fraction(4)) - sample.repeat_interleave(4, 2)
        scale, middle = 0.25 / seen.std(), 0.0 if getattr(config, "residual", False) else 0.5
        last.weight *= scale
        last.bias.fill_(middle - scale * seen.mean())
    return network


def whole_slices(network: torch.nn.Module, voxels: np.ndarray, factor: Fraction) -> np.ndarray:
    """Restore all xz slices of a whole volume; (z, y, x), values and answers in [0, 1]."""
    n, _, width = voxels.shape
    reach = network.halo + 3 * network.alignment + 8
    far = np.pad(voxels, [(4 * reach, 4 * reach), (0, 0), (reach, reach)], mode="symmetric")
    slices = far.transpose(1, 0, 2).astype(np.float64)  # (y, z, x)
    margin = -(-network.halo // network.alignment) * network.alignment + network.alignment
    if isinstance(network, NIIV):
        margin = 0
    rows = np.arange(-margin, -(-int(n * factor) // network.alignment) * network.alignment + margin)
    centre = [Fraction(2 * int(j) + 1, 2) / factor - Fraction(1, 2) for j in rows]
    below = np.array([math.floor(c) for c in centre])
    t = np.array([float(c - b) for c, b in zip(centre, map(int, below), strict=True)])[:, None]
    at = below + 4 * reach

    if isinstance(network, RefiningNetwork):
        taps = [
            -0.5 * t**3 + t**2 - 0.5 * t,
            1.5 * t**3 - 2.5 * t**2 + 1,
            -1.5 * t**3 + 2 * t**2 + 0.5 * t,
            0.5 * t**3 - 0.5 * t**2,
        ]
        fine = sum(w * slices[:, at + i - 1] for i, w in enumerate(taps))
        # Columns on the grid of windows, far enough out.
        last = -(-width // network.alignment) * network.alignment + margin
        assert last <= width + reach
        assert margin <= reach
        fine = fine[:, :, reach - margin : reach + last]
        x = torch.from_numpy(fine.astype(np.float32))[:, None]
        with torch.inference_mode():
            answer = network.refine(x, factor, "mean", (-margin, 0, -margin))[:, 0].numpy()
        columns = slice(margin, margin + width)
        kept = answer[:, margin : margin + int(n * factor), columns]
        return kept.transpose(1, 0, 2)

    x = torch.from_numpy(slices.astype(np.float32))[:, None]
    with torch.inference_mode():
        features = network.encode(x).double()
        rim = (x.shape[2] - features.shape[2]) // 2
        v = x.double()[:, :, rim:-rim, rim:-rim]
        low = torch.from_numpy(at - rim)
        s = torch.from_numpy(t)
        columns = slice(reach - rim, reach - rim + width)
        mixed = [
            ((1 - s) * m[:, :, low] + s * m[:, :, low + 1])[..., columns] for m in (features, v)
        ]
        tile = network.config.tile
        z, c = ((np.arange(k) + 0.5) / tile for k in (len(rows), width))
        z, c = np.meshgrid(z, c, indexing="ij")
        waves = [f(2 * np.pi * k * p) for p in (z, c) for k in (1, 2) for f in (np.sin, np.cos)]
        where = torch.from_numpy(np.stack(waves)).expand(len(x), -1, -1, -1)
        seen = torch.cat([*mixed, where], 1).movedim(1, -1).float()
        for layer in network.field:
            seen = functional.relu(layer(seen))
        answer = network.last(seen)[..., 0]
        if network.config.residual:
            answer = answer + mixed[1][:, 0]
    return answer.numpy().transpose(1, 0, 2)


def whole(network: torch.nn.Module, voxels: np.ndarray, factor: Fraction, plane: str) -> np.ndarray:
    """Return the float answer in grey levels."""
    values = voxels / np.iinfo(voxels.dtype).max
    answers = []
    if "xz" in plane:
        answers.append(whole_slices(network, values, factor))
    if "yz" in plane:
        turned = whole_slices(network, values.transpose(0, 2, 1), factor)
        answers.append(turned.transpose(0, 2, 1))
    return np.mean(answers, axis=0) * np.iinfo(voxels.dtype).max


PLANES = [
    *((name, "40,10,10", "xz+yz") for name in AXIAL),
    *((name, "45,4.6,4.6", plane) for name in ("a2i", "niiv") for plane in ("xz", "yz")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "spacing", "plane"), PLANES)
def test_axial_blocks_equal_the_whole(tmp_path: Path, name: str, spacing: str, plane: str) -> None:
    network = network_of(SMALL[name])
    save(tmp_path / "m", network, Card(name, "none", "nothing"))
    voxels = tissue((5, 21, 26), "uint8")
    source = write_source(f"file://{tmp_path}/in", voxels, spacing)
    z, _, x = map(Fraction, spacing.split(","))
    exact = whole(network, voxels, z / x, plane)
    for place, blocks in enumerate(({"chunk": "16,12,20"}, {"chunk": "7,21,9"})):
        job = isochunk.Job(
            source=source,
            target=f"{tmp_path}/{place}",
            model=f"{tmp_path}/m",
            plane=plane,
            shard="none",
            block=blocks["chunk"],
            levels=1,
            **blocks,
        )
        plan = isochunk.plan(job)
        assert plan.model.exact
        assert isochunk.run(plan).complete
        assert_equals_whole(read_all(job.target), exact)


PLANAR = {
    "srunet": SRUNetConfig.compact(3, 3, 1, residual="cubic").as_planar(),
    "fsrcnn": FSRCNNConfig.compact(3, 2, 2).as_planar(),
}


@pytest.mark.slow
@pytest.mark.parametrize("plane", ["xz", "yz", "xz+yz"])
@pytest.mark.parametrize("name", PLANAR)
def test_planar_blocks_equal_the_whole(tmp_path: Path, name: str, plane: str) -> None:
    network = tiled_network_of(PLANAR[name])
    spec = save(tmp_path / "m", network, Card(name, "none", "nothing"))
    assert spec.plane == "xz"
    assert spec.halo[1] == 0 < spec.halo[2]
    model = Model(name, spec, network)
    voxels = tissue((5, 21, 26), "uint8")
    source = write_source(f"file://{tmp_path}/in", voxels, "40,10,10")
    answers = []
    if "xz" in plane:
        answers.append(model.whole(voxels, (0, 0, 0), Fraction(4)))
    if "yz" in plane:
        turned = model.whole(voxels.transpose(0, 2, 1), (0, 0, 0), Fraction(4))
        answers.append(turned.transpose(0, 2, 1))
    for place, chunk in enumerate(("16,12,20", "7,21,9")):
        job = isochunk.Job(
            source=source,
            target=f"{tmp_path}/{place}",
            model=f"{tmp_path}/m",
            plane=plane,
            shard="none",
            block=chunk,
            chunk=chunk,
            levels=1,
        )
        assert isochunk.run(isochunk.plan(job)).complete
        assert_equals_whole(read_all(job.target), np.mean(answers, axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pssr", "pssr-mf"])
def test_lateral_blocks_equal_the_whole(tmp_path: Path, name: str) -> None:
    network = network_of(SMALL[name])
    save(tmp_path / "m", network, Card(name, "none", "nothing"))
    voxels = tissue((4, 20, 26), "uint8")
    source = write_source(f"file://{tmp_path}/in", voxels, "40,16,16")
    s, (_, reach, _) = SMALL[name].sections, network.halo
    far = -(-reach // 8) * 8 + 8
    around = np.pad(voxels / 255, [(s, s), (far, far + 4), (far, far + 6)], mode="symmetric")
    frames = np.stack([around[i : i + 2 * s + 1] for i in range(4)]).astype(np.float32)
    with torch.inference_mode():
        answer = network.sharpen(torch.from_numpy(frames))[:, 0].numpy() * 255
    exact = answer[:, 4 * far : 4 * far + 80, 4 * far : 4 * far + 104]
    for place, chunk in enumerate(("4,40,104", "2,80,60")):
        job = isochunk.Job(
            source=source,
            target=f"{tmp_path}/{place}",
            model=f"{tmp_path}/m",
            chunk=chunk,
            block=chunk,
            shard="none",
            levels=1,
        )
        plan = isochunk.plan(job)
        assert plan.target.spacing == Spacing.parse("40,4,4")
        assert isochunk.run(plan).complete
        assert_equals_whole(read_all(job.target), exact)


def touched_beyond_cell(network: torch.nn.Module, length: int) -> int:
    """Put NaN into one row after another; return how far beyond cells of outputs it is felt."""
    cell, farthest = network.alignment, 0
    middle = length // 2 // cell * cell
    for at in range(middle, middle + cell):
        x = torch.zeros(1, 1, length, cell)
        x[:, :, at] = math.nan
        with torch.inference_mode():
            rows = torch.isnan(network(x)).any(3).flatten().nonzero().flatten().tolist()
        end, start = rows[0] // cell * cell + cell - 1, rows[-1] // cell * cell
        farthest = max(farthest, at - end, start - at)
        assert 0 < rows[0] <= rows[-1] < length - 1
    return farthest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "halo"),
    [
        (A2IConfig(width=8), 305),
        (SMALL["a2i"], None),
        (SMALL["a2i-printed"], None),
        (SwinIRConfig(width=6), 97),
        (SMALL["swinir"], None),
        (SRMDConfig(width=8), 12),
        (SMALL["srmd"], None),
        (SMALL["pssr-z"], 288),
        (SMALL["diffusion"], 8),
    ],
    ids=(
        *("a2i", "a2i small", "a2i printed", "swinir", "swinir small", "srmd", "srmd small"),
        *("pssr-z", "ddim"),
    ),
)
def test_the_halo_of_what_refines_is_what_a_nan_probe_finds(
    config: NetworkConfig, halo: int | None
) -> None:
    network = network_of(config)
    length = 2 * (network.halo // network.alignment + 3) * network.alignment
    touched = touched_beyond_cell(network, length)
    if isinstance(network, PSSRZ):  # whose halo is whole cells, as its maps are
        touched = -(-touched // network.alignment) * network.alignment
    assert touched == network.halo == (halo or network.halo)


@pytest.mark.parametrize(("blocks", "halo"), [(16, 35), (6, 15), (2, 7)])
def test_the_halo_of_niiv_is_what_a_nan_probe_finds(blocks: int, halo: int) -> None:
    network = network_of(NIIVConfig(blocks=blocks, width=4, hidden=8, layers=1))
    x = torch.zeros(1, 1, 4 * halo, 3)
    at = 2 * halo
    x[:, :, at] = math.nan
    with torch.inference_mode():
        answer = network.train_on(x, Fraction(4))
    sections = torch.isnan(answer).any(3).flatten().nonzero().flatten() // 4
    assert (at - sections[0], sections[-1] - at) == (halo, halo)
    assert network.halo == halo
    needed = network.needs(Box((8, 0, 5), (9, 1, 6)), Fraction(4), "mean")
    assert needed in Box((2, 0, 5), (3, 1, 6)).grow((halo, 0, halo))


@pytest.mark.parametrize(
    ("config", "halo"),
    [(PSSRConfig(width=2), 160), (PSSRConfig(1, 2, (1, 2, 1, 1)), None)],
    ids=["paper", "small"],
)
def test_the_halo_of_pssr_is_what_a_nan_probe_finds(config: PSSRConfig, halo: int | None) -> None:
    network = network_of(config)
    reach = network.halo[1]
    length = 2 * (reach // 8 + 2) * 8
    farthest = 0
    for at in range(length // 2, length // 2 + 8):
        x = torch.zeros(1, 2 * config.sections + 1, length, 8)
        x[:, :, at] = math.nan
        with torch.inference_mode():
            answer = network.sharpen(x)
        rows = torch.isnan(answer).any(3).flatten().nonzero().flatten().tolist()
        farthest = max(farthest, at - (rows[0] // 32 * 8 + 7), rows[-1] // 32 * 8 - at)
    assert reach == -(-farthest // 8) * 8 == (halo or reach)
    assert network.halo[0] == config.sections


COUNTS = {
    "niiv": (NIIVConfig(), 1_219_264 + 282_369),  # models.md, from the authors' code
    "niiv tiny": (NIIVConfig(blocks=6), 1_219_264 - 10 * 2 * 36_928 + 282_369),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_papers(name: str) -> None:
    config, count = COUNTS[name]
    assert sum(p.numel() for p in make(config).parameters()) == count


def test_positions_are_those_in_a_tile() -> None:
    network, slices = network_of(SMALL["niiv-tile"]), torch.rand(1, 1, 6, 40)
    with torch.inference_mode():
        here, there, tiles_on = (
            network.train_on(slices, Fraction(4), "mean", corner)
            for corner in ((0, 0), (5, 9), (20, -40))
        )
    assert torch.equal(here, tiles_on)
    assert not torch.allclose(here, there, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_a_checkpoint_comes_back(tmp_path: Path, name: str) -> None:
    network = network_of(SMALL[name])
    spec = save(tmp_path, network, Card(name, "CC0-1.0", "nothing"))
    again = load_module(tmp_path)
    assert again.config == network.config
    assert spec == read_spec(tmp_path)
    assert spec.plane == ("xy" if isinstance(network, PSSR) else "xz")
    assert spec.halo == network.geometry().halo
    assert spec.macs_per_voxel > 0
    assert spec.bytes_per_voxel > 0
    for key, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)


def test_attention_over_the_whole_section_is_refused(tmp_path: Path) -> None:
    network = network_of(PSSRConfig(width=8, depths=(1, 1, 1, 1), attention=True))
    spec = save(tmp_path, network, Card("global", "none", "nothing"))
    assert not spec.exact
    with pytest.raises(ModelError, match=r"attends to the whole section.*allow-inexact"):
        load(str(tmp_path), Runtime(spec.resolved_factor))
    load(str(tmp_path), Runtime(spec.resolved_factor, allow_inexact=True))


@pytest.mark.parametrize("name", ["pssr", "niiv"])
def test_a_plane_that_does_not_suit(tmp_path: Path, name: str) -> None:
    spec = save(tmp_path, network_of(SMALL[name]), Card(name, "none", "nothing"))
    if name == "niiv":
        assert spec.on_plane("xz+yz").halo == (spec.halo[0],) * 3
        with pytest.raises(ModelError, match="leave --plane out"):
            spec.on_plane("xy")
    else:
        with pytest.raises(ModelError, match="runs on xy, not on xz"):
            spec.on_plane("xz")
