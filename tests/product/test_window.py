"""``--window`` from plan to proof: exact however a volume is cut, recorded, and held to."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from distributed import Client
from jobs import Command, read_all, tree_digest, write_source
from networks import tissue
from whole import Model, assert_equals_whole, assert_every_block_shape

import isochunk
from isochunk.core.sections import Section, SectionTable
from isochunk.core.window import Window
from isochunk.errors import TargetConflictError, UsageError
from isochunk.models.interpolation import interpolation_spec
from isochunk.models.load import checkpoint_folder, describe, load_module

torch.set_num_threads(1)

SHAPE, SPACING = (12, 40, 36), "40,10,10"
NO_OFFSET = (0, 0, 0)
WINDOWS = {
    "int16": (-1000.0, 2100.0),
    "float32": (-0.75, 1.5),
    "int8": (-90.0, 100.0),
    "uint16": (300.0, 3700.0),
    "uint8": (40.0, 200.0),
}
"""Narrower than the values on either side."""
SPANS = {
    "int16": (-1500, 2500),
    "float32": (-1.1, 1.9),
    "int8": (-128, 127),
    "uint16": (0, 4095),
    "uint8": (0, 255),
}
BLOCKS = {
    "cubes": {"chunk": "16,24,24", "shard": "none", "block": "16,24,24"},
    "odd": {"chunk": "13,17,29", "shard": "none", "block": "13,17,29"},
    "one": {"chunk": "64,64,64"},
}


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    """A shipped network, and cubic."""
    network = load_module(checkpoint_folder("fsrcnn-z4"))
    return {
        "cubic": Model("cubic", interpolation_spec("cubic"), None),
        "fsrcnn-z4": Model("fsrcnn-z4", describe("fsrcnn-z4"), network),
    }


def stored_values(dtype: str, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Values as a microscope or a tomogram stores them, some beyond the window."""
    low, high = SPANS[dtype]
    share = tissue(shape, "uint16", seed=1) / 65535
    return (low + share * (high - low)).astype(dtype)


def write_zarr(folder: Path, values: np.ndarray) -> str:
    array = zarr.create_array(folder, shape=values.shape, chunks=(5, 16, 16), dtype=values.dtype)
    array[:] = values
    return str(folder)


def grey(values: np.ndarray, dtype: str, white: int = 255) -> np.ndarray:
    """Map values to grey levels, in double precision."""
    low, high = WINDOWS[dtype]
    return np.clip((values.astype(float) - low) / (high - low) * white, 0, white)


def job_of(folder: Path, model: str, of: str, **options: Any) -> isochunk.Job:
    url = write_zarr(folder / "in", stored_values(of))
    given = {"source_spacing": SPACING, "window": WINDOWS[of], "levels": 1, **options}
    return isochunk.Job(source=url, target=f"{folder}/out", model=model, device="cpu", **given)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", WINDOWS)
@pytest.mark.parametrize("name", ["cubic", "fsrcnn-z4"])
def test_blocks_equal_the_whole(
    models: dict[str, Model], tmp_path: Path, name: str, dtype: str
) -> None:
    job = job_of(tmp_path, name, dtype)
    levels = grey(stored_values(dtype), dtype)
    exact = models[name].whole(levels, NO_OFFSET, Fraction(4), stored_as="uint8")
    assert_every_block_shape(job, BLOCKS, exact)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_two_workers_an_audit_and_another_window(
    models: dict[str, Model], client: Client, tmp_path: Path, dtype: str
) -> None:
    job = job_of(tmp_path, "fsrcnn-z4", dtype, **BLOCKS["cubes"])
    levels = grey(stored_values(dtype), dtype)
    exact = models["fsrcnn-z4"].whole(levels, NO_OFFSET, Fraction(4), stored_as="uint8")
    report = isochunk.run(isochunk.plan(job), client)
    assert (report.complete, report.resumed) == (True, 0)
    assert_equals_whole(read_all(job.target), exact)
    assert isochunk.audit(job.target).complete

    before = tree_digest(tmp_path / "out")
    next(path for path in (tmp_path / "out").rglob("*-*_*-*_*-*")).unlink()
    _, repaired = isochunk.repair(job.target)
    assert (repaired.complete, tree_digest(tmp_path / "out")) == (True, before)

    assert isochunk.run(isochunk.plan(job)).resumed == report.total
    low, high = WINDOWS[dtype]
    told = rf"window\.high was {high} and is now {high + 1}"
    with pytest.raises(TargetConflictError, match=told):
        isochunk.plan(replace(job, window=(low, high + 1)))


@pytest.mark.parametrize("name", ["cubic", "fsrcnn-z4"])
def test_sixteen_bits_out(models: dict[str, Model], tmp_path: Path, name: str) -> None:
    job = job_of(tmp_path, name, "int16", dtype="uint16", **BLOCKS["cubes"])
    levels = grey(stored_values("int16"), "int16", white=65535)
    exact = models[name].whole(levels, NO_OFFSET, Fraction(4), stored_as="uint16")
    plan = isochunk.plan(job)
    assert isochunk.run(plan).complete
    assert_equals_whole(read_all(job.target), exact)
    assert (plan.summary()["source"]["dtype"], plan.summary()["target"]["dtype"]) == (
        "int16",
        "uint16",
    )


@pytest.mark.parametrize("model", ["identity", "nearest"])
def test_a_conversion_of_the_type(tmp_path: Path, model: str) -> None:
    job = job_of(tmp_path, model, "float32")
    assert isochunk.run(isochunk.plan(job)).complete
    levels = grey(stored_values("float32"), "float32").repeat(4 if model == "nearest" else 1, 0)
    assert np.abs(read_all(job.target) - levels).max() <= 0.5 + 1e-3


def test_what_the_window_makes_black_is_background(tmp_path: Path) -> None:
    """It is not stored, and counts as empty, as zeros of uint8 do."""
    values = stored_values("int16")
    values[:, :, 16:] = -1000  # the window's low end
    url = write_zarr(tmp_path / "in", values)
    job = replace(job_of(tmp_path / "other", "cubic", "int16"), source=url)
    job = replace(job, target=f"{tmp_path}/out", chunk="16,16,16", shard="none", block="16,16,16")
    report = isochunk.run(isochunk.plan(job))
    assert report.complete
    assert report.empty >= 3 * 3 * 2 - 3
    assert not read_all(job.target)[:, :, 20:].any()
    assert isochunk.audit(job.target).complete


def test_what_is_told_of_a_window(tmp_path: Path, run: Command) -> None:
    url = write_zarr(tmp_path / "in", stored_values("int16"))
    job = (url, f"{tmp_path}/out", "--model=cubic", f"--source-spacing={SPACING}")
    window = {"low": -1000.0, "high": 2100.0}
    assert run("plan", *job, "--window=-1000,2100")["window"] == window
    report = run("run", *job, "--window=-1000,2100")
    assert report["complete"] is True
    assert 0 < report["consistency"]["rms"] < 25  # grey levels: of noise, cubic blurs some
    plan = json.loads((tmp_path / "out/.isochunk/job.json").read_text())["plan"]
    assert plan["window"] == plan["job"]["window"] == window
    provenance = json.loads((tmp_path / "out/provenance").read_text())
    assert provenance["processing"][0]["method"]["window"] == window
    said = run("run", *job, "--window", "-1000,2000", code=2)["error"]
    assert "argument --window: expected one argument; a value that begins with - is" in said
    said = run("run", *job, "--window=-1000,2000", code=2)["error"]
    assert "holds another job: window.high was 2100.0 and is now 2000.0" in said
    assert run("run", *job, "--window=-1e3,2.1e3")["blocks"]["resumed"] > 0


def test_a_job_without_a_window_is_recorded_as_before(tmp_path: Path) -> None:
    source = write_source(f"file://{tmp_path}/in", tissue(SHAPE, "uint8"))
    plan = isochunk.plan(isochunk.Job(source=source, target=f"{tmp_path}/out", model="cubic"))
    assert isochunk.run(plan).complete
    record = json.loads((tmp_path / "out/.isochunk/job.json").read_text())["plan"]
    assert "window" not in record
    assert "window" not in record["job"]
    assert "window" not in plan.identity()
    assert plan.summary()["window"] is None


def test_auto_measures_once(tmp_path: Path, run: Command) -> None:
    """Percentiles of all values but zero, which are values themselves; recorded and kept."""
    values = np.random.default_rng(0).normal(3, 2, (30, 96, 96)).astype("float32")
    values[:10] = 0
    url = write_zarr(tmp_path / "in", values)
    job = (url, f"{tmp_path}/out", "--model=cubic", f"--source-spacing={SPACING}", "--window=auto")
    measured = run("plan", *job)["window"]
    seen = values[values != 0]
    shares = [(seen < measured["low"]).mean(), (seen > measured["high"]).mean()]
    np.testing.assert_allclose(shares, [1e-3, 1e-3], atol=2e-5)
    assert {measured["low"], measured["high"]} <= set(seen.tolist())
    assert run("plan", *job)["window"] == measured
    assert run("run", *job)["complete"] is True
    record = json.loads((tmp_path / "out/.isochunk/job.json").read_text())["plan"]
    assert (record["window"], record["job"]["window"]) == (measured, "auto")
    # What was measured then holds, whatever would be measured now.
    write_zarr(tmp_path / "more", values * 2)
    (tmp_path / "in").rename(tmp_path / "old")
    (tmp_path / "more").rename(tmp_path / "in")
    assert run("plan", *job)["window"] == measured
    numbers = f"--window={measured['low']!r},{measured['high']!r}"
    assert run("run", *job[:-1], numbers)["blocks"]["resumed"] > 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number(tmp_path: Path, run: Command, wrong: float) -> None:
    """The block fails, and says where; with --missing background it is black."""
    values = stored_values("float32")
    values[7, 20, 30] = wrong
    url = write_zarr(tmp_path / "in", values)
    job = (url, f"{tmp_path}/out", "--model=cubic", f"--source-spacing={SPACING}", "--levels=1")
    job = (*job, "--window=-0.75,1.5", "--chunk=16,16,16", "--shard=none", "--block=16,16,16")
    report = run("run", *job, code=1)
    assert 0 < report["blocks"]["failed"] < report["blocks"]["total"]
    assert report["retries"] == 0  # it will not pass
    said = report["errors"][0]
    assert f"holds {wrong} at z,y,x 7,20,30, as 1 of its" in said
    assert "background with --missing background, or store numbers there" in said
    assert run("run", *job, "--missing=background")["complete"] is True
    levels = grey(np.nan_to_num(values), "float32")
    levels[7, 20, 30] = 0
    exact = Model("cubic", interpolation_spec("cubic"), None).whole(levels, NO_OFFSET, Fraction(4))
    assert_equals_whole(read_all(f"{tmp_path}/out"), exact)


def test_nan_when_the_window_or_the_intensity_is_measured(tmp_path: Path, run: Command) -> None:
    values = stored_values("float32")
    values[:4] = np.nan
    url = write_zarr(tmp_path / "in", values)
    job = (url, f"{tmp_path}/out", "--model=cubic", f"--source-spacing={SPACING}")
    measured = run("plan", *job, "--window=auto")["window"]
    assert values[4:].min() <= measured["low"] < measured["high"] <= values[4:].max()
    standard = (*job[:2], "--model=niiv-z2-10", *job[3:])
    said = run("plan", *standard, "--window=auto", code=2)["error"]
    assert "holds nan at z,y,x 0,0,0" in said
    run("plan", *standard, "--window=auto", "--missing=background")


def test_sections_are_mended_in_grey_levels(tmp_path: Path) -> None:
    """A table's gains are of what the window makes; a lost section is filled."""
    table = SectionTable(
        f"file://{tmp_path}/in", (Section(4, lost=True), Section(8, gain=1.1, offset=5.5))
    )
    (tmp_path / "sections.toml").write_text(table.text())
    job = job_of(tmp_path, "cubic", "int16", sections=f"{tmp_path}/sections.toml", **BLOCKS["odd"])
    assert isochunk.run(isochunk.plan(job)).complete
    levels = grey(stored_values("int16"), "int16")
    levels[4] = (levels[3] + levels[5]) / 2
    levels[8] = np.where(levels[8] == 0, 0, 1.1 * levels[8] + 5.5)
    exact = Model("cubic", interpolation_spec("cubic"), None).whole(levels, NO_OFFSET, Fraction(4))
    assert_equals_whole(read_all(job.target), exact)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("5", r"window is '5'; write LOW,HIGH in stored values, or auto"),
        ("0,x", r"window is 'x'; write LOW,HIGH"),
        ("9,3", r"window 9,3 must be two numbers, the lower first"),
        ("0,inf", r"window 0,inf must be two numbers"),
        (3, r"window is 3; write LOW,HIGH"),
    ],
)
def test_windows_that_are_none(tmp_path: Path, window: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        isochunk.Job(source="in", target=f"{tmp_path}/out", model="cubic", window=window)


def test_volumes_that_have_no_window(tmp_path: Path) -> None:
    for name, values, message in (
        (
            "constant",
            np.full(SHAPE, 7, "int16"),
            r"is constant \(every sampled .* zero is 7",
        ),
        ("black", np.zeros(SHAPE, "int16"), r"holds no value other than zero"),
        ("labels", np.ones(SHAPE, "uint64"), r"holds uint64, and windows are for int8,.*convert"),
    ):
        job = isochunk.Job(
            source=write_zarr(tmp_path / name, values),
            target=f"{tmp_path}/out",
            model="cubic",
            source_spacing=SPACING,
            window="auto",
        )
        with pytest.raises(UsageError, match=message):
            isochunk.plan(job)


def test_windows_are_read_from_text_and_numbers() -> None:
    for given in ("-5,7.5", (-5, 7.5), [-5, "7.5"], Window(-5, 7.5)):
        job = isochunk.Job(source="in", target="out", model="cubic", window=given)
        assert job.window == Window(-5, 7.5)
