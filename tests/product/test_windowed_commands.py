"""``--window`` where a volume is looked at, learnt from or served: as if uint8 had been stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from jobs import Command, read_all, write_source
from networks import tissue

import isochunk
from isochunk.engine.opened import open_job
from isochunk.engine.prepare import TargetPlace, resolve
from isochunk.errors import TargetConflictError, UsageError
from isochunk.storage.access import Access
from isochunk.train.fingerprint import fingerprint
from isochunk.train.presets import config_from_table
from isochunk.train.training import train
from isochunk.viewing.preview import preview, preview_job
from isochunk.viewing.result import view_result

torch.set_num_threads(1)

WINDOW, LOW, HIGH = "--window=-1000,2100", -1000, 2100


def pair(folder: Path, spacing: str, shape: tuple[int, int, int]) -> tuple[str, str]:
    """Write int16, and the grey levels that the window makes of it as uint8."""
    values = (-1500 + tissue(shape, "uint16", seed=2) / 65535 * 4000).astype("int16")
    array = zarr.create_array(folder / "int16", shape=shape, chunks=(16, 32, 32), dtype="int16")
    array[:] = values
    levels = np.clip((values - LOW) / (HIGH - LOW) * 255, 0, 255)
    plain = write_source(f"file://{folder}/uint8", np.rint(levels).astype("uint8"), spacing)
    return str(folder / "int16"), plain


def test_inspect(run: Command, tmp_path: Path) -> None:
    source, plain = pair(tmp_path, "40,10,10", (20, 96, 96))
    spacing = "--source-spacing=40,10,10"
    assert "--window LOW,HIGH" in run("inspect", source, spacing, code=2)["error"]
    found, wanted = run("inspect", source, spacing, WINDOW), run("inspect", plain)
    assert {**found, "url": "", "bytes_read": 0} == {**wanted, "url": "", "bytes_read": 0}
    python = isochunk.inspect(source, source_spacing="40,10,10", window=(LOW, HIGH))
    assert python.profiles == isochunk.inspect(plain).profiles


def test_evaluate(run: Command, tmp_path: Path) -> None:
    truth, plain = pair(tmp_path, "8,8,8", (64, 48, 48))
    spacing = "--source-spacing=8,8,8"
    assert "--window LOW,HIGH" in run("evaluate", f"--truth={truth}", spacing, code=2)["error"]
    rows = [
        [{**row, "seconds": 0} for row in run("evaluate", *words)["rows"]]
        for words in ((f"--truth={truth}", spacing, WINDOW), (f"--truth={plain}",))
    ]
    assert rows[0] == rows[1]


def test_evaluate_without_a_truth(run: Command, tmp_path: Path) -> None:
    source, plain = pair(tmp_path, "40,10,10", (24, 96, 96))
    spacing, box = "--source-spacing=40,10,10", "--box=0:24,0:96,0:96"
    assert "--window LOW" in run("evaluate", f"--source={source}", spacing, code=2)["error"]
    rows = [
        [{**row, "seconds": 0} for row in run("evaluate", box, *words)["rows"]]
        for words in ((f"--source={source}", spacing, WINDOW), (f"--source={plain}",))
    ]
    assert rows[0] == rows[1]


TINY = {
    "network": {"variant": "compact", "maps": 4, "shrunk": 2, "mappings": 1},
    "arch": "fsrcnn",
    "factor": 4,
    "steps": 2,
    "batch": 1,
    "patch": [16, 16, 16],
    "device": "cpu",
}


def test_train(tmp_path: Path) -> None:
    source, plain = pair(tmp_path, "8,8,8", (32, 32, 128))
    access = Access(spacing=isochunk.Spacing.parse("8,8,8"))
    table = {**TINY, "sources": [source], "out": f"{tmp_path}/net", "grey_window": f"{LOW},{HIGH}"}
    config = config_from_table(table)
    learnt = train(config, access)
    same = train(replace(config, sources=(plain,), out=f"{tmp_path}/same", grey_window=""))
    assert (learnt.stopped, learnt.cubic_psnr) == ("finished", same.cubic_psnr)
    with pytest.raises(TargetConflictError, match="grey_window: -1000,2100 there, -900,2100 now"):
        train(replace(config, grey_window="-900,2100", steps=4), access)
    assert "grey_window" not in fingerprint(replace(config, grey_window=""))
    with pytest.raises(UsageError, match=r"--grey-window LOW,HIGH \(grey_window in Python\), or"):
        train(replace(config, grey_window="", out=f"{tmp_path}/bare"), access)


def test_serve_and_view(tmp_path: Path) -> None:
    """What is previewed is what is written; the source is shown in its own values."""
    source, plain = pair(tmp_path, "40,10,10", (8, 64, 64))
    fields = {"source": source, "model": "cubic", "source_spacing": "40,10,10"}
    job = isochunk.Job(**fields, target=f"{tmp_path}/out", window=(LOW, HIGH))
    assert isochunk.run(isochunk.plan(job)).complete
    plan = resolve(preview_job(job), TargetPlace("memory://preview", "precomputed"))
    shown = open_job(plan).predict(plan.target.box)
    np.testing.assert_array_equal(shown, read_all(job.target))
    access = Access(spacing=isochunk.Spacing.parse("40,10,10"))
    for viewer in (preview(job), view_result(job.target, source, access)):
        with viewer as running:
            layers = running.client.state.to_json()["layers"]
            ranges = {
                layer["name"]: layer["shaderControls"]["normalized"]["range"] for layer in layers
            }
        assert ranges["source"] == [LOW, HIGH]
        assert 0 <= ranges["result"][0] < ranges["result"][1] <= 255
    # No record tells of this source's window, so its own values do.
    with view_result(plain, source, access) as running:
        layers = {layer["name"]: layer for layer in running.client.state.to_json()["layers"]}
    low, high = layers["source"]["shaderControls"]["normalized"]["range"]
    assert -1501 <= low < high <= 2501
