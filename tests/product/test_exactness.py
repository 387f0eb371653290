"""The contract: a volume converted in blocks equals the volume converted as a whole.

Blocks go through the whole product: plan, run, storage, read back. The whole does not: it is the
network's own ``forward`` on a volume that numpy continued by reflection, far beyond the halo, so
that zero padding at its rim cannot reach the voxels that are compared.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import Client
from jobs import read_all, write_source
from networks import network_of, tissue
from whole import Model, assert_equals_whole

import isochunk
from isochunk.core.geometry import Box, target_box, triple
from isochunk.models.checkpoint import Card, save
from isochunk.models.fsrcnn import FSRCNNConfig
from isochunk.models.srunet import SRUNetConfig

pytestmark = pytest.mark.slow

torch.set_num_threads(1)

SHAPE = (8, 40, 36)
OFFSET = (3, -5, 11)  # on no pooling grid
THIN = (2, 9, 21)  # thinner than any halo here along z, and than most along y
SPACING = {
    Fraction(4): "40,10,10",
    Fraction(10): "46,4.6,4.6",
    Fraction(225, 23): "45,4.6,4.6",
}

CONFIGS = {
    "fsrcnn": FSRCNNConfig.compact(3, 2, 2),
    "fsrcnn-paper": FSRCNNConfig.paper(2, 2, 1),
    "fsrcnn-z10": FSRCNNConfig.compact(3, 2, 1, factor=10),
    "srunet": SRUNetConfig.compact(2, 3, 2),
    "srunet-paper": SRUNetConfig.paper(1, 2, 1),
    "srunet-standard": SRUNetConfig.compact(3, 3, 1, residual="cubic"),
    "srunet-z10": SRUNetConfig.compact(3, 3, 1, factor=10),
}

BLOCKS = {
    "cubes": {"chunk": "16,24,24", "shard": "none", "block": "16,24,24"},
    "shards": {"chunk": "8,16,16", "shard": "16,32,32", "block": "32,32,32"},
    "sections": {"chunk": "4,40,36", "shard": "none", "block": "4,40,36"},
    "columns": {"chunk": "32,20,12", "shard": "none", "block": "32,20,12"},
    "odd": {"chunk": "13,17,29", "shard": "none", "block": "13,17,29"},
    "ome": {"chunk": "10,10,10", "shard": "20,20,20", "block": "20,20,40", "format": "ome-zarr"},
    "one": {"chunk": "64,64,64"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Checkpoints with random weights, and cubic."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name, config in CONFIGS.items():
        network = network_of(config)
        card = Card(
            name, "none", "nothing", normalisation="standard" if "standard" in name else "range"
        )
        made[name] = Model(str(folder / name), save(folder / name, network, card), network)
    from isochunk.models.interpolation import interpolation_spec

    return {**made, "cubic": Model("cubic", interpolation_spec("cubic"), None)}


def convert(
    model: Model, url: str, target: Path, client: Client | None, options: dict[str, str]
) -> np.ndarray:
    """Plan, run, and read the target back."""
    job = isochunk.Job(
        source=url, target=str(target), model=model.name, device="cpu", **{"levels": 1, **options}
    )
    plan = isochunk.plan(job)
    report = isochunk.run(plan, client)
    assert report.complete, report.errors
    if report.seam is not None:
        assert report.seam.max_difference <= 1
    return read_all(str(target))


@pytest.fixture(params=["one worker", "two workers"])
def workers(request: pytest.FixtureRequest) -> Client | None:
    """None runs in this process."""
    return None if request.param == "one worker" else request.getfixturevalue("client")


@pytest.mark.parametrize("name", ["cubic", "fsrcnn", "srunet"])
def test_every_block_shape_and_number_of_workers(
    models: dict[str, Model], workers: Client | None, tmp_path: Path, name: str
) -> None:
    voxels, model = tissue(SHAPE, "uint8"), models[name]
    url = write_source(f"file://{tmp_path}/in", voxels, offset=OFFSET)
    exact = model.whole(voxels, OFFSET, Fraction(4))
    first = None
    for shape, options in BLOCKS.items():
        got = convert(model, url, tmp_path / shape, workers, options)
        assert_equals_whole(got, exact)
        first = got if first is None else first
        if name == "cubic":
            np.testing.assert_array_equal(got, first)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(SHAPE, "uint8"), (SHAPE, "uint16"), (THIN, "uint8")],
    ids=["uint8", "uint16", "thin"],
)
@pytest.mark.parametrize("name", CONFIGS)
def test_networks(
    models: dict[str, Model], tmp_path: Path, name: str, shape: tuple[int, int, int], dtype: str
) -> None:
    voxels, model = tissue(shape, dtype, seed=1), models[name]
    factor = model.spec.resolved_factor[0]
    url = write_source(f"file://{tmp_path}/in", voxels, SPACING[factor], OFFSET)
    exact = model.whole(voxels, OFFSET, factor)
    assert_equals_whole(convert(model, url, tmp_path / "out", None, BLOCKS["odd"]), exact)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [SHAPE, THIN], ids=["volume", "thin"])
@pytest.mark.parametrize("factor", SPACING, ids=str)
def test_cubic_by_rational_factors(
    models: dict[str, Model],
    workers: Client | None,
    tmp_path: Path,
    factor: Fraction,
    shape: tuple[int, int, int],
    dtype: str,
) -> None:
    voxels, model = tissue(shape, dtype, seed=2), models["cubic"]
    # A precomputed target needs a whole offset: 225/23 has one only at multiples of 23.
    offset = (-23, 7, -3)
    url = write_source(f"file://{tmp_path}/in", voxels, SPACING[factor], offset)
    exact = model.whole(voxels, offset, factor)
    got = [
        convert(model, url, tmp_path / blocks, workers, BLOCKS[blocks])
        for blocks in ("shards", "odd", "one")
    ]
    for each in got:
        assert_equals_whole(each, exact)
        np.testing.assert_array_equal(each, got[0])


@pytest.mark.parametrize("box", ["5:9,1:30,20:41", "10:11,34:35,46:47"], ids=str)
@pytest.mark.parametrize("name", ["cubic", "fsrcnn", "srunet", "srunet-standard"])
def test_a_box_is_the_crop_of_the_whole(
    models: dict[str, Model], tmp_path: Path, name: str, box: str
) -> None:
    """Its rim has real neighbours, and intensities are the volume's, not the box's."""
    voxels, model = tissue(SHAPE, "uint8", seed=3), models[name]
    url = write_source(f"file://{tmp_path}/in", voxels, offset=OFFSET)
    whole = Box.from_shape(triple(voxels.shape), OFFSET)
    factor = (Fraction(4), Fraction(1), Fraction(1))
    part = target_box(Box.parse(box), factor)
    exact = model.whole(voxels, OFFSET, Fraction(4))
    limits = np.iinfo(voxels.dtype)
    wanted = np.clip(exact[part.slices(target_box(whole, factor).lo)], limits.min, limits.max)
    got = convert(model, url, tmp_path / "out", None, {**BLOCKS["odd"], "box": box})
    assert isochunk.open(str(tmp_path / "out")).spec.box == part
    assert np.abs(got - wanted).max() <= 0.5 + 2e-6 * limits.max


def test_small_memory_means_smaller_tiles_and_the_same_voxels(
    models: dict[str, Model], tmp_path: Path
) -> None:
    voxels, model = tissue(SHAPE, "uint8", seed=4), models["srunet"]
    url = write_source(f"file://{tmp_path}/in", voxels, offset=OFFSET)
    job = isochunk.Job(source=url, target=str(tmp_path / "out"), model=model.name, levels=1)
    plan = isochunk.plan(job)
    tight = plan.worker_memory_bytes() - plan.tile_bytes(plan.tile) * 3 // 4
    tight -= (plan.depth - 1) * plan.block_bytes()
    made = isochunk.plan(
        isochunk.Job(
            source=url, target=str(tmp_path / "out"), model=model.name, levels=1, memory=tight
        )
    )
    assert made.total_blocks == 1
    assert np.prod(made.tile) < np.prod(made.stages[0].block) / 3
    assert isochunk.run(made).complete
    assert_equals_whole(read_all(str(tmp_path / "out")), model.whole(voxels, OFFSET, Fraction(4)))
