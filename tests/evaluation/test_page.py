"""The page of an evaluation: complete by itself, and drawn by a real browser."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import write_source
from PIL import Image

from isochunk.errors import UsageError
from isochunk.evaluation.evaluate import EvaluateConfig, evaluate
from isochunk.evaluation.results import Evaluation

torch.set_num_threads(1)

SHIPPED = "fsrcnn-z4"
DEPTH, HEIGHT, WIDTH = 48, 36, 40


def tissue() -> np.ndarray:
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[:DEPTH, :HEIGHT, :WIDTH]
    waves = 40 * np.sin(z / 3 + y / 5) + 30 * np.cos(x / 4 - z / 7)
    return np.clip(128 + waves + rng.normal(0, 4, z.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    """An evaluation with names that HTML would take for its own."""
    truth = write_source(f"{folder}/<b>truth & more", tissue(), "10,10,10")
    made = write_source(f"{folder}/made", np.roll(tissue(), 1, 2), "10,10,10")
    return evaluate(EvaluateConfig(truth, (SHIPPED,), (made,), report=f"{folder}/out"))


@pytest.fixture(scope="module")
def page(folder: Path, evaluation: Evaluation) -> str:
    return (folder / "out" / "index.html").read_text()


def images(page: str) -> dict[str, str]:
    """Return the source of every image by its description."""
    return dict(re.findall(r'<img alt="([^"]*)"[^>]* src="([^"]*)"', page))


def pixels(source: str) -> np.ndarray:
    """Decode an image of the page."""
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def test_everything_is_in_the_one_file(page: str) -> None:
    assert not re.search(r"<script|<link|@import|url\(|https?://(?!www\.w3\.org)", page)
    assert all(source.startswith("data:image/") for source in images(page).values())
    assert "default-src 'none'" in page


def test_names_are_text(page: str) -> None:
    assert "&lt;b&gt;truth &amp; more" in page
    assert "<b>" not in page


def test_the_table_says_what_was_measured(page: str, evaluation: Evaluation) -> None:
    cubic = evaluation.figures[2].psnr
    for row in evaluation.figures:
        assert f"<td>{row.psnr - cubic:+.2f}</td>" in page
        assert f">{row.psnr:.2f}</td>" in page
        assert f">{row.frc_along_nm:.1f}</td>" in page
    best = max(row.psnr for row in evaluation.figures)
    assert f'<td class="best">{best:.2f}</td>' in page
    assert "along z the first 8 and the last 8 voxels" in page
    assert "x4 along z, AVG" in page


def test_cards_say_where_weights_come_from(page: str) -> None:
    assert "CC-BY-4.0" in page
    assert "10.1371/journal.pone.0125825" in page


def test_slices_are_the_voxels(page: str, evaluation: Evaluation) -> None:
    found = images(page)
    inner = tissue()[8:-8]
    slices = {"xy": inner[16], "xz": inner[:, HEIGHT // 2], "yz": inner[:, :, WIDTH // 2]}
    for plane, expected in slices.items():
        shown = pixels(found[f"truth {plane}"])[..., 0]
        assert shown.shape == expected.shape
        # Grey levels are spread, so they keep their order.
        order = np.argsort(expected.ravel(), kind="stable")
        assert (np.diff(shown.ravel()[order].astype(int)) >= 0).all()
    models = [row.model for row in evaluation.figures]
    assert {f"{m} {p}" for m in models for p in slices} <= set(found)


def test_a_larger_error_is_brighter(page: str, evaluation: Evaluation) -> None:
    found = images(page)
    brightness = {
        row.model: pixels(found[f"error {row.model}"]).mean() for row in evaluation.figures
    }
    errors = {row.model: row.psnr for row in evaluation.figures}
    assert max(errors, key=errors.__getitem__) == min(brightness, key=brightness.__getitem__)
    assert min(errors, key=errors.__getitem__) == max(brightness, key=brightness.__getitem__)


def test_what_is_perfect_or_blank_is_drawn_too(tmp_path: Path) -> None:
    truth = write_source(f"{tmp_path}/t", tissue(), "10,10,10")
    blank = write_source(f"{tmp_path}/blank", np.zeros_like(tissue()), "10,10,10")
    config = EvaluateConfig(truth, predictions=(truth, blank), report=f"{tmp_path}/out")
    perfect, black = evaluate(config).figures[3:]
    assert (perfect.psnr, perfect.rse) == (np.inf, pytest.approx(0, abs=1e-6))
    assert (black.rsp, black.frc_nm) == (0, np.inf)
    assert "<td>inf</td>" not in (tmp_path / "out" / "index.html").read_text()


def test_without_matplotlib_it_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "isochunk.evaluation.page", None)
    with pytest.raises(UsageError, match=r"pip install 'isochunk\[view\]'"):
        evaluate(EvaluateConfig("/nowhere", report=f"{tmp_path}/out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.usefixtures("evaluation")
def test_a_browser_draws_all_of_it_and_fetches_nothing(browser: Any, folder: Path) -> None:
    tab = browser.new_page(viewport={"width": 1400, "height": 1000})
    asked: list[str] = []
    troubles: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    address = (folder / "out" / "index.html").as_uri()
    tab.goto(address)
    tab.wait_for_load_state()
    widths = tab.evaluate("Array.from(document.images, image => image.naturalWidth)")
    # 4 plots, a scale, and truth, 5 models and their errors in 3 planes; in xz a third row.
    assert len(widths) == 4 + 1 + 3 * 11 + 5
    assert all(widths)
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert troubles == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1400
    shown = tab.locator("table").first.inner_text()
    assert "over cubic" in shown
    assert SHIPPED in shown
    picture = np.asarray(Image.open(BytesIO(tab.screenshot(full_page=True))).convert("L"))
    assert picture.std() > 30
