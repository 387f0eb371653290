"""Targets that an earlier isochunk began are resumed, audited and repaired by this one.

``old_targets`` holds two, as ``old_targets/make.py`` wrote them and left them half done, and the
network of one, which was shipped when it was begun.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from jobs import read_all, tree_digest

import isochunk
from isochunk.api.jobs import repair
from isochunk.engine.target import open_written_target as open_result
from isochunk.engine.target import status
from isochunk.errors import ModelError, TargetConflictError

OLD = Path(__file__).with_name("old_targets")
WHERE_IT_WAS = "/elsewhere"
"""The folder that the records name; they are told where it is now."""

SMALL = {"chunk": "8,8,8", "shard": "16,16,16", "block": "16,16,16"}
CASES = {
    "network": {"model": f"{OLD}/srunet-z4-small", "levels": 2, "memory": "2GiB"},
    "cubic.zarr": {"model": "cubic", "format": "ome-zarr", "levels": 3},
}
THEN = {"network": "raw", "cubic.zarr": "zstd"}
"""Encodings that were the default when they were begun; they keep them."""
DONE = {"network": 12, "cubic.zarr": 18}
FIRST = {"network": "8_8_8/00.shard", "cubic.zarr": "s0/c/0/0/0"}
"""An object of each."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the old targets, with their sources."""
    shutil.copytree(OLD, tmp_path / "old")
    for name in ("*/.isochunk/job.json", "*/zarr.json", "*/provenance"):
        for record in (tmp_path / "old").glob(name):
            record.write_text(record.read_text().replace(WHERE_IT_WAS, str(tmp_path / "old")))
    return tmp_path / "old"


def job(old: Path, name: str, target: Path, **more: str) -> isochunk.Job:
    mask = {"mask": f"file://{old}/mask"} if name == "cubic.zarr" else {}
    return isochunk.Job(
        source=f"file://{old}/source",
        target=f"file://{target}",
        **{**SMALL, **CASES[name], **mask, **more},
    )


@pytest.mark.parametrize("name", CASES)
def test_an_old_target_is_resumed_audited_and_repaired(name: str, old: Path, tmp_path: Path):
    target = old / name
    assert status(str(target))["blocks"]["done"] == DONE[name]
    before = isochunk.audit(str(target))
    assert {hole.reason for hole in before.holes} == {"its block was never finished"}

    report = isochunk.run(isochunk.plan(job(old, name, target)))
    assert (report.resumed, report.complete) == (DONE[name], True)
    assert isochunk.audit(str(target)).complete

    fresh = tmp_path / "fresh" / name
    assert isochunk.plan(job(old, name, fresh)).target.encoding != THEN[name], "no default now"
    assert isochunk.run(isochunk.plan(job(old, name, fresh, encoding=THEN[name]))).complete
    if name == "network":  # whose last bit is the processor's
        apart = read_all(f"file://{fresh}").astype(int) - read_all(f"file://{target}")
        assert abs(apart).max() <= 1
        assert (apart == 0).mean() >= 0.9999
    else:
        assert tree_digest(target) == tree_digest(fresh)

    (key,) = open_result(str(target)).store.keys(FIRST[name])
    (target / key).write_bytes(b"damaged")
    found, again = repair(str(target), {"model": job(old, name, target).model})
    assert [hole.object for hole in found.holes] == [key]
    assert again.complete
    assert isochunk.audit(str(target)).complete


@pytest.mark.parametrize("name", CASES)
def test_another_job_is_still_refused_at_an_old_target(name: str, old: Path):
    other = job(old, "cubic.zarr" if name == "network" else "network", old / name)
    with pytest.raises(TargetConflictError):
        isochunk.plan(other)


def test_a_network_that_is_no_longer_shipped_is_asked_for(old: Path):
    with pytest.raises(ModelError, match=r"no longer shipped; .*--model and the folder"):
        repair(str(old / "network"))
