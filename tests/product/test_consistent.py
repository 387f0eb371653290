"""``--consistent``: the whole product against the definition, on blocks that cut sections.

The whole is a network's own ``forward`` on a volume continued far beyond the halo, with what its
means lack of the input added back in double precision; blocks go through plan, run and storage.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import Client
from jobs import Command, read_all, tree_digest, write_source
from networks import network_of, tissue
from whole import Model, assert_equals_whole

import isochunk
from isochunk.core.job import Job
from isochunk.engine.prepare import TargetPlace, resolve
from isochunk.errors import ModelError, TargetConflictError
from isochunk.models.a2i import A2IConfig
from isochunk.models.checkpoint import Card, save
from isochunk.models.fsrcnn import FSRCNNConfig
from isochunk.models.interpolation import interpolation_spec
from isochunk.models.niiv import NIIVConfig
from isochunk.models.pssr import PSSRConfig
from isochunk.models.registry import make
from isochunk.models.srunet import SRUNetConfig
from isochunk.viewing.preview import preview_job, serve_preview

torch.set_num_threads(1)

SHAPE, OFFSET = (8, 40, 36), (3, -5, 11)
CONFIGS = {
    "srunet": SRUNetConfig.compact(2, 3, 2),
    "srunet-standard": SRUNetConfig.compact(3, 3, 1, residual="cubic"),
    "fsrcnn": FSRCNNConfig.compact(3, 2, 2),
}
BLOCKS = {
    "odd": {"chunk": "13,17,29", "shard": "none", "block": "13,17,29"},
    "thin": {"chunk": "2,40,36", "shard": "none", "block": "2,40,36"},
    "ome": {"chunk": "10,10,10", "shard": "20,20,20", "block": "20,20,40", "format": "ome-zarr"},
    "one": {"chunk": "64,64,64"},
}


def saved(folder: Path, name: str) -> Model:
    network = network_of(CONFIGS[name])
    normalisation = "standard" if "standard" in name else "range"
    card = Card(name, "none", "nothing", normalisation=normalisation)
    return Model(str(folder / name), save(folder / name, network, card), network)


def added_back(answer: np.ndarray, voxels: np.ndarray, factor: int) -> np.ndarray:
    """Add what means over sections lack of the input, in double precision."""
    groups = answer.astype(np.float64).reshape(len(voxels), factor, *voxels.shape[1:])
    return (groups + (voxels - groups.mean(1))[:, None]).reshape(answer.shape)


def convert(
    model: str, url: str, target: Path, client: Client | None = None, **options: Any
) -> Any:
    options = {"levels": 1, "device": "cpu", "consistent": True, **options}
    job = Job(source=url, target=str(target), model=model, **options)
    report = isochunk.run(isochunk.plan(job), client)
    assert report.complete, report.errors
    assert report.seam is None or report.seam.max_difference <= 1
    return report


@pytest.mark.parametrize(
    "name",
    [
        "cubic",
        "fsrcnn",
        pytest.param("srunet", marks=pytest.mark.slow),
        pytest.param("srunet-standard", marks=pytest.mark.slow),
    ],
)
def test_blocks_that_cut_sections_equal_the_whole(tmp_path: Path, name: str) -> None:
    voxels = tissue(SHAPE, "uint8")
    url = write_source(f"{tmp_path}/in", voxels, offset=OFFSET)
    cubic = Model("cubic", interpolation_spec("cubic"), None)
    model = cubic if name == "cubic" else saved(tmp_path, name)
    exact = added_back(model.whole(voxels, OFFSET, Fraction(4)), voxels, 4)
    for blocks, options in BLOCKS.items():
        convert(model.name, url, tmp_path / blocks, **options)
        got = read_all(f"{tmp_path}/{blocks}")
        assert_equals_whole(got, exact)
        groups = got.reshape(8, 4, *voxels.shape[1:])
        inside = ~np.isin(groups, (0, 255)).any(1)
        assert np.abs(groups.mean(1) - voxels)[inside].max() <= 0.5  # all that rounding makes
        if name == "cubic":
            np.testing.assert_array_equal(got, read_all(f"{tmp_path}/odd"))


@pytest.mark.slow
@pytest.mark.parametrize("plane", ["xz", "xz+yz"])
@pytest.mark.parametrize("name", ["a2i", "niiv"])
def test_networks_for_slices_at_any_whole_factor(tmp_path: Path, name: str, plane: Any) -> None:
    """Blocks equal one block that holds all, and sections made of it are those that were read."""
    configs = {
        "a2i": A2IConfig(width=4, levels=2, window=4, heads=(1, 2), blocks=1, residual=True),
        "niiv": NIIVConfig(blocks=1, width=4, hidden=8, layers=1, residual=True),
    }
    torch.manual_seed(0)
    network = make(configs[name])
    with torch.no_grad():  # fresh weights add nothing
        network.last.weight.normal_(0, 0.05)
    save(tmp_path / name, network, Card(name, "none", "nothing"))
    voxels = (tissue(SHAPE, "uint8") // 2 + 60).astype(np.uint8)
    url = write_source(f"{tmp_path}/in", voxels, "50,10,10", OFFSET)
    for blocks in ("one", "odd"):
        convert(f"{tmp_path}/{name}", url, tmp_path / blocks, plane=plane, **BLOCKS[blocks])
    whole, cut = (read_all(f"{tmp_path}/{blocks}") for blocks in ("one", "odd"))
    difference = np.abs(whole.astype(int) - cut)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 1e-4 * whole.size + 3
    off = whole.reshape(8, 5, *voxels.shape[1:]).mean(1) - voxels
    assert np.sqrt(np.square(off).mean()) < 0.2
    convert(f"{tmp_path}/{name}", url, tmp_path / "plain", plane=plane, consistent=False)
    assert not np.array_equal(whole, read_all(f"{tmp_path}/plain"))


def test_two_workers_write_the_same(tmp_path: Path, client: Client) -> None:
    url = write_source(f"{tmp_path}/in", tissue(SHAPE, "uint8"), offset=OFFSET)
    reports = [
        convert("fsrcnn-z4", url, tmp_path / name, workers, **BLOCKS["odd"])
        for name, workers in (("here", None), ("there", client))
    ]
    assert tree_digest(tmp_path / "here") == tree_digest(tmp_path / "there")
    assert reports[0].consistency.voxels == reports[1].consistency.voxels
    assert reports[0].consistency.rms == pytest.approx(reports[1].consistency.rms, rel=1e-9)


def test_what_is_previewed_or_lazy_is_what_is_written(tmp_path: Path) -> None:
    url = write_source(f"{tmp_path}/in", tissue(SHAPE, "uint8"), offset=OFFSET)
    convert("cubic", url, tmp_path / "out", **BLOCKS["odd"])
    written = read_all(f"{tmp_path}/out")
    lazy = isochunk.isotropic(url, "cubic", consistent=True, chunk="16,16,16", block="16,32,32")
    np.testing.assert_array_equal(lazy.compute(), written)
    job = preview_job(Job(source=url, target="preview", model="cubic", consistent=True))
    plan = resolve(job, TargetPlace("memory://preview", "precomputed"))
    with serve_preview(plan) as served:
        np.testing.assert_array_equal(read_all(f"precomputed://{served.url}"), written)


def test_records_of_jobs_without_it_stay_as_they_were(tmp_path: Path) -> None:
    url = write_source(f"{tmp_path}/in", tissue(SHAPE, "uint8"), offset=OFFSET)
    plain = Job(source=url, target=f"{tmp_path}/plain", model="cubic")
    plan = isochunk.plan(plain)
    assert "consistent" not in plan.identity()
    isochunk.run(plan)
    assert "consistent" not in (tmp_path / "plain/.isochunk/job.json").read_text()
    convert("cubic", url, tmp_path / "out")
    record = json.loads((tmp_path / "out/.isochunk/job.json").read_text())
    assert record["plan"]["job"]["consistent"] is True
    assert '"consistent": true' in (tmp_path / "out/provenance").read_text()
    assert "consistent" not in (tmp_path / "plain/provenance").read_text()
    assert convert("cubic", url, tmp_path / "out").resumed == 1
    for target, consistent in (("plain", True), ("out", False)):
        with pytest.raises(TargetConflictError, match="consistent was"):
            convert("cubic", url, tmp_path / target, consistent=consistent)


@pytest.mark.parametrize(
    ("model", "spacing", "says"),
    [
        ("anyz-z2-10-sample", "80,10,10", "sections are samples"),
        ("niiv-z2-10", "25,10,10", "factor along z is 5/2"),
        ("identity", "40,10,10", "factor along z is 1"),
    ],
)
def test_what_cannot_be_made_consistent_is_refused(
    run: Command, tmp_path: Path, model: str, spacing: str, says: str
) -> None:
    url = write_source(f"{tmp_path}/in", tissue(SHAPE, "uint8"), spacing)
    for command in ("plan", "run"):
        arguments = (command, url, f"{tmp_path}/out", f"--model={model}", "--consistent")
        said = run(*arguments, "--device=cpu", code=2)
        assert says in said["error"]
        assert said["error"].startswith(f"--consistent cannot be done with model {model!r}")
    assert not (tmp_path / "out").exists()


def test_models_that_change_y_and_x_are_refused(tmp_path: Path) -> None:
    url = write_source(f"{tmp_path}/in", tissue(SHAPE, "uint8"))
    torch.manual_seed(0)
    network = make(PSSRConfig(width=2, depths=(1, 1, 1, 1)))
    save(tmp_path / "pssr", network, Card("pssr", "none", "nothing"))
    for model, options in ((f"{tmp_path}/pssr", {}), ("cubic", {"spacing": "10,5,5"})):
        job = Job(source=url, target=f"{tmp_path}/out", model=model, consistent=True, **options)
        with pytest.raises(
            ModelError, match=r"factor along z is 1|changes y and x too, by 2 and 2"
        ):
            isochunk.plan(job)
