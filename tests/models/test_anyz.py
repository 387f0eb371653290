"""The network for any ratio: its halo, its places, and blocks that equal the whole.

Blocks go through the whole product. The whole does not: it is the network's own pass over training
crops, on a volume that numpy continued by reflection, far beyond the halo.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import read_all, write_source
from networks import tissue
from whole import assert_equals_whole, assert_every_block_shape

import isochunk
from isochunk.core.spec import Phase
from isochunk.errors import ModelError
from isochunk.models.anyz import AnyZ, AnyZConfig, ToldConv
from isochunk.models.checkpoint import Card, load_module, save
from isochunk.models.interpolation import axis_taps

torch.set_num_threads(1)

SMALL = AnyZConfig(width=5, blocks=2, decoded=6, bases=4, hidden=8, changes=3)
SPACINGS = {
    Fraction(4): "40,10,10",
    Fraction(10): "46,4.6,4.6",
    Fraction(225, 23): "45,4.6,4.6",
    Fraction(7, 2): "35,10,10",
}
BLOCKS = {
    "cubes": {"chunk": "16,12,20", "block": "16,12,20"},
    "odd": {"chunk": "7,21,9", "block": "7,21,9"},
    "sections": {"chunk": "1,21,26", "block": "1,21,26"},
}


def network_of(config: AnyZConfig) -> AnyZ:
    """A network whose random weights make a visible difference, other in each place."""
    torch.manual_seed(1)
    network = AnyZ(config).eval()
    with torch.no_grad():
        network.decoder.last.weight.normal_(0, 0.4)
        network.decoder.last.bias.fill_(0.02)
        for layer in network.modules():
            if isinstance(layer, ToldConv) and layer.changes is not None:
                layer.changes.normal_(0, 0.02)
    return network


def whole(network: AnyZ, voxels: np.ndarray, factor: Fraction, phase: Phase) -> np.ndarray:
    """Return the float answer in grey levels, for a whole volume."""
    reach = max(network.geometry().halo) + 2
    before = -(-reach // factor.denominator) * factor.denominator
    far = np.pad(voxels / 255, [(before, before), (reach, reach), (reach, reach)], mode="symmetric")
    x = torch.from_numpy(far.astype(np.float32))[None, None]
    with torch.inference_mode():
        answer = network.restore_crops(x, factor, phase)[0, 0].numpy() * 255
    first, (n, ny, nx) = int(before * factor), voxels.shape
    return answer[first : first + int(n * factor), reach : reach + ny, reach : reach + nx]


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["mean", "sample"])
@pytest.mark.parametrize("factor", SPACINGS, ids=str)
def test_blocks_equal_the_whole(tmp_path: Path, factor: Fraction, phase: Phase) -> None:
    network = network_of(SMALL)
    save(tmp_path / "m", network, Card("m", "none", "nothing", phase=phase))
    voxels = tissue((6, 21, 26), "uint8")
    source = write_source(f"file://{tmp_path}/in", voxels, SPACINGS[factor])
    job = isochunk.Job(
        source=source, target=f"{tmp_path}/out", model=f"{tmp_path}/m", shard="none", levels=1
    )
    assert isochunk.plan(job).model.exact
    assert_every_block_shape(job, BLOCKS, whole(network, voxels, factor, phase))


def test_on_dask(tmp_path: Path, client) -> None:
    network = network_of(SMALL)
    save(tmp_path / "m", network, Card("m", "none", "nothing"))
    voxels = tissue((6, 40, 40), "uint8")
    source = write_source(f"file://{tmp_path}/in", voxels, "45,4.6,4.6")
    job = isochunk.Job(
        source=source,
        target=f"{tmp_path}/out",
        model=f"{tmp_path}/m",
        shard="none",
        chunk="13,16,16",
        block="13,16,16",
    )
    assert isochunk.run(isochunk.plan(job), client).complete
    assert isochunk.audit(job.target).complete
    exact = whole(network, voxels, Fraction(225, 23), "mean")
    assert_equals_whole(read_all(job.target), exact)


@pytest.mark.parametrize("phase", ["mean", "sample"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_halo_is_what_a_nan_probe_finds(blocks: int, phase: Phase) -> None:
    network = network_of(AnyZConfig(width=3, blocks=blocks, decoded=4, bases=2, hidden=4))
    farthest = [0, 0, 0]
    for axis in range(3):
        halo = network.geometry().halo[axis]
        shape, at = [3, 3, 3], 2 * halo
        shape[axis] = 4 * halo + 1
        x = torch.zeros(1, 1, *shape)
        x[(0, 0, *(at if a == axis else slice(None) for a in range(3)))] = math.nan
        with torch.inference_mode():
            answer = network.restore_crops(x, Fraction(7, 2), phase)[0, 0]
        others = tuple(a for a in range(3) if a != axis)
        hit = torch.isnan(answer).any(others[1]).any(others[0]).nonzero().flatten().numpy()
        own = (hit / (3.5 if axis == 0 else 1)).astype(int)
        farthest[axis] = int(abs(own - at).max())
    assert tuple(farthest) == network.geometry().halo


def test_a_whole_ratio_is_one_convolution_with_a_kernel_for_each_phase() -> None:
    """So that a place is the same in every section, wherever a tile begins."""
    network = network_of(SMALL)
    told = network.told(Fraction(4), "mean")
    taps = axis_taps("linear", (-9, 31), Fraction(4), -5, "mean")
    with torch.inference_mode():
        kernels = network.decoder.kernels_at(torch.from_numpy(taps.weight[1]), told)
    assert torch.allclose(kernels[:4], kernels[4:8], atol=1e-6)
    assert torch.allclose(kernels[:4], kernels[-4:], atol=1e-6)
    assert min(float((a - b).abs().max()) for a, b in pairwise(kernels)) > 1e-3


def test_what_sections_are_like_changes_the_answer() -> None:
    network = network_of(SMALL)
    x = torch.from_numpy(tissue((6, 12, 12), "uint8") / np.float32(255))[None, None]
    with torch.inference_mode():
        mean, sample = (network.restore_crops(x, Fraction(4), p) for p in ("mean", "sample"))
        told = [network.told(f, p) for f in (Fraction(4), Fraction(5)) for p in ("mean", "sample")]
    assert len({tuple(t.tolist()) for t in told}) == len(told)
    assert float((mean - sample).abs().max()) > 0.01


def test_kernels_of_the_encoder_depend_on_what_sections_are_like() -> None:
    network = network_of(SMALL)
    alike = network_of(replace(SMALL, changes=0))
    x = torch.from_numpy(tissue((6, 12, 12), "uint8") / np.float32(255))[None, None]

    def kernels(network: AnyZ, factor: int, phase: Phase) -> torch.Tensor:
        told = network.told(Fraction(factor), phase)
        mixture = None if network.mixture is None else network.mixture(told)
        return network.head.at(mixture).weight

    with torch.inference_mode():
        for one, other in (((2, "mean"), (10, "mean")), ((4, "mean"), (4, "sample"))):
            assert not torch.equal(kernels(network, *one), kernels(network, *other))
            assert torch.equal(kernels(alike, *one), kernels(alike, *other))
        answers = [n.restore_crops(x, Fraction(4), "mean") for n in (network, alike)]
    assert answers[0].shape == answers[1].shape


def test_an_encoder_without_changes_is_what_older_checkpoints_hold() -> None:
    names = {name for name, _ in AnyZ(AnyZConfig()).named_parameters()}
    assert not {name for name in names if "changes" in name or name.startswith("mixture")}
    assert "body.0.first.weight" in names


def test_training_starts_from_cubic_interpolation() -> None:
    x = torch.from_numpy(tissue((7, 10, 10), "uint8") / np.float32(255))[None, None]
    torch.manual_seed(0)
    answer = AnyZ(SMALL).restore_crops(x, Fraction(5, 2), "mean")
    from isochunk.models.interpolation import whole_axis_taps
    from isochunk.models.torch_interpolation import blended

    cubic = blended(x, whole_axis_taps("cubic", 7, Fraction(5, 2), "mean"))
    assert torch.equal(answer, cubic)


def test_work_is_what_the_layers_say() -> None:
    config = AnyZConfig()
    w, d = config.width, config.decoded
    assert AnyZ(replace(config, changes=4)).cost().macs == pytest.approx(
        AnyZ(config).cost().macs, rel=0.01
    )
    coarse = 75 * w + config.blocks * 2 * 27 * w * w
    fine = 2 * w * d + d
    assert AnyZ(config).cost().macs == pytest.approx(coarse / 4 + fine, rel=0.02)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    network = network_of(SMALL)
    spec = save(tmp_path, network, Card("m", "none", "nothing", phase="sample"))
    assert (spec.arch, spec.phase, spec.factor[0], spec.plane) == ("anyz", "sample", None, "3d")
    assert spec.residual
    loaded = load_module(tmp_path)
    x = torch.rand(1, 1, 6, 9, 9)
    with torch.inference_mode():
        assert torch.equal(
            loaded.restore_crops(x, Fraction(3), "sample"),
            network.restore_crops(x, Fraction(3), "sample"),
        )


@pytest.mark.parametrize("change", ["width", "blocks", "decoded", "bases", "hidden"])
def test_numbers_below_one_are_refused(change: str) -> None:
    with pytest.raises(ModelError, match="at least 1"):
        AnyZConfig(**{change: 0})


def test_changes_below_none_are_refused() -> None:
    with pytest.raises(ModelError, match="changes of 0"):
        AnyZConfig(changes=-1)
