"""The notebook that new users start with runs as it stands, and shows what it was kept with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

import isochunk

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def shown(notebook: Any) -> list[tuple[str, list[list[str]]]]:
    """Return of each cell what it says, and the kinds of what it shows."""
    return [
        (cell.source, [sorted(output.data) for output in cell.get("outputs", [])])
        for cell in notebook.cells
    ]


def run(notebook: Any, folder: Path = Path()) -> Any:
    """Run a notebook in a kernel of its own."""
    where = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, kernel_name="python3", resources=where).execute()


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path: Path) -> None:
    kept = nbformat.read(QUICKSTART, 4)
    emptied = nbformat.read(QUICKSTART, 4)
    for cell in emptied.cells:
        cell["outputs"] = []
    again = run(emptied, tmp_path)
    assert shown(again) == shown(kept)
    told = "".join(
        output.data.get("text/html", "")
        for cell in again.cells
        for output in cell.get("outputs", [])
    )
    assert 'value="9" max="9"></progress> 9 of 9 blocks' in told
    assert "complete: all of 161 objects were read again and are as written" in told
    assert told.count("data:image/png") == 6
    assert isochunk.status(f"{tmp_path}/isotropic")["complete"]
    assert (tmp_path / "isotropic/.isochunk/report.html").exists()


BAR = """
import isochunk
from isochunk.engine.report import Report

first, second = isochunk.notebook_bar(), isochunk.notebook_bar()
for watch in (first, second):
    watch(Report(total=40, resumed=4, done=4))
    watch(Report(total=40, resumed=4, done=5))
second(Report(total=40, resumed=4, done=40, voxels=9000, wall_s=3.0, workers=3, failed=1))
"""


@pytest.mark.slow
def test_the_bar_changes_now_and_then_and_at_the_end() -> None:
    (cell,) = run(new_notebook(cells=[new_code_cell(BAR)])).cells
    said = [output.data["text/html"].partition("</progress> ")[2] for output in cell.outputs]
    assert said == ["4 of 40 blocks", "40 of 40 blocks, 3 kvoxel/s, 3 workers, 1 failed"]
