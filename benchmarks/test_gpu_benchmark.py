"""The benchmark of a GPU in its CPU form: its rows run and are right; what becomes of others."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import pytest
from gpu import Runner, chosen_rows, environment, measure, written
from gpu_machine import PRECISIONS, Setting
from gpu_networks import TINY
from gpu_rows import Row, rows
from gpu_tables import GOALS, NOT_MEASURED, goals_table, lines_of, tables

import isochunk

LEFT_OUT = "a tensor above 2^31 elements"
"""The one row that the CPU form does not have."""

FAULTY = """
import json, sys, time
for text in sys.stdin:
    if text == "hangs\\n":
        time.sleep(60)
    if text == "dies\\n":
        sys.exit(7)
    print(json.dumps({"status": "done", "lines": [{"what": text.strip()}]}), flush=True)
"""


@pytest.mark.slow
def test_the_cpu_form_runs_and_is_right(tmp_path):
    results = [
        {"row": row.name, "table": row.table, **result}
        for row, result in measure(rows(small=True), tmp_path, small=True, seconds=280)
    ]
    missing = {r["row"]: r.get("reason") for r in results if r["status"] != "done"}
    assert missing == {LEFT_OUT: "needs a GPU"}
    text = written(results, small=True, file=tmp_path / "figures.json")
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["rows"] == json.loads(json.dumps(results))

    lines = lines_of(found, "correctness")
    assert {line["network"] for line in lines} >= {s.name for s in TINY}
    tiny = [line for line in lines if line["network"] == TINY[0].name]
    assert {line["precision"] for line in tiny} == set(PRECISIONS)
    for line in lines:
        assert not line["nan"], line
        assert line["seam_max"] <= 1, line
        exact = line["precision"] in ("fp32", "tf32")
        fine = 257 if line["dtype"] == "uint16" else 1
        assert line["rms"] < fine * (1e-3 if exact else 2), line
        assert line["same_as_double"] >= 0.999 or not exact or fine > 1, line
    trained = {line["precision"]: line for line in lines if line["weights"] == "shipped"}
    assert trained["fp16"]["same_as_fp32"] >= 0.99
    assert trained["bf16"]["same_as_fp32"] >= 0.95
    assert all(line["passed"] for line in lines_of(found, "special"))
    assert len(lines_of(found, "special")) == 2

    assert all(line["mvox_s"] > 0 for line in lines_of(found, "forward"))
    assert {line["tile_is"] for line in lines_of(found, "forward")} == {"planned", "cube"}
    whole = lines_of(found, "end to end")
    assert {line["where"] for line in whole} == {"one process", "cluster local"}
    assert {line["voxels"] for line in whole} == {64**3}
    assert all(line["blocks"] == 4 for line in whole)
    assert f"- {LEFT_OUT}: left out, needs a GPU" in text
    assert text.count(NOT_MEASURED) == len(GOALS)  # a CPU's figures are none of them


def test_rows_that_hang_die_or_come_too_late_cost_no_more_than_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr("gpu.RUNNER", tmp_path / "faulty.py")
    (tmp_path / "faulty.py").write_text(FAULTY)
    row = Row("", "special", lambda _: [], least_s=0, most_s=30)
    names = ("one", "dies", "two", "hangs", "three", "late")
    wanted = [replace(row, name=name) for name in names]
    wanted[3] = replace(wanted[3], most_s=1)
    wanted[5] = replace(wanted[5], least_s=1000)
    found = {row.name: result for row, result in measure(wanted, tmp_path, small=True, seconds=100)}
    for name in ("one", "two", "three"):
        assert found[name]["lines"] == [{"what": name}]
    assert found["dies"]["reason"] == "the process ended with 7"
    assert found["hangs"]["reason"] == "given up after 1 s"
    assert found["late"]["status"] == "not run"


def test_a_runner_that_was_never_started_is_closed(tmp_path):
    runner = Runner(tmp_path, small=True)
    runner.close()
    assert runner.command[0] == sys.executable


def test_rows_have_names_of_their_own_and_can_be_chosen():
    for small in (True, False):
        names = [row.name for row in rows(small=small)]
        assert len(names) == len(set(names))
    chosen = [row.name for row in chosen_rows(["srunet-z4 in fp16"], small=False)]
    assert chosen[:3] == ["machine", "sources", "forward of srunet-z4 in fp16"]


def test_settings_say_what_differs(tmp_path):
    assert Setting(tmp_path, small=True).precisions == ("fp32", "fp16", "bf16")
    assert Setting(tmp_path, small=False).precisions == PRECISIONS
    assert Setting(tmp_path, small=False).device.type == "cuda"


def test_goals_of_made_up_figures():
    """1000 Mvoxels, which bare passes make in 1 s and a job in 1.25, of which 1 is steady."""
    named = {"network": "srunet-z4", "precision": "fp16"}
    forward = [
        {**named, "tile": "a", "tile_is": "planned", "mvox_s": 1000.0, "planned_gib": 10.0},
        {**named, "tile": "b", "tile_is": "cube", "mvox_s": 900.0, "planned_gib": 1.0},
    ]
    forward[0] |= {"taken_gib": 9.5, "peak_gib": 9.0}
    job = {**named, "where": "one process", "mvox_s": 800.0, "steady_mvox_s": 950.0}
    same = [
        {"network": name, "precision": "fp16", "weights": weights, "same_as_fp32": share}
        for name, weights, share in (("a", "shipped", 0.999), ("b", "shipped", 0.995))
    ]
    same.append({**same[0], "network": "c", "weights": "random", "same_as_fp32": 0.5})
    found = {
        "small": False,
        "rows": [
            {"row": name, "table": name, "status": "done", "lines": lines}
            for name, lines in (("forward", forward), ("end to end", [job]), ("correctness", same))
        ],
    }
    goals = goals_table(found).splitlines()
    assert goals[2] == "| `srunet-z4` in fp16, E | 0.70 | 0.85 | 0.80 (0.95 steady) |"
    assert goals[7].endswith("| 800 Mvox/s |")
    assert goals[9].endswith("| 99.50% (b) |")
    assert goals[11].endswith("| 0.95 to 0.95 |")
    assert goals[3].endswith(f"| {NOT_MEASURED} |")
    assert "| srunet-z4 | fp16 | a (planned) |  | 1000.0 | 9.0 | 9.5 | 10.0 | 0.90 | 0.95 |" in (
        tables(found)
    )


def test_a_checkout_that_is_not_installed_says_its_version(tmp_path, monkeypatch):
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    assert environment(tmp_path).get("PYTHONPATH") == os.environ.get("PYTHONPATH")
    monkeypatch.setattr("gpu.version", absent)
    found = environment(tmp_path)["PYTHONPATH"].split(os.pathsep)
    (said,) = Path(found[-1]).glob("*.dist-info")
    assert Distribution.at(said).version == isochunk.__version__
