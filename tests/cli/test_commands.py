"""The command line as its users and their scripts see it: keys, exit codes, streams, files."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
import torch
from distributed import LocalCluster
from jobs import Command, command, look, noise, read_all, slow_model, start, write_source

import isochunk
from isochunk.cli.main import ours_or_grave
from isochunk.core.synthetic import synthetic_pair
from isochunk.models import load
from isochunk.models.checkpoint import Card, save
from isochunk.models.niiv import NIIVConfig
from isochunk.models.registry import make
from isochunk.storage.access import Access
from isochunk.storage.open import open_store

torch.set_num_threads(1)

SUBMIT = Path(__file__).resolve().parents[2] / "examples" / "submit.py"
SMALL = ("--chunk=16,16,16", "--shard=32,32,32", "--block=32,32,32")

INFO = {"url", "format", "shape", "dtype", "spacing_nm", "offset", "chunk", "shard", "levels"}
PLAN = {
    "source",
    "target",
    "model",
    "blocks",
    "block",
    "halo",
    "halo_overhead",
    "bytes_read",
    "read_amplification",
    "bytes_written",
    "bytes_stored",
    "objects_written",
    "storage_month",
    "worker_memory_bytes",
    "exact",
}
RUN = {
    "blocks",
    "voxels",
    "wall_s",
    "first_block_s",
    "voxels_per_s",
    "bytes_read",
    "bytes_written",
    "stages_s",
    "seam",
    "device",
    "neuroglancer_url",
}
BLOCKS = {"total", "done", "resumed", "empty", "failed"}
AUDIT = {"complete", "expected", "missing", "corrupt"}
INSPECT = {
    "url",
    "sections",
    "level",
    "bytes_read",
    "lost",
    "corrected",
    "padding",
    "shifts",
    "suggestion",
}
MODELS = {
    "name",
    "arch",
    "factor",
    "trained_factors",
    "phase",
    "plane",
    "halo",
    "exact",
    "parameters",
    "trained_on",
    "licence",
}


@pytest.fixture
def source(tmp_path: Path) -> str:
    """40 x 10 x 10 nm, 9 x 64 x 70 voxels that start at (2, 4, -6)."""
    return write_source(f"file://{tmp_path}/in", noise((9, 64, 70)), offset=(2, 4, -6))


def test_info(run: Command, source: str) -> None:
    told = run("info", source)
    assert told.keys() >= INFO
    assert {name: told[name] for name in INFO} == {
        "url": source,
        "format": "precomputed",
        "shape": [9, 64, 70],
        "dtype": "uint8",
        "spacing_nm": [40.0, 10.0, 10.0],
        "offset": [2, 4, -6],
        "chunk": [16, 32, 32],
        "shard": None,
        "levels": 1,
    }
    out, err = run.text("info", source)
    assert "9 x 64 x 70 voxels (z, y, x) of 40 x 10 x 10 nm, uint8: 40.3 kvoxel\n" in out
    assert "starts at  2, 4, -6\n" in out
    assert err == ""


def test_inspect(run: Command, tmp_path: Path) -> None:
    voxels = np.repeat(noise((1, 64, 70)), 9, 0)
    voxels[3] = 0
    source = write_source(f"file://{tmp_path}/in", voxels, offset=(2, 4, -6))
    told = run("inspect", source, f"--out={tmp_path}/sections.toml")
    assert told.keys() == INSPECT
    assert (told["url"], told["sections"], told["level"]) == (source, 9, 0)
    assert told["bytes_read"] == voxels.size
    assert (told["lost"], told["corrected"], told["shifts"]) == ([5], [], [])
    assert told["suggestion"].keys() == {"degradation", "factor", "reason"}
    table = isochunk.SectionTable.parse(Path(f"{tmp_path}/sections.toml").read_text())
    assert [(s.z, s.lost, s.why) for s in table.sections] == [(5, True, "100% black")]
    table.check_source(source)
    assert run("inspect", source, "--box=6:11,4:68,-6:64", "--level=0")["sections"] == 5
    assert "level 1" in run("inspect", source, "--level=1", code=2)["error"]
    out, _ = run.text("inspect", source)
    assert re.search(r"^lost +1: z = 5$", out, re.M)
    assert re.search(r"^uneven +none$", out, re.M)
    assert "--sections sections.toml" in out


def test_plan_run_status_audit_repair(run: Command, source: str, tmp_path: Path) -> None:
    target = f"{tmp_path}/out"
    plan = run("plan", source, target, "--model=cubic", *SMALL)
    assert not Path(target).exists()
    assert plan.keys() >= PLAN
    assert plan["source"].keys() >= INFO
    assert plan["target"].keys() >= INFO
    assert plan["target"]["shape"] == [36, 64, 70]
    assert plan["target"]["offset"] == [8, 4, -6]
    assert plan["target"]["spacing_nm"] == [10, 10, 10]
    assert plan["block"] == [32, 32, 32]
    assert plan["halo"] == [2, 0, 0]
    assert plan["exact"] is True

    report = run("run", source, target, "--model=cubic", *SMALL)
    assert report.keys() >= RUN
    assert report["blocks"].keys() == BLOCKS
    assert report["stages_s"].keys() == {"read", "compute", "write"}
    assert report["blocks"]["total"] == report["blocks"]["done"] == plan["blocks"]
    assert report["blocks"]["resumed"] == report["blocks"]["failed"] == 0
    assert report["voxels"] == 36 * 64 * 70
    assert report["bytes_written"] == plan["bytes_written"]
    assert report["seam"]["identical_fraction"] == 1
    assert report["seam"]["promised"]["identical_fraction"] == plan["identical_to_fp32"] == 1
    objects = [f for f in Path(target).rglob("*") if f.suffix == ".shard" or "_16" in f.name]
    assert len(objects) <= plan["objects_written"]

    status = run("status", target)
    assert status["complete"] is True
    assert status["blocks"]["done"] == status["blocks"]["total"] == plan["blocks"]
    audit = run("audit", target)
    assert audit.keys() == AUDIT
    assert (audit["complete"], audit["missing"], audit["corrupt"]) == (True, [], [])
    assert audit["expected"] == plan["objects_written"]

    next(Path(target).rglob("*.shard")).unlink()
    audit = run("audit", target, code=1)
    assert audit["complete"] is False
    assert len(audit["missing"]) == 1
    assert run("status", target)["complete"] is True  # it asks the ledger, not the storage
    repair = run("repair", target)
    assert repair.keys() >= RUN
    assert repair["found"] == audit
    assert repair["complete"] is True
    assert repair["blocks"]["done"] - repair["blocks"]["resumed"] == 1
    assert run("audit", target)["complete"] is True


def test_output_for_people(
    run: Command, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # paths of tests are long
    target = f"{tmp_path}/out"
    out, _ = run.text("plan", source, target, "--model=cubic")
    assert re.search(r"^make +sections of 10 nm from those of 40 nm, by cubic$", out, re.M)
    assert re.search(rf"^write +file://{target}$", out, re.M)
    assert re.search(r"^ +about \d+ kB as png, as EM has it$", out, re.M)
    assert re.search(r"^exact +blocks join as if the volume were one; every voxel", out, re.M)
    out, _ = run.text("run", source, target, "--model=cubic")
    assert re.search(r"^result +complete: 1 of 1 block$", out, re.M)
    assert out.splitlines()[-1] == f"isochunk view {target} {source}"
    assert len(out.splitlines()) <= 10
    out, _ = run.text("audit", target)
    assert out == "complete: all of 2 objects were read again and are as written\n"
    out, _ = run.text("status", target)
    assert re.search(r"^blocks +1 of 1 block done \(100 %\)$", out, re.M)
    next(Path(target).rglob("*.shard")).unlink()
    out, _ = run.text("audit", target, code=1)
    assert out.startswith("not complete: of 2 objects 1 missing, 0 corrupt or not readable\n")
    assert re.search(r"^10_10_10/0.shard +8:44,4:68,-6:64 +0 +\S", out, re.M)
    out, _ = run.text("repair", target)
    assert out.startswith("found 1 object missing or corrupt\n")
    assert re.search(r"^result +complete: 1 of 1 block", out, re.M)
    out, _ = run.text("models")
    header, *rows = out.splitlines()
    assert header.split()[:3] == ["name", "ratio", "sections"]
    assert [row.split()[0] for row in rows[:4]] == ["identity", "nearest", "linear", "cubic"]
    out, err = run.text("info", "/nowhere", code=2)
    assert out == ""
    assert err.startswith("isochunk: no precomputed, zarr, OME-Zarr or N5 volume at file:///nowh")


def test_models(run: Command) -> None:
    rows = {row["name"]: row for row in run("models")["rows"]}
    assert all(row.keys() == MODELS for row in rows.values())
    assert rows["cubic"]["factor"] == ["any", "any", "any"]
    assert rows["cubic"]["trained_factors"] is None
    assert rows["identity"]["factor"] == [1, 1, 1]
    shipped = rows["srunet-z4"]
    assert shipped["arch"] == "srunet"
    assert shipped["factor"] == [4, 1, 1]
    assert shipped["trained_factors"] == [4, 4]
    assert (shipped["phase"], shipped["plane"]) == ("mean", "3d")
    assert shipped["parameters"] > 0
    assert shipped["exact"] is True
    assert "BSD" in shipped["licence"] or "CC" in shipped["licence"]
    assert shipped["trained_on"]


def test_models_of_any_factor(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card("niiv-small", "CC0-1.0", "nothing", training={"factors": ["2", "8", "3"]})
    save(tmp_path / "niiv-small", make(NIIVConfig(blocks=1, width=2, hidden=2, layers=1)), card)
    monkeypatch.setattr(load, "SHIPPED", tmp_path)
    (row,) = (row for row in run("models")["rows"] if row["name"] == "niiv-small")
    assert row.keys() == MODELS
    assert row == {
        "name": "niiv-small",
        "arch": "niiv",
        "factor": ["any", 1, 1],
        "trained_factors": [2, 8],
        "phase": "mean",
        "plane": "xz",
        "halo": [5, 0, 5],
        "exact": True,
        "parameters": row["parameters"],
        "trained_on": "nothing",
        "licence": "CC0-1.0",
    }
    assert row["parameters"] > 0
    out, _ = run.text("models")
    row_told = r"^niiv-small +2 to 8 +means +xz slices +5 x 0 x 5 +"
    assert re.search(row_told, out, re.M)


@pytest.mark.parametrize(("factors", "warned"), [(["2", "3"], True), (["2", "10"], False)])
def test_a_factor_that_a_network_was_not_trained_for(
    run: Command,
    source: str,
    tmp_path: Path,
    factors: list[str],
    warned: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    card = Card("niiv-small", "CC0-1.0", "nothing", training={"factors": factors})
    save(tmp_path / "net", make(NIIVConfig(blocks=1, width=2, hidden=2, layers=1)), card)
    run("plan", source, f"{tmp_path}/out", f"--model={tmp_path}/net", *SMALL)
    assert ("was trained for factors 2 to 3, and is asked for 4" in caplog.text) == warned


OPTIONS = {
    "spacing": ("--spacing=20,10,10", {"spacing_nm": [20, 10, 10], "shape": [18, 64, 70]}),
    "box": ("--box=3:8,4:24,-6:34", {"offset": [12, 4, -6], "shape": [20, 20, 40]}),
    "format": (
        "--format=ome-zarr",
        {"format": "zarr3", "offset": [0, 0, 0], "encoding": "blosc-zstd"},
    ),
    "encoding": ("--encoding=gzip", {"encoding": "gzip"}),
    "chunk": ("--chunk=32,32,16", {"chunk": [32, 32, 16]}),
    "shard": ("--shard=none", {"shard": None}),
    "levels": ("--levels=2", {"levels": 2}),
    "dtype": ("--dtype=uint16", {"dtype": "uint16"}),
    "source spacing": ("--source-spacing=20,10,10", {}),
}


@pytest.mark.parametrize(("option", "wanted"), OPTIONS.values(), ids=OPTIONS)
def test_options_reach_the_plan(
    run: Command, source: str, tmp_path: Path, option: str, wanted: dict[str, Any]
) -> None:
    target = run("plan", source, f"{tmp_path}/out", "--model=cubic", option)["target"]
    assert {name: target[name] for name in wanted} == wanted


def test_memory_and_block(run: Command, source: str, tmp_path: Path) -> None:
    job = ("plan", source, f"{tmp_path}/out", "--model=fsrcnn-z4", *SMALL)
    large, small = run(*job), run(*job, "--memory=608MiB")
    assert small["worker_memory_bytes"] <= 608 << 20 < large["worker_memory_bytes"]


def test_configuration_files(run: Command, source: str, tmp_path: Path) -> None:
    """Keys are the fields of Job; options win."""
    config = tmp_path / "job.toml"
    config.write_text(
        f'source = "{source}"\ntarget = "{tmp_path}/out"\nmodel = "linear"\nlevels = 2\n'
        'chunk = [16, 16, 16]\nshard = "32,32,32"\nspacing = [20, 10, 10.0]\nmemory = "1GiB"\n'
        'box = "2:8,4:36,-6:26"\nworkers = 1\n'
    )
    plan = run("plan", "--config", str(config))
    assert plan["model"] == "linear"
    assert plan["target"]["levels"] == 2
    assert plan["target"]["chunk"] == [16, 16, 16]
    assert plan["target"]["spacing_nm"] == [20, 10, 10]
    assert plan["target"]["shape"] == [12, 32, 32]
    over = run(
        "plan",
        source,
        f"{tmp_path}/other",
        "--config",
        str(config),
        "--model=cubic",
        "--spacing=10,10,10",
        "--levels=1",
    )
    assert over["model"] == "cubic"
    assert over["target"]["url"] == f"file://{tmp_path}/other"
    assert over["target"]["levels"] == 1
    assert over["target"]["shape"] == [24, 32, 32]
    assert run("run", "--config", str(config))["complete"] is True
    assert run("audit", f"{tmp_path}/out")["complete"] is True


@pytest.mark.parametrize(
    ("name", "level", "told"),
    [
        ("isochunk.cluster.start", logging.INFO, True),
        ("distributed.scheduler", logging.INFO, False),
        ("distributed.nanny", logging.WARNING, False),
        ("distributed.nanny.memory", logging.WARNING, True),
        ("distributed.worker", logging.ERROR, True),
        ("google.auth", logging.INFO, False),
        ("google.auth", logging.WARNING, True),
    ],
)
def test_what_is_told_of_what_libraries_log(name: str, level: int, *, told: bool) -> None:
    record = logging.LogRecord(name, level, "", 0, "said", None, None)
    assert ours_or_grave(record) is told


@pytest.mark.slow
def test_exit_codes_and_streams_of_the_program(source: str, tmp_path: Path) -> None:
    """Nothing but the object is on standard output, also from workers of a cluster."""
    target = f"{tmp_path}/out"
    plan = command("plan", source, target, "--model", "cubic", "--verbose")
    assert plan.keys() >= PLAN
    assert command("plan", source, source, "--model", "cubic", code=2)["kind"] == "UsageError"
    assert command("run", source, code=2)["error"].startswith("target, model must be given")
    process = start("run", source, target, "--model=cubic", "--workers=2", "--json", *SMALL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert json.loads(out)["complete"] is True
    assert "Dask dashboard: http://127.0.0.1:" in err.decode()
    assert "Starting worker" not in err.decode(), "Dask tells that, and it was not asked for"
    process = start("audit", target, "--workers=2", "--json", "--verbose")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert "Starting worker" in err.decode()
    version = subprocess.run(
        [sys.executable, "-m", "isochunk.cli", "--version"], capture_output=True, check=True
    )
    assert version.stdout.decode().strip() == isochunk.__version__


def test_progress_in_a_log_file(
    run: Command,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("isochunk.cli.progress.LINE_S", 0.0)
    assert run("run", source, f"{tmp_path}/out", "--model=cubic", *SMALL)["complete"]
    line = r"^.* (\d+) of (\d+) blocks, [\d.]+ \wvoxel/s(?:, about [\d.e-]+ s left)?$"
    told = re.findall(line, caplog.text, re.M)
    assert len(told) > 1
    assert told[-1][0] == told[-1][1]


def test_a_target_does_not_make_repair_run_code(run: Command, source: str, tmp_path: Path) -> None:
    target, model = f"{tmp_path}/out", slow_model(tmp_path, 0)
    assert run("run", source, target, "--model", model, "--trust", *SMALL)["complete"]
    next(Path(target).rglob("*.shard")).unlink()
    assert "--trust" in run("repair", target, code=2)["error"]
    assert run("audit", target, code=1)["complete"] is False
    assert run("repair", target, "--trust")["complete"] is True
    np.testing.assert_array_equal(read_all(target), noise((9, 64, 70)).repeat(4, 0))


def test_view_serves_until_it_is_ended(run: Command, source: str, tmp_path: Path) -> None:
    target = f"{tmp_path}/out"
    run("run", source, target, "--model=cubic")
    assert look(target, source).startswith("http://127.0.0.1")


def test_a_bucket_by_endpoint_option(
    run: Command, s3: str, s3_server: servers.ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command reaches an S3-compatible server that only its option names."""
    write_source(f"{s3}/in", synthetic_pair((12, 48, 48), 4, seed=1)[1], "8,8,8")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    at = f"--endpoint-url={s3_server.endpoint_url}"
    assert run("info", f"{s3}/in", at)["shape"] == [48, 48, 48]
    job = (f"{s3}/in", f"{s3}/out", "--model=cubic", "--spacing=2,8,8", at)
    plan = run("plan", *job)
    report = run("run", *job)
    assert report["blocks"]["done"] == plan["blocks"]
    # The browser too must be told which server.
    assert report["neuroglancer_url"].startswith("https://neuroglancer")
    assert f"s3+{s3_server.endpoint_url}/" in report["neuroglancer_url"]
    for name in ("status", "audit", "repair"):
        assert run(name, f"{s3}/out", at)["complete"] is True
    # A page over https may not read a server over http, so the client is served here too.
    assert look(f"{s3}/out", at).startswith("http://127.0.0.1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # put back after the test
    assert len(run("evaluate", "--truth", f"{s3}/in", at)["rows"]) == 3
    assert os.environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9"  # it is no business of ours
    store = open_store(f"{s3}/out", Access(endpoint_url=s3_server.endpoint_url))
    assert "provenance" in store.keys()  # noqa: SIM118


@pytest.mark.slow
def test_the_submit_script(source: str, tmp_path: Path) -> None:
    """examples/submit.py, as it is, against a cluster of processes."""
    target = f"{tmp_path}/out"
    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0"
    ) as cluster:
        answer = subprocess.run(
            [sys.executable, SUBMIT, cluster.scheduler_address, source, target],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert answer.returncode == 0, answer.stderr
    planned, reported = answer.stdout.splitlines()
    assert "'srunet-z4'" in planned
    assert "'complete': True" in reported
    assert isochunk.audit(target).complete
    assert isochunk.open(target).spec.box.shape == (36, 64, 70)
