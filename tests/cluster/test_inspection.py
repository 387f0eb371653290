"""Sections measured by workers are those measured here, and a dead worker changes nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import clusters
import numpy as np
import pytest
from distributed import Client
from jobs import Command, noise, write_source

import isochunk
from isochunk.errors import StorageError


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A volume of several tasks, with a lost section where two of them meet."""
    monkeypatch.setattr("isochunk.cluster.inspection.TASK_SECTIONS", 64)
    voxels = np.repeat(noise((1, 128, 128)), 200, 0)
    voxels += noise((200, 128, 128), seed=1) // 4
    voxels[[64, 130]] = 0
    return write_source(f"file://{tmp_path}/in", voxels)


def test_workers_find_the_same(source: str, client: Client) -> None:
    here, there = isochunk.inspect(source), isochunk.inspect(source, client=client)
    assert repr(there.profiles) == repr(here.profiles)
    assert there.findings == here.findings
    assert [s.z for s in there.findings.lost] == [64, 130]
    boxed = isochunk.inspect(source, "60:190,0:100,0:100", client=client)
    assert repr(boxed) == repr(isochunk.inspect(source, "60:190,0:100,0:100"))


def test_the_command_starts_a_cluster(source: str, run: Command) -> None:
    assert run("inspect", source, "--workers", "2") == run("inspect", source)


def test_what_cannot_be_read_is_told(source: str, client: Client) -> None:
    folder = Path(source.removeprefix("file://"))
    (scale,) = (f for f in folder.iterdir() if f.is_dir())
    sorted(scale.iterdir())[0].write_bytes(b"torn")
    with pytest.raises(StorageError, match=source):
        isochunk.inspect(source, client=client)


def test_a_dead_worker_is_survived(source: str, tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    with clusters.cluster(tmp_path / "cluster") as parts, Client(parts.address) as client:
        isochunk.inspect(source, client=client)  # both have loaded what they need
        client.wait_for_workers(2)
        killed = threading.Timer(0.2, parts.worker(0).kill)
        killed.start()
        found = isochunk.inspect(source, client=client)
        killed.join()
    assert repr(found.profiles) == repr(isochunk.inspect(source).profiles)
