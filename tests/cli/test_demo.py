"""The demo as a new user meets it: real tissue, a truth, a page, and few words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jobs import command, read_all

import isochunk
from isochunk.core import tissue
from isochunk.core.geometry import Box

CUBE = Path(__file__).resolve().parents[3] / "shared/data/medulla_fibsem_250.ome.zarr"


@pytest.mark.skipif(not CUBE.exists(), reason="the medulla cube is not at hand")
def test_the_tissue_is_what_its_words_say() -> None:
    middle = Box((45, 45, 45), (205, 205, 205))
    np.testing.assert_array_equal(tissue.truth(), isochunk.open(str(CUBE)).read(middle))


def test_its_files_are_small_and_say_whose_they_are() -> None:
    folder = Path(tissue.__file__).parent
    assert (folder / "medulla.png").stat().st_size < 3e6
    words = (folder / "medulla.md").read_text()
    assert "CC-BY" in words
    assert "10.1371/journal.pone.0125825" in words


def test_the_source_holds_means_of_four_sections(tmp_path: Path) -> None:
    stored = read_all(isochunk.sample_tissue(tmp_path))
    assert stored.shape == (40, 160, 160)
    mean = tissue.truth().astype(float).reshape(40, 4, 160, 160).mean(1)
    assert np.abs(stored - mean).max() <= 0.5


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "isochunk.cli", "demo"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 15
    assert lines[-4:] == [
        f"file://{tmp_path}/demo/index.html",
        f"isochunk view demo/isotropic file://{tmp_path}/demo/anisotropic",
        "isochunk inspect YOUR_VOLUME",
        "isochunk plan YOUR_VOLUME TARGET --model anyz-z2-10",
    ]
    gained = re.search(r"dB of PSNR, \+(\d\.\d+) over cubic", done.stdout)
    assert float(gained.group(1)) > 1.5
    page = (tmp_path / "demo/index.html").read_text()
    assert page.count("<img ") == 12
    assert f"+{gained.group(1)} over" in re.sub(r"\s+", " ", page)
    assert "were read again and are as written" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)


@pytest.mark.slow
def test_the_demo_as_json_again(tmp_path: Path) -> None:
    """In the same folder, over what is there."""
    for _ in range(2):
        told = command("demo", "--out", f"{tmp_path}/d", "--workers", "1")
        assert told.keys() == {"plan", "run", "audit", "compared", "page"}
        assert told["run"]["complete"] is True
        assert told["audit"]["complete"] is True
        assert told["run"]["seam"]["identical_fraction"] == 1
        assert told["compared"]["low"] > 1.3
