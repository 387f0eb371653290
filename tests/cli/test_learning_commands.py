"""Train and evaluate by the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jobs import Command, noise, write_source

from isochunk.core.synthetic import synthetic_pair

SMALL = ("--chunk=16,16,16", "--shard=32,32,32", "--block=32,32,32")
EVALUATE = {"model", "psnr", "ssim", "wpsnr", "cf_psnr", "voxels", "seconds"}
MEASURED = {"frc_nm", "frc_along_nm", "fsc_nm", "rse", "rsp", "snr", "membranes", "membrane_dice"}
MEASURED |= {"over_cubic", "over_cubic_low", "over_cubic_high"}


@pytest.fixture
def truth(tmp_path: Path) -> str:
    """An isotropic volume with structure."""
    _, fine = synthetic_pair((8, 32, 128), 4, seed=1)
    return write_source(f"file://{tmp_path}/truth", fine, "8,8,8")


def test_evaluate(run: Command, truth: str, tmp_path: Path) -> None:
    result = run(
        "evaluate",
        "--truth",
        truth,
        "--model=identity",
        "--factor=1",
        "--box=0:32,0:32,0:100",
        "--report",
        f"{tmp_path}/report",
        "--prediction",
        truth,
        "--background=4:8,0:8,0:8",
    )
    rows = result["rows"]
    assert [row["model"] for row in rows] == ["nearest", "linear", "cubic", "identity", truth]
    assert all(row.keys() == EVALUATE | MEASURED for row in rows)
    assert all(row["psnr"] is None and row["snr"] > 0 for row in rows)  # nothing differs
    pages = {"evaluation.json", "evaluation.md", "index.html"}
    assert {f.name for f in (tmp_path / "report").iterdir()} == pages


def test_evaluate_as_text(run: Command, truth: str) -> None:
    out, _ = run.text("evaluate", "--truth", truth, "--factor=5/2", "--average=1,2,2")
    assert re.search(r"^made coarse +by 5/2 along z, AVG; voxels ", out, re.M)
    rows = r"^model +PSNR dB +over cubic .*\nnearest +(\S+).*\nlinear +(\S+)"
    table = re.search(rows, out, re.M)
    assert table, out
    assert float(table.group(1)) < float(table.group(2))
    assert max(map(len, out.splitlines())) <= 100


def test_train_and_use_it(run: Command, truth: str, tmp_path: Path) -> None:
    """A trained checkpoint is what --model takes; progress is on standard error."""
    (tmp_path / "recipe.toml").write_text("patch = [16, 16, 16]\n[keeping]\ncrops = 2\n")
    arguments = (
        "train",
        "--source",
        truth,
        "--arch=fsrcnn",
        "--factor=4",
        "--variant=compact",
        "--maps=4",
        "--shrunk=2",
        "--mappings=1",
        "--steps=3",
        "--batch=1",
        "--seed=1",
        "--device=cpu",
        "--out",
        f"{tmp_path}/net",
        f"--recipe={tmp_path}/recipe.toml",
    )
    report = run(*arguments)
    assert report["stopped"] == "finished"
    assert report["step"] == 3
    assert (tmp_path / "net" / "weights.safetensors").is_file()
    assert run(*arguments)["step"] == 3  # nothing is left to do
    source = write_source(f"file://{tmp_path}/in", noise((6, 24, 24)))
    target = f"{tmp_path}/out"
    assert run("run", source, target, "--model", f"{tmp_path}/net", *SMALL)["complete"]
    assert run("audit", target)["complete"]
    rows = run("evaluate", "--truth", truth, "--model", f"{tmp_path}/net")["rows"]
    assert rows[-1]["model"] == f"{tmp_path}/net"
    half = ("--model=fsrcnn-z4", "--precision=bf16", f"--report={tmp_path}/page")
    exact, near = run("evaluate", "--truth", truth, *half)["rows"][-2:]
    assert (exact["model"], near["model"]) == ("fsrcnn-z4", "fsrcnn-z4 in bf16")
    assert exact["psnr"] != near["psnr"]
    assert abs(exact["psnr"] - near["psnr"]) < 0.1
    assert "fsrcnn-z4 in bf16" in (tmp_path / "page" / "index.html").read_text()
