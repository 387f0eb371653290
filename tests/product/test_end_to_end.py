"""Whole jobs on real volumes, through the program, to real object stores, read by other readers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from cloudvolume import CloudVolume
from jobs import command, read_all, write_source
from servers import ObjectServer
from whole import keys_whole

import isochunk
from isochunk.evaluation.metrics import psnr

pytestmark = pytest.mark.slow

CLEFT = (slice(100, 148), slice(700, 760))
"""A part of the sections of vnc_sstem, over the whole depth."""


def run_vnc(shared_data: Path, target: str, *options: str) -> dict[str, object]:
    """Make vnc_sstem isotropic with two worker processes, and audit it."""
    result = command(
        "run",
        f"{shared_data}/vnc_sstem",
        target,
        "--model",
        "cubic",
        "--spacing",
        "4.6,4.6,4.6",
        "--workers",
        "2",
        *options,
    )
    assert result["complete"]
    assert result["voxels"] == 200 * 1024 * 1024
    assert result["seam"]["max_difference"] == 0
    audited = command("audit", target)
    assert audited["complete"]
    assert audited["expected"] >= result["blocks"]["total"]
    return result


@pytest.mark.timeout(900)
def test_vnc_sstem_to_both_clouds(
    shared_data: Path, s3: str, gcs: str, gcs_server: ObjectServer
) -> None:
    source = isochunk.open(f"{shared_data}/vnc_sstem")
    run_vnc(shared_data, f"precomputed://{s3}/vnc")
    volume = isochunk.open(f"{s3}/vnc")
    assert volume.spec.levels[0].shard is not None
    voxels = volume.read(volume.spec.box)
    # Right where it can be computed by hand, and so for every reader that agrees.
    exact = keys_whole(source.read(source.spec.box)[:, CLEFT[0], CLEFT[1]], 10)
    part = voxels[:, CLEFT[0], CLEFT[1]]
    assert part.std() > 10
    assert np.abs(part - np.clip(exact, 0, 255)).max() <= 0.501

    cloud = CloudVolume(f"precomputed://{s3}/vnc", progress=False)
    assert cloud.resolution.tolist() == pytest.approx([4.6, 4.6, 4.6])
    assert cloud.voxel_offset.tolist() == [0, 0, 0]
    assert np.array_equal(np.asarray(cloud[:])[..., 0].T, voxels)

    run_vnc(shared_data, f"{gcs}/vnc.zarr", "--format", "ome-zarr")
    # The folder behind the server, as it stores the objects: zarr-python knows GCS only by gcsfs.
    stored = gcs_server.root / gcs.removeprefix("gs://") / "vnc.zarr"
    group = zarr.open_group(stored, mode="r")
    assert group.attrs["ome"]["version"] == "0.5"
    entry = group.attrs["ome"]["multiscales"][0]
    scale, translation = entry["datasets"][0]["coordinateTransformations"]
    assert [axis["name"] for axis in entry["axes"]] == ["z", "y", "x"]
    assert scale["scale"] == [4.6, 4.6, 4.6]
    # The centre of voxel 0: the first corner is the source's, 0 nm.
    assert translation["translation"] == [2.3, 2.3, 2.3]
    array = group[entry["datasets"][0]["path"]]
    assert array.shards is not None
    assert np.array_equal(array[:], voxels)
    for level, dataset in enumerate(entry["datasets"][1:], 1):
        assert np.array_equal(
            group[dataset["path"]][:], volume.read(volume.spec.levels[level].box, level)
        )


@pytest.mark.timeout(900)
def test_the_shipped_network_against_cubic(shared_data: Path, tmp_path: Path) -> None:
    """On a cube that it never saw, whose sections are averaged by 4."""
    volume = isochunk.open(f"{shared_data}/medulla_fibsem_250.ome.zarr")
    truth = volume.read(volume.spec.box)[:248]  # whole sections of 4
    sections = truth.reshape(62, 4, 250, 250).mean(1)
    source = write_source(f"file://{tmp_path}/in", np.rint(sections).astype(np.uint8), "40,10,10")
    decibels = {}
    for model in ("cubic", "fsrcnn-z4"):
        target = f"{tmp_path}/{model}"
        result = command("run", source, target, "--model", model)
        assert result["complete"]
        assert result["seam"] is None or result["seam"]["max_difference"] <= 1
        assert command("audit", target)["complete"]
        got = read_all(target)
        assert got.shape == truth.shape
        # As evaluate: two sections at either end are left out.
        decibels[model] = psnr(truth[8:-8], got[8:-8])
    print(json.dumps(decibels))
    assert decibels["fsrcnn-z4"] >= decibels["cubic"] + 1.0
