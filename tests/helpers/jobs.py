"""Small real jobs for tests: sources on disk, models that take their time, the program itself."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isochunk.cli.main import main
from isochunk.core.geometry import Box, Spacing, Triple
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.storage.open import create_volume, open_store, open_volume

SLOW_MODEL = '''
import time
import torch

class Slow(torch.nn.Module):
    """Repeats sections four times, after a pause."""

    factor = (4, 1, 1)
    halo = (1, 1, 1)

    def forward(self, x):
        if x.dtype == torch.float32:  # not while the halo is probed
            time.sleep({seconds})
        return x.repeat_interleave(4, dim=2)

def make():
    return Slow()
'''


def noise(shape: Triple, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Voxels of which no two boxes are alike and none is background."""
    return np.random.default_rng(seed).integers(1, np.iinfo(dtype).max + 1, shape, dtype)


def write_source(
    url: str,
    voxels: np.ndarray,
    spacing: str = "40,10,10",
    offset: Triple = (0, 0, 0),
    chunk: Triple = (16, 32, 32),
) -> str:
    """Write an unsharded precomputed volume and return its URL."""
    level = LevelSpec(
        "0", Box.from_shape(voxels.shape, offset), Spacing.parse(spacing), chunk, None
    )
    zero = (Fraction(0), Fraction(0), Fraction(0))
    spec = VolumeSpec(url, "precomputed", str(voxels.dtype), "raw", zero, (level,))
    create_volume(spec).write(level.box, voxels)
    return url


def slow_model(folder: Path, seconds: float) -> str:
    """Write a model that sleeps in every tile and return how to name it."""
    file = folder / "slow_model.py"
    file.write_text(SLOW_MODEL.format(seconds=seconds))
    return f"{file}:make"


def read_all(url: str, level: int = 0) -> np.ndarray:
    """Read a whole level."""
    volume = open_volume(url)
    return volume.read(volume.spec.levels[level].box, level)


def tree_digest(folder: Path) -> dict[str, str]:
    """Digest every stored object of a volume, without the job's own records and provenance."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".isochunk" not in file.parts and file.name != "provenance"
    }


def stored_objects(url: str) -> dict[str, bytes]:
    """Return every object below a URL, by key."""
    store = open_store(url)
    keys = store.keys()
    return {key: content or b"" for key, content in zip(keys, store.get_all(keys), strict=True)}


def stored_digests(url: str) -> dict[str, str]:
    """Return what :func:`tree_digest` does, of any storage."""
    return {
        key: hashlib.sha256(content).hexdigest()
        for key, content in stored_objects(url).items()
        if not key.startswith(".isochunk") and key != "provenance"
    }


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """Start the program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "isochunk.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def command(*arguments: str, code: int | tuple[int, ...] = 0) -> dict[str, Any]:
    """Run the program with ``--json`` and return its object; its exit code must be ``code``."""
    process = start(*arguments, "--json")
    out, err = process.communicate(timeout=300)
    wanted = code if isinstance(code, tuple) else (code,)
    assert process.returncode in wanted, (process.returncode, out.decode(), err.decode())
    result: dict[str, Any] = json.loads(out)
    return result


def look(*arguments: str) -> str:
    """Run ``isochunk view``, open its link, end it as a user does, and return the link."""
    process = start("view", *arguments, "--json")
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told.keys() == {"neuroglancer_url"}
        with urllib.request.urlopen(told["neuroglancer_url"], timeout=60) as page:
            assert b"neuroglancer" in page.read().lower()
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, b"")
        assert b"Traceback" not in err
    finally:
        process.kill()
        process.communicate()
    link: str = told["neuroglancer_url"]
    return link


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


class Command:
    """Runs commands in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Run with ``--json``; standard output must be one object on one line."""
        out, _ = self.text(*arguments, "--json", code=code)
        assert out.count("\n") == 1
        result: dict[str, Any] = json.loads(out)
        return result

    def text(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run and return what was printed to standard output and standard error."""
        self.capsys.readouterr()
        got = main([*arguments])
        out, err = self.capsys.readouterr()
        assert got == code, (got, out, err)
        return out, err
