"""Whole runs through the public API, in this process: bytes, pyramid, audit, resume."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import zarr
from cloudvolume import CloudVolume
from interpolations import ONE, predict, predictor
from jobs import noise, read_all, slow_model, tree_digest, write_source

import isochunk
from isochunk.core.geometry import Box, target_box
from isochunk.core.voxels import pool
from isochunk.errors import TargetConflictError
from isochunk.storage.open import open_store

SHAPE = (13, 70, 90)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A source with an offset, of noise, 40 x 10 x 10 nm."""
    return write_source(f"file://{tmp_path}/in", noise(SHAPE), offset=(4, -8, 16))


BLOCKS = {"shard": "32,32,32", "block": "32,32,32"}


def job(source: str, target: str, **options: object) -> isochunk.Job:
    return isochunk.Job(
        source=source, target=target, **{"model": "cubic", "chunk": "16,16,16", **options}
    )


def whole(voxels: np.ndarray, factor: Fraction, offset: tuple[int, int, int]) -> np.ndarray:
    bounds = Box.from_shape(voxels.shape, offset)
    model = predictor("cubic", (factor, ONE, ONE))
    return predict(model, voxels, bounds, target_box(bounds, model.spec.resolved_factor))


LAYOUTS = {
    "sharded": BLOCKS,
    "plain": {"shard": "none", "block": "16,48,32"},
    "columns": {"shard": "32,32,32", "block": "64,32,64"},
    "ome": {**BLOCKS, "format": "ome-zarr"},
    "ome plain gzip": {"shard": "none", "format": "ome-zarr", "encoding": "gzip"},
    "one block": {},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_run_equals_the_whole_volume_at_every_level(
    source: str, tmp_path: Path, layout: dict[str, str]
) -> None:
    target = f"file://{tmp_path}/out"
    plan = isochunk.plan(job(source, target, **layout))
    report = isochunk.run(plan)
    assert report.complete, report.errors
    wanted = whole(noise(SHAPE), Fraction(4), (4, -8, 16))
    for level in range(len(plan.target.levels)):
        np.testing.assert_array_equal(read_all(target, level), wanted)
        wanted = pool(wanted, (2, 2, 2))
    assert len(plan.target.levels) >= 3
    audited = isochunk.audit(target)
    assert audited.complete
    if report.seam is not None:
        assert report.seam.identical == report.seam.voxels > 0
    assert report.voxels == plan.target.box.size


def test_other_readers_agree(source: str, tmp_path: Path) -> None:
    wanted = whole(noise(SHAPE), Fraction(4), (4, -8, 16))
    isochunk.run(isochunk.plan(job(source, f"file://{tmp_path}/p", **BLOCKS)))
    volume = CloudVolume(f"file://{tmp_path}/p", progress=False, fill_missing=True)
    assert volume.voxel_offset.tolist() == [16, -8, 16]
    assert volume.resolution.tolist() == [10, 10, 10]
    np.testing.assert_array_equal(np.asarray(volume[:])[..., 0].T, wanted)
    isochunk.run(isochunk.plan(job(source, f"{tmp_path}/o.zarr", **BLOCKS)))
    group = zarr.open_group(f"{tmp_path}/o.zarr", mode="r")
    multiscales = group.attrs["ome"]["multiscales"][0]
    np.testing.assert_array_equal(group[multiscales["datasets"][0]["path"]][:], wanted)
    scale, translation = multiscales["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == [10, 10, 10]
    assert translation["translation"] == [165, -75, 165]


@pytest.mark.parametrize("factor", [Fraction(10), Fraction(225, 23)])
def test_rational_factors_and_uint16(tmp_path: Path, factor: Fraction) -> None:
    voxels = noise((5, 40, 33), "uint16")
    spacing = {Fraction(10): "46,4.6,4.6", Fraction(225, 23): "45,4.6,4.6"}[factor]
    source = write_source(f"file://{tmp_path}/in", voxels, spacing)
    target = f"file://{tmp_path}/out"
    report = isochunk.run(isochunk.plan(job(source, target, shard="16,16,32")))
    assert report.complete
    np.testing.assert_array_equal(read_all(target), whole(voxels, factor, (0, 0, 0)))


def test_a_box_is_the_crop_of_the_whole(source: str, tmp_path: Path) -> None:
    target = f"file://{tmp_path}/out"
    isochunk.run(isochunk.plan(job(source, target, box="6:11,0:50,20:70", shard="none")))
    wanted = whole(noise(SHAPE), Fraction(4), (4, -8, 16))
    box = Box.parse("24:44,0:50,20:70")
    assert isochunk.open(target).spec.box == box
    np.testing.assert_array_equal(read_all(target), wanted[box.slices((16, -8, 16))])


def test_background_is_not_stored_and_masks_leave_background(tmp_path: Path) -> None:
    voxels = noise((8, 64, 64))
    voxels[:, :, :40] = 0
    source = write_source(f"file://{tmp_path}/in", voxels)
    report = isochunk.run(isochunk.plan(job(source, f"{tmp_path}/out", **BLOCKS)))
    assert report.complete
    assert 0 < report.empty < report.total
    assert isochunk.audit(f"{tmp_path}/out").complete
    mask = np.zeros((2, 4, 4), np.uint8)
    mask[:, :2, :] = 1
    where = write_source(f"file://{tmp_path}/mask", mask, "160,160,160")
    target = f"{tmp_path}/masked"
    report = isochunk.run(isochunk.plan(job(source, target, **BLOCKS, mask=where)))
    wanted = whole(voxels, Fraction(4), (0, 0, 0))
    wanted[:, 32:] = 0
    np.testing.assert_array_equal(read_all(target), wanted)


def test_the_same_job_again_computes_nothing(source: str, tmp_path: Path) -> None:
    target = f"file://{tmp_path}/out"
    plan = isochunk.plan(job(source, target, **BLOCKS))
    first = isochunk.run(plan)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*.shard")}
    again = isochunk.run(isochunk.plan(job(source, target, **BLOCKS, memory="2GiB")))
    assert again.resumed == again.total == again.done == first.total
    assert again.voxels == 0
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*.shard")}


def test_another_job_on_the_same_target_is_refused(source: str, tmp_path: Path) -> None:
    target = f"file://{tmp_path}/out"
    isochunk.run(isochunk.plan(job(source, target, **BLOCKS)))
    with pytest.raises(TargetConflictError, match=r"model.arch was cubic and is now linear"):
        isochunk.plan(job(source, target, **BLOCKS, model="linear"))
    report = isochunk.run(
        isochunk.plan(job(source, target, **BLOCKS, model="linear", overwrite=True))
    )
    assert report.complete
    assert report.resumed == 0
    assert isochunk.audit(target).complete


def test_two_runs_give_the_same_bytes(source: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        isochunk.run(isochunk.plan(job(source, f"{tmp_path}/{name}", **BLOCKS)))
    assert tree_digest(tmp_path / "a") == tree_digest(tmp_path / "b")


def test_the_plan_counts_the_objects(source: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    plan = isochunk.plan(job(source, str(target), **BLOCKS))
    isochunk.run(plan)
    assert len(tree_digest(target)) - len(["info"]) == plan.summary()["objects_written"]


def test_audit_names_the_holes_and_repair_mends_only_them(source: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    plan = isochunk.plan(job(source, str(target), **BLOCKS))
    isochunk.run(plan)
    good = tree_digest(target)
    finest, coarse = (target / plan.target.levels[i].key for i in (0, 1))
    gone, noisy, small = (
        sorted(finest.glob("*.shard"))[2],
        sorted(finest.glob("*.shard"))[5],
        sorted(coarse.iterdir())[1],
    )
    gone.unlink()
    noisy.write_bytes(noise((noisy.stat().st_size, 1, 1)).tobytes())
    small.unlink()
    untouched = {f: f.stat().st_mtime_ns for f in target.rglob("*") if f.is_file() and f != noisy}
    audited = isochunk.audit(str(target)).summary()
    assert not audited["complete"]
    assert sorted(h["object"] for h in audited["missing"]) == sorted(
        str(f.relative_to(target)) for f in (gone, small)
    )
    assert [h["object"] for h in audited["corrupt"]] == [str(noisy.relative_to(target))]
    from isochunk.api.jobs import repair

    _, report = repair(str(target))
    assert report.complete
    blocks = {(h["stage"], h["block"]) for h in audited["missing"] + audited["corrupt"]}
    assert report.done - report.resumed == len(blocks)
    assert tree_digest(target) == good
    assert isochunk.audit(str(target)).complete
    changed = [f for f, at in untouched.items() if f.exists() and f.stat().st_mtime_ns != at]
    assert len([f for f in changed if f.suffix == ".shard"]) <= 3 * len(blocks)


@pytest.mark.slow
def test_a_run_that_failed_in_the_middle_is_finished_by_repair(tmp_path: Path) -> None:
    """A truncated source chunk fails its blocks, by name; the rest is done."""
    voxels = noise((8, 96, 96))
    source = write_source(f"file://{tmp_path}/in", voxels)
    chunk = next((tmp_path / "in").rglob("32-64_32-64_0-8"))
    data = chunk.read_bytes()
    chunk.write_bytes(data[:100])
    target = f"{tmp_path}/out"
    report = isochunk.run(isochunk.plan(job(source, target, **BLOCKS)))
    assert not report.complete
    assert report.failed >= 1
    assert "in" in report.errors[0]
    assert "block" in report.errors[0]
    done = report.done
    assert done >= 1
    chunk.write_bytes(data)
    from isochunk.api.jobs import repair

    _, mended = repair(target)
    assert mended.complete
    assert mended.resumed == done
    np.testing.assert_array_equal(read_all(target), whole(voxels, Fraction(4), (0, 0, 0)))
    assert isochunk.audit(target).complete


def test_jpeg_is_audited_by_what_it_decodes_to(source: str, tmp_path: Path) -> None:
    target = f"{tmp_path}/out"
    report = isochunk.run(isochunk.plan(job(source, target, **BLOCKS, encoding="jpeg")))
    assert report.complete
    assert isochunk.audit(target).complete


def test_records_and_provenance(source: str, tmp_path: Path) -> None:
    target = f"file://{tmp_path}/out"
    isochunk.run(isochunk.plan(job(source, target, **BLOCKS)))
    store = open_store(target)
    record = json.loads(store.get(".isochunk/job.json") or b"")
    assert record["isochunk"] == isochunk.__version__
    assert record["plan"]["model"]["sha256"]
    assert source in (store.get("provenance") or b"").decode()
    isochunk.run(isochunk.plan(job(source, f"{tmp_path}/o.zarr", **BLOCKS)))
    group = json.loads((tmp_path / "o.zarr" / "zarr.json").read_text())
    assert group["attributes"]["isochunk"]["source"] == source


def test_a_model_of_the_users_own(source: str, tmp_path: Path) -> None:
    model = slow_model(tmp_path, 0)
    target = f"{tmp_path}/out"
    report = isochunk.run(isochunk.plan(job(source, target, model=model, trust=True, **BLOCKS)))
    assert report.complete, report.errors
    np.testing.assert_array_equal(read_all(target), noise(SHAPE).repeat(4, 0))


def test_the_lazy_array_is_the_run(source: str, tmp_path: Path) -> None:
    lazy = isochunk.isotropic(source, "cubic")
    wanted = whole(noise(SHAPE), Fraction(4), (4, -8, 16))
    assert lazy.shape == wanted.shape
    np.testing.assert_array_equal(lazy[10:40, 5:30].compute(), wanted[10:40, 5:30])
