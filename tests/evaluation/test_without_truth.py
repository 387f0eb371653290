"""Judging without a truth: figures by hand and by another road, what is refused, real tissue."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import Command, write_source
from PIL import Image

from isochunk.core.geometry import Box
from isochunk.errors import ModelError, UsageError
from isochunk.evaluation.config import EvaluateConfig
from isochunk.evaluation.evaluate import evaluate
from isochunk.evaluation.ground_truth import degrade_voxels
from isochunk.evaluation.without_truth import sampling
from isochunk.evaluation.without_truth.config import JudgeConfig
from isochunk.evaluation.without_truth.judge import judge
from isochunk.evaluation.without_truth.sampling import draw_sample, spread_boxes
from isochunk.evaluation.without_truth.spectrum import spectrum_along
from isochunk.models.checkpoint import Card, save
from isochunk.models.pssr import PSSRConfig
from isochunk.models.registry import make
from isochunk.storage.open import open_volume

torch.set_num_threads(1)

SHIPPED = "fsrcnn-z4"
ROW = [
    "model",
    "consistency_rms",
    "lateral_psnr",
    "lateral_over_cubic",
    "heldout_psnr",
    "z_to_xy_power",
    "membranes",
    "seconds",
]
FOUR = (Fraction(4), Fraction(1), Fraction(1))


def texture(shape=(16, 64, 56), seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[tuple(map(slice, shape))]
    waves = 40 * np.sin(y / 5 + z) + 30 * np.cos(x / 4 - z / 2)
    return np.clip(128 + waves + rng.normal(0, 4, shape), 1, 255).astype(np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_source(f"{tmp_path}/in", texture(), "40,10,10")


def by_name(config: JudgeConfig) -> dict[str, Any]:
    return {figures.model: figures for figures in judge(config).figures}


def test_rows_have_the_promised_keys_and_interpolations_are_always_there(source: str) -> None:
    told = json.loads(json.dumps(judge(JudgeConfig(source)).summary(), allow_nan=False))
    assert [list(row) for row in told["rows"]] == [ROW, ROW]
    assert [row["model"] for row in told["rows"]] == ["linear", "cubic"]
    assert (told["factor"], told["degradation"]) == (4, "avg")
    assert told["boxes"] == ["0:16,0:64,0:56"]
    assert told["bytes_read"] == texture().size


def test_consistency_of_linear_interpolation_by_hand(source: str) -> None:
    voxels = texture().astype(np.float64)
    centre = (np.arange(64) + 0.5) / 4 - 0.5
    below = np.floor(centre).astype(int)
    weight = (centre - below)[:, None, None]
    # At the rim sections are continued by reflection.
    low, high = (voxels[np.clip(below + i, 0, 15)] for i in (0, 1))
    fine = np.rint(low * (1 - weight) + high * weight)
    off = fine.reshape(16, 4, 64, 56).mean(1) - voxels
    found = judge(JudgeConfig(source)).results[0].consistency
    assert found.rms == pytest.approx(np.sqrt(np.square(off).mean()), abs=0.01)
    assert found.worst_section == np.square(off).mean((1, 2)).argmax()
    assert found.worst_box == Box((0, 0, 0), (16, 64, 56))


@pytest.mark.parametrize("degradation", ["avg", "skip"])
def test_the_lateral_test_is_an_evaluation_of_the_turned_volume(
    tmp_path: Path, source: str, degradation: Any
) -> None:
    """For interpolations the turned volume is a truth, whatever the third axis is."""
    turned = write_source(f"{tmp_path}/t", texture().transpose(1, 0, 2).copy(), "10,10,10")
    truth = {f.model: f for f in evaluate(EvaluateConfig(turned, degradation=degradation)).figures}
    judged = judge(JudgeConfig(source, degradation=degradation))
    for result in judged.results:
        own, known = result.lateral, truth[result.model]
        assert own is not None
        assert own.psnr == result.figures.lateral_psnr == pytest.approx(known.psnr, abs=1e-9)
        assert own.ssim == pytest.approx(known.ssim, abs=1e-9)
        assert own.frc_nm == pytest.approx(known.frc_along_nm, rel=1e-6)
        gain = known.psnr - truth["cubic"].psnr
        assert result.figures.lateral_over_cubic == pytest.approx(gain, abs=1e-9)


@pytest.mark.parametrize("factor", ["40,10,10", "30,10,10", "25,10,10"])
@pytest.mark.parametrize("degradation", ["avg", "skip"])
def test_held_out_sections_of_a_ramp_are_found_where_they_lie(
    tmp_path: Path, factor: str, degradation: Any
) -> None:
    """Half a section of misregistration would be off by four grey levels everywhere."""
    z = np.arange(24, dtype=np.uint8)[:, None, None] * 8
    noise = np.random.default_rng(0).integers(0, 40, (1, 40, 40), dtype=np.uint8)
    source = write_source(f"{tmp_path}/in", z + noise, factor)
    for figures in by_name(JudgeConfig(source, degradation=degradation)).values():
        assert figures.heldout_psnr > 50


def test_the_spectrum_finds_a_wave_and_tells_axes_apart() -> None:
    x = np.arange(128)
    wave = 128 + 50 * np.sin(2 * np.pi * x / 8)
    voxels = np.broadcast_to(wave, (64, 32, 128)).astype(np.uint8)
    along_x, along_z = (spectrum_along(voxels, axis, 10.0) for axis in (2, 0))
    assert along_x is not None
    assert along_z is not None
    peak = along_x.frequency[int(np.argmax(along_x.power))]
    assert peak == pytest.approx(1 / 80)
    assert max(along_z.power) < 1e-6 * max(along_x.power)
    assert spectrum_along(voxels[:6], 0, 10.0) is None


def test_power_along_z_is_that_of_noise_where_nothing_is_smoothed(tmp_path: Path) -> None:
    """White noise: repeated sections lose most of their power above what sections hold."""
    noise = np.random.default_rng(0).integers(1, 256, (32, 64, 64), dtype=np.uint8)
    found = by_name(JudgeConfig(write_source(f"{tmp_path}/in", noise, "20,10,10"), ("nearest",)))
    # sinc^2 over the upper half of the band: 2 / pi of the power of repeated samples is below it.
    assert 0.2 < found["nearest"].z_to_xy_power < 1
    assert found["linear"].z_to_xy_power < found["nearest"].z_to_xy_power / 2


def test_a_network_is_judged_beside_them_and_what_it_cannot_do_is_said(source: str) -> None:
    judged = judge(JudgeConfig(source, (SHIPPED,), device="cpu"))
    row = judged.figures[-1]
    assert row.consistency_rms < judged.figures[1].consistency_rms
    assert row.lateral_psnr is not None
    assert row.heldout_psnr is None
    (missing,) = judged.not_measured
    assert (missing.model, missing.figure) == (SHIPPED, "heldout_psnr")
    assert "restores factor 4 alone" in missing.reason
    assert "no PSNR of a run" in judged.limits


def test_models_are_judged_once_more_made_consistent(source: str) -> None:
    judged = judge(JudgeConfig(source, (SHIPPED,), device="cpu", consistent=True))
    rows = {figures.model: figures for figures in judged.figures}
    assert list(rows)[3:] == [f"{name} consistent" for name in ("linear", "cubic", SHIPPED)]
    for name in ("linear", "cubic", SHIPPED):
        made = rows[f"{name} consistent"]
        assert made.consistency_rms < 0.25 < rows[name].consistency_rms
        assert made.lateral_psnr > rows[name].lateral_psnr
    assert [card.name for card in judged.cards] == [SHIPPED]
    assert {missing.model for missing in judged.not_measured} == {SHIPPED, f"{SHIPPED} consistent"}
    with pytest.raises(ModelError, match="--consistent cannot be done"):
        judge(JudgeConfig(source, factor=Fraction(5, 2), consistent=True))


def test_networks_for_volumes_get_sections_restored_for_the_lateral_test(tmp_path: Path) -> None:
    """Where all sections are one, restoring z changes nothing, and so it must not matter."""
    section = texture((1, 64, 56))
    source = write_source(f"{tmp_path}/in", section.repeat(16, 0), "40,10,10")
    turned = section.repeat(16, 0).transpose(1, 0, 2).copy()
    truth = write_source(f"{tmp_path}/t", turned, "10,10,10")
    judged = judge(JudgeConfig(source, (SHIPPED,), device="cpu")).figures[-1]
    known = evaluate(EvaluateConfig(truth, (SHIPPED,), device="cpu")).figures[-1]
    assert judged.lateral_psnr == pytest.approx(known.psnr, abs=0.02)


def test_few_sections_and_small_boxes_leave_figures_out(tmp_path: Path) -> None:
    source = write_source(f"{tmp_path}/in", texture((6, 24, 24)), "40,10,10")
    judged = judge(JudgeConfig(source))
    for row in judged.figures:
        assert (row.lateral_psnr, row.lateral_over_cubic, row.heldout_psnr) == (None, None, None)
        assert row.consistency_rms > 0
    reasons = {m.figure: m.reason for m in judged.not_measured}
    assert "boxes of 24 x 24 voxels (y, x) are too small; 31 x 11" in reasons["lateral_psnr"]
    assert "boxes have 6 sections; 10 are needed" in reasons["heldout_psnr"]
    assert judged.limits == ""


def test_boxes_are_drawn_by_seed_and_background_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "SAMPLE_SHAPE", (12, 40, 40))
    voxels = np.zeros((24, 200, 200), np.uint8)
    voxels[:, 100:, 100:] = texture((24, 100, 100))
    source = write_source(f"{tmp_path}/in", voxels, "40,10,10", (5, -8, 16))
    judged = judge(JudgeConfig(source, samples=2, seed=1))
    assert len(judged.boxes) == 2
    assert judged.passed_over > 0
    assert judged.bytes_read == (2 + judged.passed_over) * 12 * 40 * 40
    tissue = Box((5, 92, 116), (29, 192, 216))
    assert all((box & tissue).size >= box.size / 4 for box in judged.boxes)
    volume = open_volume(source)
    assert draw_sample(volume, 2, 1).boxes == judged.boxes
    assert draw_sample(volume, 2, 2).boxes != judged.boxes


def test_a_huge_volume_costs_no_more_than_a_bounded_number_of_boxes() -> None:
    bounds = Box((7, -3, 0), (7007, 200_000, 250_000))
    boxes = list(spread_boxes(bounds, 0))
    assert len(set(boxes)) == len(boxes) == sampling.MAX_DRAWN
    assert all(box in bounds and box.shape == sampling.SAMPLE_SHAPE for box in boxes)
    everything = list(spread_boxes(Box((0, 0, 0), (40, 300, 100)), 0))
    assert {box.lo for box in everything} == {(z, y, 0) for z in (0, 8) for y in (0, 86, 172)}


def test_all_background_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    black = write_source(f"{tmp_path}/black", np.zeros((24, 64, 64), np.uint8), "40,10,10")
    with pytest.raises(UsageError, match=r"box 0:24,0:64,0:64 .* holds no tissue"):
        judge(JudgeConfig(black))
    monkeypatch.setattr(sampling, "SAMPLE_SHAPE", (12, 20, 20))
    with pytest.raises(UsageError, match=r"none of 32 boxes of .* holds tissue.*--box"):
        judge(JudgeConfig(black))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"models": (SHIPPED,), "factor": Fraction(5)}, ModelError, "factor 4 .*--factor 4"),
        ({"models": ("identity",)}, ModelError, "factor 1 along z"),
        ({"models": (SHIPPED,), "degradation": "skip"}, ModelError, "choose --degradation avg"),
        ({"models": (SHIPPED, "anyz-z2-10-sample")}, ModelError, "judge them apart"),
        ({"models": ("no-such-model",)}, ModelError, "no model 'no-such-model'"),
        ({"factor": Fraction(1)}, UsageError, "more than 1"),
        ({"box": Box((0, 0, 0), (17, 64, 56))}, UsageError, "reaches beyond"),
        ({"samples": 0}, UsageError, "at least 1"),
    ],
)
def test_what_cannot_be_judged_is_refused(source: str, changes, error, says) -> None:
    with pytest.raises(error, match=says):
        judge(replace(JudgeConfig(source), **changes))


def test_a_box_beyond_memory_is_refused(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_TARGET_VOXELS", 1000)
    with pytest.raises(UsageError, match=r"57344 voxels and 229376 when restored.* at most 250"):
        judge(JudgeConfig(source, box=Box((0, 0, 0), (16, 64, 56))))


def test_isotropic_sources_are_refused(tmp_path: Path) -> None:
    source = write_source(f"{tmp_path}/in", texture(), "10,10,10")
    with pytest.raises(UsageError, match=r"sections are no thicker than .*--source-spacing"):
        judge(JudgeConfig(source))


def test_models_for_y_and_x_are_refused(tmp_path: Path, source: str) -> None:
    torch.manual_seed(0)
    network = make(PSSRConfig(width=2, depths=(1, 1, 1, 1)))
    save(tmp_path / "pssr", network, Card("pssr", "none", "nothing"))
    with pytest.raises(ModelError, match=r"restores y and x.*--truth"):
        judge(JudgeConfig(source, (f"{tmp_path}/pssr",)))


def test_the_command_takes_a_truth_or_a_source(run: Command, source: str, tmp_path: Path) -> None:
    told = run("evaluate", f"--source={source}", "--box=0:16,0:64,0:56", "--factor=3")
    assert (told["factor"], told["rows"][0]["model"]) == (3, "linear")
    for arguments in ((f"--truth={source}", f"--source={source}"), ()):
        said = run("evaluate", *arguments, code=2)
        assert "give either --truth" in said["error"]
    for option in ("--average=2,2,2", "--reference=siren", f"--prediction={source}"):
        said = run("evaluate", f"--source={source}", option, code=2)
        assert f"{option.partition('=')[0]} compares with a truth" in said["error"]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a source with a name that HTML would take for its own."""
    folder = tmp_path_factory.mktemp("judged")
    source = write_source(f"{folder}/<b>in & out", texture(), "40,10,10")
    judge(JudgeConfig(source, (SHIPPED,), device="cpu", report=f"{folder}/out"))
    return folder / "out"


def test_the_report_is_written_and_complete_by_itself(report: Path) -> None:
    assert {f.name for f in report.iterdir()} == {
        "evaluation.json",
        "evaluation.md",
        "index.html",
    }
    written = json.loads((report / "evaluation.json").read_text())
    assert set(written["curves"]["power"]["models"]) == {"linear", "cubic", SHIPPED}
    assert len(written["curves"]["lateral_frc"]["cubic"]["value"]) > 10
    assert f"| {SHIPPED} |" in (report / "evaluation.md").read_text()
    page = (report / "index.html").read_text()
    assert not re.search(r"<script|<link|@import|url\(|https?://(?!www\.w3\.org)", page)
    assert "&lt;b&gt;in &amp; out" in page
    assert "it restores factor 4 alone" in page
    shown = dict(re.findall(r'<img alt="([^"]*)"[^>]* src="([^"]*)"', page))
    assert all(source.startswith("data:image/") for source in shown.values())
    # 2 plots, a scale, and in three planes the source, 3 models and how far they differ.
    assert len(shown) == 2 + 1 + 3 * 7


@pytest.mark.browser
@pytest.mark.slow
def test_a_browser_draws_the_page_and_fetches_nothing(browser: Any, report: Path) -> None:
    tab = browser.new_page(viewport={"width": 1400, "height": 1000})
    asked: list[str] = []
    troubles: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: troubles.append(message.text))
    address = (report / "index.html").as_uri()
    tab.goto(address)
    tab.wait_for_load_state()
    assert all(tab.evaluate("Array.from(document.images, image => image.naturalWidth)"))
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert troubles == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1400
    picture = np.asarray(Image.open(BytesIO(tab.screenshot(full_page=True))).convert("L"))
    assert picture.std() > 30


@pytest.mark.slow
def test_real_tissue_is_judged_as_its_truth_says(tmp_path: Path, shared_data: Path) -> None:
    """On the medulla averaged by 4, whose truth is known: gains, and what the design measured."""
    volume = open_volume(str(shared_data / "medulla_fibsem_250.ome.zarr"))
    box = Box((61, 77, 77), (189, 173, 173))
    coarse = degrade_voxels(volume.read(box), FOUR, "avg")
    source = write_source(f"{tmp_path}/in", coarse, "40,10,10")
    rows = by_name(JudgeConfig(source, (SHIPPED,), device="cpu"))
    config = EvaluateConfig(str(shared_data / "medulla_fibsem_250.ome.zarr"), (SHIPPED,), box=box)
    known = {f.model: f.psnr for f in evaluate(replace(config, device="cpu")).figures}
    assert 2.0 < rows["cubic"].consistency_rms < 2.7
    assert rows[SHIPPED].consistency_rms < 1.1
    gain = known[SHIPPED] - known["cubic"]
    assert rows[SHIPPED].lateral_over_cubic == pytest.approx(gain, abs=0.5)
    assert rows[SHIPPED].z_to_xy_power > 1.5 * rows["cubic"].z_to_xy_power
