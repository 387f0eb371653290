"""The page of an inspection: what it says, what it shows, and that it stays small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import Command, noise, write_source

import isochunk
from isochunk.core.synthetic import synthetic_pair
from isochunk.evaluation.sections_page import render_sections_page
from isochunk.evaluation.sections_pictures import WORST, worst_sections


def damaged(depth: int = 40) -> np.ndarray:
    """Tissue with a black section, a foreign one, and a brighter one."""
    stack = synthetic_pair((depth, 224, 224), 4, seed=3)[0].copy()
    stack[10] = 0
    stack[20] = np.rot90(stack[20])
    stack[30] = np.clip(stack[30] + 20.0, 0, 255)
    return stack


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sections")
    return write_source(f"file://{folder}/in", damaged(), "40,10,10", offset=(5, 0, 0))


def test_what_is_done_about_each_section_is_shown(source: str) -> None:
    page = render_sections_page(isochunk.inspect(source), isochunk.open(source))
    assert re.findall(r"<h3>(.*?)</h3>", page) == [
        "z = 15: filled from z = 14 and z = 16",
        "z = 25: filled from z = 24 and z = 26",
        re.search(r"z = 35: used is 1 \* v - [\d.]+", page).group(),
    ]
    assert page.count("as stored</figcaption>") == 3
    assert page.count(">filled</figcaption>") == 2
    assert page.count(">corrected</figcaption>") == 1
    assert "2 lost, 1 corrected" in page
    assert "lost = true" in page
    assert "[[section]]" in page
    assert "40 sections, voxels of 40,10,10 nm" in page
    assert "://" not in page.replace(source, "")


def test_a_clean_volume_says_so(tmp_path: Path) -> None:
    url = write_source(f"file://{tmp_path}/in", noise((4, 64, 64)))
    page = render_sections_page(isochunk.inspect(url), isochunk.open(url))
    assert "None differs from the others." in page
    assert "Sections that differ" not in page


def test_of_many_sections_the_worst_are_shown(tmp_path: Path) -> None:
    voxels = np.repeat(noise((1, 64, 64)), 120, 0)
    voxels[1::3] = 0
    found = isochunk.inspect(write_source(f"file://{tmp_path}/in", voxels))
    assert len(found.findings.lost) > WORST
    assert len(worst_sections(found)) == WORST


def test_the_command_writes_it(source: str, tmp_path: Path, run: Command) -> None:
    run("inspect", source, "--report", f"{tmp_path}/page")
    assert (tmp_path / "page" / "index.html").stat().st_size > 100_000
    (tmp_path / "file").touch()
    refused = run("inspect", source, "--report", f"{tmp_path}/file", code=2)
    assert "choose another --report" in refused["error"]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(source: str, tmp_path: Path, browser: Any, scheme: str) -> None:
    file = tmp_path / "index.html"
    file.write_text(render_sections_page(isochunk.inspect(source), isochunk.open(source)))
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.goto(f"file://{file}")
    widths = page.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth)")
    assert len(widths) == 4 + 3 * 4
    assert min(widths) > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    assert problems == []
    page.close()
