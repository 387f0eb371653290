"""What a plan says of sections: evident damage, cheaply, and nothing where there is none."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from jobs import Command, noise, write_source

import isochunk
from isochunk.core.geometry import Box
from isochunk.engine.section_hint import SAMPLE_BYTES, hint_of_sections
from isochunk.storage.access import Access
from isochunk.storage.volume import Volume


def tissue(depth: int) -> np.ndarray:
    fine = noise((depth, 200, 200), seed=1) // 4
    return np.repeat(noise((1, 200, 200)) // 4, depth, 0) + fine + 60


def test_blank_and_uneven_sections_are_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, run: Command
) -> None:
    voxels = tissue(60)
    voxels[:3] = 0  # padding
    voxels[20] = 0
    voxels[41] += 40
    url = write_source(f"file://{tmp_path}/in", voxels, "40,10,10", offset=(7, 0, 0))
    told = run("plan", url, f"file://{tmp_path}/out", "--model", "linear")["sections_hint"]
    assert told == {
        "looked_at": 60,
        "lost": [27],
        "uneven": [48],
        "command": f"isochunk inspect {url} --out sections.toml",
    }
    assert "1 look lost and 1 uneven, as z = 27" in caplog.text
    boxed = hint_of_sections(url, Access(), Box((30, 0, 0), (60, 200, 200)))
    assert boxed is not None
    assert (boxed.blank, boxed.uneven) == ((), (48,))


def test_nothing_is_said_of_clean_and_of_odd_volumes(tmp_path: Path, run: Command) -> None:
    for name, voxels in (
        ("clean", tissue(30)),
        ("one", tissue(1)),
        ("black", np.zeros((8, 64, 64), np.uint8)),
    ):
        url = write_source(f"file://{tmp_path}/{name}", voxels, "40,10,10")
        told = run("plan", url, f"file://{tmp_path}/{name}.out", "--model", "linear")
        assert "sections_hint" not in told
    assert hint_of_sections(f"file://{tmp_path}/nowhere", Access()) is None


@pytest.mark.parametrize("name", ["medulla_fibsem_250.ome.zarr", "vnc_sstem"])
def test_nothing_is_said_of_real_volumes(shared_data: Path, name: str) -> None:
    assert hint_of_sections(f"{shared_data}/{name}", Access()) is None


def test_little_is_read_of_a_large_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = write_source(f"file://{tmp_path}/in", np.repeat(tissue(40), 5, 1), "40,10,10")
    monkeypatch.setattr("isochunk.engine.section_hint.SAMPLE_BYTES", 4 * 128 * 128 * 16)
    read = []

    def opened(url: str, access: Access) -> Volume:
        volume = isochunk.open(url)
        whole = volume.read

        class Counted:
            spec = volume.spec

            def read(self, box: Box, level: int = 0) -> np.ndarray:
                read.append(box)
                return whole(box, level)

        return Counted()

    monkeypatch.setattr("isochunk.engine.section_hint.open_volume", opened)
    with caplog.at_level(logging.INFO):
        assert hint_of_sections(url, Access()) is None
    assert 0 < sum(box.size for box in read) <= SAMPLE_BYTES / 4
