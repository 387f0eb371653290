"""The walk of docs/real-volumes.md, command by command, on real serial sections."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import Command, look, write_source

import isochunk
from isochunk.core.geometry import Box, Spacing
from isochunk.core.sections import SectionTable

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "real-volumes.md"
ORDER = ("info", "inspect", "train", "evaluate", "plan", "run", "audit", "view")
BLANK, BRIGHT = 7, 13
SEEN, PART = "0:20,300:364,300:364", "0:20,256:384,512:640"
"""What is judged, and what is converted: at full size a quarter of an hour each."""


def commands() -> dict[str, list[str]]:
    """Return the arguments of each command of the walk, by its name."""
    found = re.search(r"<!-- walk -->\n```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    lines = found[1].replace("\\\n", " ").splitlines()
    arguments = [shlex.split(line) for line in lines]
    assert all(words[0] == "isochunk" for words in arguments)
    return {words[1]: words[1:] for words in arguments}


@pytest.mark.timeout(900)
def test_from_raw_sections_to_a_result(
    shared_data: Path, tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = isochunk.open(f"{shared_data}/vnc_sstem")
    voxels = real.read(real.spec.box)
    voxels[BLANK] = 0
    tissue = voxels[BRIGHT] > 0
    brighter = np.clip(1.1 * voxels[BRIGHT].astype(np.float64) + 9, 1, 255)
    voxels[BRIGHT] = np.where(tissue, np.rint(brighter), 0)
    monkeypatch.chdir(tmp_path)
    write_source(f"file://{tmp_path}/em", voxels, "46,4.6,4.6", chunk=(20, 256, 256))
    walk = commands()
    assert list(walk) == [*ORDER]

    def step(name: str, *more: str) -> dict[str, Any]:
        return run(*walk[name], *more)

    assert step("info")["shape"] == [20, 1024, 1024]

    found = step("inspect")
    assert found["lost"] == [BLANK]
    assert [section["z"] for section in found["corrected"]] == [BRIGHT]
    assert found["shifts"] == []
    assert "<html" in Path("found/index.html").read_text()
    table = SectionTable.parse(Path("sections.toml").read_text())
    assert [s.z for s in table.sections if s.lost] == [BLANK]

    trained = step("train", "--steps", "8", "--validate-every", "4")
    assert trained["step"] == 8
    record = json.loads(Path("own/model.json").read_text())
    assert record["model"]["arch"] == "niiv"
    # What the recipe says of the volume that it was written for is not said of this one.
    assert record["card"]["licence"] == record["card"]["trained_on"] == ""

    judged = {row["model"]: row for row in step("evaluate", "--box", SEEN)["rows"]}
    assert judged["niiv-z2-10"]["lateral_over_cubic"] > 0
    assert judged["own"]["lateral_over_cubic"] > 0
    assert judged["own"]["consistency_rms"] < judged["cubic"]["consistency_rms"]
    assert "<html" in Path("judged/index.html").read_text()

    planned = step("plan", "--box", PART)
    assert planned["sections"]["lost"] == [BLANK]
    assert planned["invented_voxels"] == 10 * 128 * 128

    report = step("run", "--box", PART)
    assert report["complete"]
    assert report["invented_voxels"] == planned["invented_voxels"]
    assert report["seam"] is None or report["seam"]["max_difference"] <= 1
    made = isochunk.open("isotropic")
    assert made.spec.levels[0].spacing == Spacing.parse("4.6,4.6,4.6")
    result = made.read(made.spec.box)
    assert result.shape == (200, 128, 128)
    # Where a section was blanked or made brighter, the result is as bright as before that.
    means = result.reshape(20, 10, -1).mean(axis=(1, 2))
    before = real.read(Box.parse(PART)).reshape(20, -1).mean(axis=1)
    off = np.abs(means - before)
    assert off[BLANK] < 12
    assert np.delete(off, BLANK).max() < 2

    assert step("audit")["complete"]
    look(*walk["view"][1:])
