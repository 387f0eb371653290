"""A target that was begun keeps its blocks and its encoding, whatever would be chosen now."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import user_networks
from jobs import noise, read_all, tree_digest, write_source
from networks import tissue

import isochunk
from isochunk.errors import TargetConflictError
from isochunk.storage.keys import object_keys
from isochunk.storage.open import create_volume

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


class StoppedError(Exception):
    """Someone ends the run."""


def stop_in_the_middle(report: isochunk.Report) -> None:
    if report.done:
        raise StoppedError


@pytest.fixture
def small(tmp_path: Path) -> isochunk.Job:
    """A job of workers so small that the volume is four blocks."""
    return isochunk.Job(
        source=write_source(f"file://{tmp_path}/in", tissue((40, 40, 1000), "uint8"), "20,10,10"),
        target=f"{tmp_path}/out",
        model=f"{user_networks.__file__}:kernels",
        trust=True,
        workers=1,
        memory="805MiB",
        chunk="16,16,16",
        shard="none",
        levels=1,
    )


def test_blocks_of_a_target_stay_and_only_what_is_missing_is_computed(
    small: isochunk.Job, tmp_path: Path
) -> None:
    large = replace(small, memory="4GiB")
    elsewhere = isochunk.plan(replace(large, target=f"{tmp_path}/whole"))
    begun = isochunk.plan(small)
    assert (begun.total_blocks, elsewhere.total_blocks) == (4, 1), "memory suggests other blocks"
    with pytest.raises(StoppedError):
        isochunk.run(begun, watch=stop_in_the_middle)
    done = isochunk.status(small.target)["blocks"]["done"]
    assert 0 < done < 4
    stored = tree_digest(tmp_path / "out")

    plan = isochunk.plan(large)
    assert plan.stages == begun.stages
    assert np.prod(plan.tile) > np.prod(begun.tile), "tiles are no part of the job"
    assert plan.summary()["with_twice_the_memory"]["block"] == list(begun.stages[0].block)
    report = isochunk.run(plan)
    assert report.complete
    assert (report.resumed, report.done) == (done, 4)
    assert isochunk.audit(small.target).complete
    assert stored.items() <= tree_digest(tmp_path / "out").items()
    isochunk.run(elsewhere)
    difference = np.abs(
        read_all(small.target).astype(int) - read_all(f"{tmp_path}/whole").astype(int)
    )
    assert difference.max() <= 1
    assert (difference == 0).mean() >= 0.9999


def test_another_block_asked_for_is_another_job(small: isochunk.Job) -> None:
    begun = isochunk.plan(small)
    with pytest.raises(StoppedError):
        isochunk.run(begun, watch=stop_in_the_middle)
    with pytest.raises(TargetConflictError, match=r"stages was .*256.* and is now .*512"):
        isochunk.plan(replace(small, block="80,48,512", memory="4GiB"))
    same = replace(small, block=begun.stages[0].block, memory="4GiB")
    assert isochunk.plan(same).stages == begun.stages


@pytest.mark.parametrize("encoding", ["raw", "gzip", "png", "zstd", "blosc-zstd:7", "zstd:3"])
def test_a_target_keeps_its_encoding(tmp_path: Path, encoding: str) -> None:
    """Begun in any, it goes on in it, is audited and repaired, to the byte."""
    zarr = "zstd" in encoding
    begun = isochunk.Job(
        source=write_source(f"file://{tmp_path}/in", noise((8, 64, 64))),
        target=f"{tmp_path}/out",
        model="cubic",
        chunk="16,16,16",
        shard="32,32,32",
        block="32,32,32",
        format="ome-zarr" if zarr else None,
        encoding=encoding,
    )
    whole = replace(begun, target=f"{tmp_path}/whole/out")
    isochunk.run(isochunk.plan(whole))
    with pytest.raises(StoppedError):
        isochunk.run(isochunk.plan(begun), watch=stop_in_the_middle)
    assert not isochunk.status(begun.target)["complete"]

    plan = isochunk.plan(replace(begun, encoding=None))
    assert plan.target.encoding == encoding
    assert isochunk.run(plan).complete
    wanted = tree_digest(tmp_path / "whole" / "out")
    assert tree_digest(tmp_path / "out") == wanted
    key = next(object_keys(plan.target, 0, plan.target.box))
    first = tmp_path / "out" / key
    damaged = bytearray(first.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    first.write_bytes(damaged)
    assert len(isochunk.audit(begun.target).holes) == 1
    assert isochunk.repair(begun.target)[1].complete
    assert tree_digest(tmp_path / "out") == wanted

    other = "gzip" if encoding == "raw" else "raw"
    with pytest.raises(TargetConflictError, match="encoding was"):
        isochunk.plan(replace(begun, encoding=other))


def test_how_a_source_is_compressed_is_no_part_of_a_job(tmp_path: Path) -> None:
    voxels = noise((8, 64, 64))
    begun = isochunk.Job(
        source=write_source(f"file://{tmp_path}/in", voxels),
        target=f"{tmp_path}/out",
        model="cubic",
    )
    isochunk.run(isochunk.plan(begun))
    source = isochunk.open(begun.source)
    shutil.rmtree(tmp_path / "in")
    create_volume(replace(source.spec, encoding="png")).write(source.spec.box, voxels)
    again = isochunk.plan(begun)
    assert again.source.encoding == "png"
    report = isochunk.run(again)
    assert report.resumed == report.total
