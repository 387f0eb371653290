"""How far sections made of a run's output are from its source, as the report of the run says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from jobs import noise, read_all, write_source

import isochunk
from isochunk.core.geometry import Box
from isochunk.core.voxels import convert
from isochunk.engine.consistency import consistency_boxes, sections_box
from isochunk.engine.target import open_written_target

SHAPE, OFFSET = (13, 70, 90), (4, -8, 16)


def run(tmp_path: Path, url: str, client: Client | None = None, **options: Any) -> Any:
    """Run a job in small blocks."""
    blocks = {"chunk": "16,16,16", "shard": "none", "block": "32,32,32", "model": "cubic"}
    job = isochunk.Job(source=url, target=f"{tmp_path}/out", **{**blocks, **options})
    report = isochunk.run(isochunk.plan(job), client)
    assert report.complete, report.errors
    return report


def by_hand(target: str, voxels: np.ndarray, factor: int) -> tuple[list[Box], np.ndarray]:
    """Return the boxes that are compared, and the differences of all sections."""
    found = open_written_target(target)
    stored = read_all(target).astype(np.float64)
    scale = np.iinfo(voxels.dtype).max / np.iinfo(read_all(target).dtype).max
    made = stored.reshape(len(voxels), factor, *voxels.shape[1:]).mean(1) * scale
    return consistency_boxes(found.plan, found.ledger), made - voxels


@pytest.mark.parametrize("workers", ["one worker", "two workers"])
def test_the_report_says_how_far_sections_are(
    tmp_path: Path, workers: str, request: pytest.FixtureRequest
) -> None:
    client = None if workers == "one worker" else request.getfixturevalue("client")
    url = write_source(f"{tmp_path}/in", noise(SHAPE), offset=OFFSET)
    told = run(tmp_path, url, client).summary()["consistency"]
    boxes, off = by_hand(f"{tmp_path}/out", noise(SHAPE), 4)
    assert len(boxes) == 4
    whole = Box.from_shape(SHAPE, OFFSET)
    assert all(box in whole and box.shape[0] in (5, 8) for box in boxes)
    parts = [off[box.slices(OFFSET)] for box in boxes]
    each = [float(np.sqrt(np.square(p).mean())) for p in parts]
    assert told["voxels"] == sum(box.size for box in boxes)
    total = np.concatenate([p.ravel() for p in parts])
    assert told["rms"] == pytest.approx(np.sqrt(np.square(total).mean()), abs=1e-3)
    assert told["worst_rms"] == pytest.approx(max(each), abs=1e-3)
    assert told["worst_box"] == str(boxes[int(np.argmax(each))])
    sections = {
        (float(np.sqrt(np.square(s).mean())), box.lo[0] + i)
        for p, box in zip(parts, boxes, strict=True)
        for i, s in enumerate(p)
    }
    assert told["worst_section_rms"] == pytest.approx(max(sections)[0], abs=1e-3)
    assert told["worst_section"] == max(sections)[1]


def test_nothing_is_lost_where_sections_are_repeated(tmp_path: Path) -> None:
    url = write_source(f"{tmp_path}/in", noise(SHAPE), offset=OFFSET)
    told = run(tmp_path, url, model="nearest").summary()["consistency"]
    assert (told["rms"], told["worst_section_rms"]) == (0, 0)


@pytest.mark.parametrize("options", [{"dtype": "uint8"}, {"format": "ome-zarr"}])
def test_grey_levels_are_those_of_the_source(tmp_path: Path, options: dict[str, str]) -> None:
    voxels = convert(noise(SHAPE), "uint16")
    url = write_source(f"{tmp_path}/in", voxels, offset=OFFSET)
    told = run(tmp_path, url, **options).summary()["consistency"]
    boxes, off = by_hand(f"{tmp_path}/out", voxels, 4)
    total = np.concatenate([off[box.slices(OFFSET)].ravel() for box in boxes])
    assert told["rms"] == pytest.approx(np.sqrt(np.square(total).mean()), rel=1e-3)
    assert told["rms"] > 1000


@pytest.mark.parametrize("spacing", ["25,10,10", "46,4.6,4.6", "400,10,10"])
@pytest.mark.parametrize("box", [None, "5:17,0:40,20:60"])
def test_boxes_hold_whole_sections_whatever_the_factor_and_the_blocks(
    tmp_path: Path, spacing: str, box: str | None
) -> None:
    """Of 25 nm, every second one starts within a target voxel; of 400 nm, none fits a block."""
    offset = (5, -8, 16) if spacing != "25,10,10" else (6, -8, 16)
    url = write_source(f"{tmp_path}/in", noise(SHAPE), spacing, offset)
    if box is not None and spacing == "25,10,10":
        box = "6:17,0:40,20:60"
    report = run(tmp_path, url, model="nearest", box=box, levels=1)
    assert report.consistency is not None
    assert report.consistency.voxels > 0
    if spacing != "25,10,10":  # nearest takes parts of voxels for whole ones there
        assert report.consistency.rms == pytest.approx(0, abs=1e-3)
    found = open_written_target(f"{tmp_path}/out")
    for each in consistency_boxes(found.plan, found.ledger):
        assert each in found.plan.region
        assert sections_box(found.plan, each) in found.plan.target.box


def test_there_is_none_where_z_is_left_or_y_and_x_are_changed(tmp_path: Path) -> None:
    url = write_source(f"{tmp_path}/in", noise((8, 40, 40)))
    for i, options in enumerate(({"model": "identity"}, {"spacing": "10,5,5"})):
        report = run(tmp_path / str(i), url, **options)
        assert report.summary()["consistency"] is None


def test_background_is_not_compared(tmp_path: Path) -> None:
    voxels = np.zeros((16, 96, 96), np.uint8)
    url = write_source(f"{tmp_path}/black", voxels)
    assert run(tmp_path / "a", url).summary()["consistency"] is None
    voxels[:, :32, :32] = noise((16, 32, 32))
    report = run(tmp_path / "b", write_source(f"{tmp_path}/most", voxels))
    assert report.consistency is not None
    assert report.consistency.voxels == 2 * 8 * 32 * 32  # two blocks lie above one another


@pytest.mark.slow
def test_samples_are_picked_out_of_the_output(tmp_path: Path) -> None:
    """A network for samples keeps them nearly; means of its output are far from them."""
    voxels = np.clip(noise((12, 40, 40)) // 4 + 96, 1, 255).astype(np.uint8)
    url = write_source(f"{tmp_path}/in", voxels, "80,10,10")
    report = run(tmp_path, url, model="anyz-z2-10-sample", levels=1, device="cpu")
    stored = read_all(f"{tmp_path}/out").astype(float)
    picked = np.sqrt(np.square(stored[::8] - voxels).mean())
    assert report.consistency.rms == pytest.approx(picked, rel=0.2)
    averaged = np.sqrt(np.square(stored.reshape(12, 8, 40, 40).mean(1) - voxels).mean())
    assert report.consistency.rms < averaged / 2
