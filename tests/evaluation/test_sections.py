"""``evaluate --sections``: a volume is judged as its table says, and never by what was filled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jobs import Command, write_source

from isochunk.core.sections import Section, SectionTable


def tissue(shape: tuple[int, int, int]) -> np.ndarray:
    """Waves of even grey levels."""
    z, y, x = np.mgrid[tuple(map(slice, shape))]
    waves = 40 * np.sin(y / 5 + z / 2) + 30 * np.cos(x / 4 - z / 3)
    return (120 + waves).astype(np.uint8) // 2 * 2


def write(folder: Path, spacing: str, *, shape: tuple[int, int, int]) -> tuple[str, str, str]:
    """Write a volume, the same with two sections darker, and the table that mends it."""
    voxels = tissue(shape)
    good = write_source(f"{folder}/good", voxels, spacing)
    voxels[3:5] //= 2
    bad = write_source(f"{folder}/bad", voxels, spacing)
    sections = (Section(3, gain=2.0), Section(4, gain=2.0), Section(shape[0] - 1, lost=True))
    (folder / "t.toml").write_text(SectionTable(bad, sections).text())
    return good, bad, str(folder / "t.toml")


def figures(told: dict) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in told["rows"]]


def test_without_a_truth(tmp_path: Path, run: Command) -> None:
    good, bad, table = write(tmp_path, "40,10,10", shape=(16, 64, 56))
    options = ("--box", "0:15,0:64,0:56")
    wanted = figures(run("evaluate", "--source", good, *options))
    assert figures(run("evaluate", "--source", bad, *options)) != wanted
    assert figures(run("evaluate", "--source", bad, *options, "--sections", table)) == wanted


def test_with_a_truth(tmp_path: Path, run: Command) -> None:
    good, bad, table = write(tmp_path, "10,10,10", shape=(52, 40, 40))
    options = ("--factor", "2", "--box", "0:48,0:40,0:40")
    wanted = figures(run("evaluate", "--truth", good, *options))
    assert figures(run("evaluate", "--truth", bad, *options)) != wanted
    assert figures(run("evaluate", "--truth", bad, *options, "--sections", table)) == wanted
    _, err = run.text("evaluate", "--truth", bad, "--factor", "2", "--sections", table, code=2)
    assert "sections 51:52 of" in err
    assert "are lost, so there is no truth to compare with in 0:52,0:40,0:40" in err
