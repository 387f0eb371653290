"""Sections measured by workers are those measured here, and a dead worker changes nothing."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from clusters import local_cluster
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


def test_a_dead_worker_is_survived(source: str) -> None:
    with local_cluster(2) as client:
        here = isochunk.inspect(source)
        victim = sorted(client.run(os.getpid).values())[0]
        killed = threading.Timer(0.5, os.kill, (victim, signal.SIGKILL))
        killed.start()
        found = isochunk.inspect(source, client=client)
        killed.join()
    assert repr(found.profiles) == repr(here.profiles)
