"""The public functions, as a script calls them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from jobs import noise, read_all, write_source

import isochunk
from isochunk.errors import UsageError

SMALL = {"chunk": "16,16,16", "shard": "32,32,32", "block": "32,32,32"}


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_source(f"file://{tmp_path}/in", noise((9, 40, 44)))


def test_a_volume_that_does_not_say_its_voxel_size_is_told_it(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "plain", shape=(4, 5, 6), dtype="uint8")
    array[:] = np.arange(120).reshape(4, 5, 6)
    with pytest.raises(UsageError, match=r"voxel size of .* --source-spacing Z,Y,X"):
        isochunk.open(str(tmp_path / "plain"))
    volume = isochunk.open(str(tmp_path / "plain"), source_spacing="46,4.6,4.6")
    assert volume.spec.spacing == isochunk.Spacing.parse("46,4.6,4.6")
    np.testing.assert_array_equal(volume.read(volume.spec.box), array[:])


def test_a_lazy_array_takes_the_options_of_a_job(source: str, tmp_path: Path) -> None:
    job = isochunk.Job(
        source=source, target=f"{tmp_path}/out", model="cubic", box="2:7,4:36,8:40", **SMALL
    )
    assert isochunk.run(isochunk.plan(job)).complete
    lazy = isochunk.isotropic(source, "cubic", box="2:7,4:36,8:40", block="32,32,32")
    np.testing.assert_array_equal(lazy.compute(), read_all(f"{tmp_path}/out"))
    with pytest.raises(UsageError, match="unknown bloc; known are"):
        isochunk.isotropic(source, "cubic", bloc="32,32,32")


def test_one_cluster_runs_several_plans(source: str, tmp_path: Path) -> None:
    with isochunk.start_cluster("local", workers=1) as client:
        for model in ("linear", "cubic"):
            target = f"{tmp_path}/{model}"
            plan = isochunk.plan(isochunk.Job(source=source, target=target, model=model, **SMALL))
            assert isochunk.run(plan, client).complete
            assert isochunk.status(target)["complete"]


def test_the_waiting_time_of_a_cluster_file_is_that_of_its_runs(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text('kind = "local"\nworkers = 1\nwait_s = 77\n')
    with isochunk.start_cluster(f"{tmp_path}/cluster.toml") as client:
        assert client.wait_s == 77


def test_repair_changes_how_and_not_what(source: str, tmp_path: Path) -> None:
    target = f"{tmp_path}/out"
    job = isochunk.Job(source=source, target=target, model="cubic", **SMALL)
    assert isochunk.run(isochunk.plan(job)).complete
    with pytest.raises(UsageError, match="levels cannot be changed without changing the output"):
        isochunk.repair(target, {"levels": 2})
    found, report = isochunk.repair(target, {"memory": "3GiB"})
    assert found.complete
    assert report.complete
