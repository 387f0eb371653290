"""What documents say to type, and which keys they say come out, against the program."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import Command, look, noise, read_all, write_source

import isochunk
from isochunk.cli.demo import Compared
from isochunk.cli.main import COMMANDS, main, parser
from isochunk.cli.options import job_of
from isochunk.core.synthetic import synthetic_pair
from isochunk.evaluation.results import ModelFigures, PlaneFigures
from isochunk.evaluation.without_truth.results import JudgedFigures, NotMeasured
from isochunk.train.loop import TrainReport

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for folder in ("docs", "deploy", ".")
    for path in ((ROOT / folder).rglob("*.md") if folder != "." else ROOT.glob("*.md"))
)
TUTORIAL = ROOT / "docs" / "tutorial" / "your-own-volume.md"
SMALL = ("--chunk=16,16,16", "--shard=32,32,32", "--block=32,32,32")
CALL = r"^ *(?:\w+=\S+ |docker run .* )?isochunk ([a-z].*)"
NAMES = {command.name for command in COMMANDS}


def blocks(text: str) -> Iterator[str]:
    """Yield the blocks of code of a document, indented ones too."""
    yield from re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    yield from re.findall(r"(?:^ {4,}\S.*\n)+", text, re.MULTILINE)


def typed(text: str) -> list[list[str]]:
    """Return the words behind isochunk of each line of code that calls it."""
    lines = (re.sub(r"\\\n\s*", " ", block).splitlines() for block in blocks(text))
    called = (re.search(CALL, line) for some in lines for line in some)
    return [shlex.split(match[1], comments=True) for match in called if match]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_documents_show_are_understood(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = document.read_text()
    for words in (words for words in typed(text) if "..." not in words):
        options = parser(words).parse_args(words)
        if words[0] in ("plan", "run") and "--config" not in words:
            job_of(options)
    for words in map(str.split, re.findall(r"`isochunk ([a-z][^`]*)`", text)):
        with pytest.raises(SystemExit):
            main([words[0], "--help"])
        told = {re.split("[=,/]", word)[0] for word in words if word.startswith("--")}
        assert told <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out)), words


def test_most_commands_are_shown() -> None:
    shown = [words[0] for document in DOCUMENTS for words in typed(document.read_text())]
    assert {"info", "inspect", "plan", "run", "audit", "train", "evaluate", "view"} <= set(shown)
    assert len(shown) > 60


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_tutorial(tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    isochunk.sample_tissue("em")
    tissue = read_all("em")
    larger = np.pad(tissue, ((0, 0), (0, 96), (0, 320)), "symmetric")
    write_source(f"file://{tmp_path}/larger", larger)
    walk = [words for words in typed(TUTORIAL.read_text()) if words[0] != "demo"]
    told = {}
    for name, *words in walk:
        if name == "view":
            look(*words)
            continue
        quick = {
            "evaluate": ("--box=0:40,40:104,40:104",),
            "train": ("--steps=4", "--validate-every=2"),
            "run": ("--box=0:12,0:48,0:48",),
        }
        source = "larger" if name == "train" else "em"
        words = [source if word == "em" else word for word in words]
        told[name] = run(name, *words, *quick.get(name, ()))
    assert told["info"]["shape"] == [40, 160, 160]
    assert told["inspect"]["lost"] == []
    judged = {row["model"]: row["lateral_over_cubic"] for row in told["evaluate"]["rows"]}
    assert min(judged["anyz-z4"], judged["anyz-z2-10"]) > 1 > judged["linear"]
    assert Path("found/index.html").is_file()
    assert Path("judged/index.html").is_file()
    assert Path("own/model.json").is_file()
    assert told["plan"]["blocks"] == 1
    assert told["run"]["complete"]
    assert told["status"]["complete"]
    assert told["audit"]["complete"]
    assert told["report"]["page"].endswith("isotropic/.isochunk/report.html")


def test_the_network_of_the_page_on_networks(
    tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "howto" / "own-network.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    Path("my_model.py").write_text(code)
    write_source(f"file://{tmp_path}/SOURCE", noise((6, 24, 24)))
    plan, report = (run(*words, *SMALL) for words in typed(page))
    assert plan["padded_because"] == ""
    assert report["complete"]


# Keys


PAGE = ROOT / "docs" / "reference" / "json.md"
RECORDS = (Compared, JudgedFigures, ModelFigures, NotMeasured, PlaneFigures, TrainReport)


def documented() -> dict[str, set[str]]:
    """Return the keys that the page has of each command, by the tables of its section."""
    text = PAGE.read_text()
    sections = dict(re.findall(r"^## isochunk (\w+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.M))
    own: dict[str, set[str]] = {}
    for command, section in sections.items():
        rows = re.findall(r"^\| (`.*?`) \| (.*) \|$", section, re.MULTILINE)
        own[command] = {key for cell, _ in rows for key in re.findall(r"`([^`]+)`", cell)}
        for under, name in re.findall(r"(?:`(\w+)`:\n\n)?<!-- fields: (\w+) -->", section):
            (record,) = (r for r in RECORDS if r.__name__ == name)
            head = f"{under}[]." if f"{under}[]" in own[command] else f"{under}." if under else ""
            own[command] |= {head + field.name for field in fields(record)}
    keys = {command: set(found) for command, found in own.items()}
    for command in ("plan", "demo", "repair"):  # what others print, beneath a key or beside it
        lines = re.findall(r"^(.*)\(#isochunk-(\w+)\)", sections[command], re.MULTILINE)
        for line, other in lines:
            key = re.match(r"\| `(\w+)` \|", line)
            keys[command] |= {f"{key[1]}.{k}" if key else k for k in keys[other]}
    return keys


def printed(value: Any, at: str = "") -> Iterator[str]:
    """Yield the path of each key that holds something plain."""
    match value:
        case dict() if value:
            for key, inner in value.items():
                yield from printed(inner, f"{at}.{key}" if at else key)
        case list() if value and isinstance(value[0], dict):
            for inner in value:
                yield from printed(inner, f"{at}[]")
        case _:
            yield at


def unknown(result: dict[str, Any], keys: set[str]) -> set[str]:
    """Return the keys of a result that are not documented; NAME of those that are is any name."""
    known = "|".join(re.sub(r"\b[A-Z]+\b", r"[^.]+(?:\.spec)?", re.escape(key)) for key in keys)
    return {
        path
        for path in printed(result)
        if not re.fullmatch(known, path)
        # Where a key holds null or nothing, what it may hold is documented beneath it.
        and not any(key.startswith((f"{path}.", f"{path}[]")) for key in keys)
    }


def test_each_command_has_its_keys() -> None:
    assert documented().keys() == NAMES


def test_keys_that_the_page_names_are_those_of_the_program() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "isochunk").rglob("*.py"))
    text = re.findall(r"^\| (`.*?`) \| ", PAGE.read_text(), re.MULTILINE)
    named = {key for cell in text for key in re.findall(r"`([^`]+)`", cell)}
    leaves = {re.split(r"[.\[\]]+", key.removesuffix("[]"))[-1] for key in named}
    assert len(leaves) > 100
    for leaf in (leaf for leaf in leaves if not leaf.isupper()):
        assert re.search(rf'"{leaf}"|\b{leaf}: ', source), f"nothing prints {leaf}"


def test_what_failures_print_is_documented(run: Command) -> None:
    failed = run("info", "/nowhere", code=2)
    section = PAGE.read_text().partition("## isochunk")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(failed)


def test_what_jobs_print_is_documented(run: Command, tmp_path: Path) -> None:
    keys = documented()
    voxels = noise((9, 64, 70))
    voxels[3] = 0
    source, target = write_source(f"file://{tmp_path}/in", voxels), f"{tmp_path}/out"
    table = f"{tmp_path}/sections.toml"
    told = {"info": run("info", source), "inspect": run("inspect", source, "--out", table)}
    job = (source, target, "--model=cubic", f"--sections={table}", "--window=3,240", *SMALL)
    told["plan"] = run("plan", *job, "--calibrate=2")
    assert told["plan"]["window"]
    assert told["plan"]["sections"]["lost"] == [3]
    hinted = run("plan", source, target, "--model=cubic", *SMALL)
    assert unknown(hinted, keys["plan"]) == set()
    told["run"] = run("run", *job)
    assert told["run"]["seam"]["promised"]
    told["status"], told["report"] = run("status", target), run("report", target)
    lost, cut, *_ = sorted(Path(target).rglob("*.shard"))
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:40])
    told["audit"] = run("audit", target, code=1)
    assert told["audit"]["missing"]
    assert told["audit"]["corrupt"]
    told["repair"] = run("repair", target)
    told["models"] = run("models")
    told["export"] = run("export", "fsrcnn-z4", f"--bioimageio={tmp_path}/package.zip")
    told["doctor"] = run("doctor", str(tmp_path), "--write")
    assert [entry["answer"] for entry in told["doctor"]["storage"]["tried"]] == ["ok"] * 4
    assert {name: unknown(result, keys[name]) for name, result in told.items()} == {
        name: set() for name in told
    }


def test_what_learning_prints_is_documented(run: Command, tmp_path: Path) -> None:
    keys = documented()
    coarse, fine = synthetic_pair((8, 32, 128), 4, seed=1)
    truth = write_source(f"file://{tmp_path}/truth", fine, "10,10,10")
    source = write_source(f"file://{tmp_path}/in", coarse.astype(np.uint8), "40,10,10")
    measured = run("evaluate", "--truth", truth, "--factor=4")
    assert measured["planes"]
    assert unknown(measured, keys["evaluate"]) == set()
    judged = run("evaluate", "--source", source, "--model=fsrcnn-z4")
    assert judged["lateral"]
    assert judged["not_measured"]
    assert unknown(judged, keys["evaluate"]) == set()
    arguments = "--arch=fsrcnn --variant=compact --maps=4 --shrunk=2 --mappings=1 --factor=4"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("patch = [16, 16, 16]\n[keeping]\ncrops = 2\n")
    more = ("--steps=2", "--batch=1", "--device=cpu", f"--recipe={recipe}", f"--out={tmp_path}/net")
    report = run("train", "--source", truth, *arguments.split(), *more)
    assert unknown(report, keys["train"]) == set()


@pytest.mark.slow
def test_what_the_demo_prints_is_documented(run: Command, tmp_path: Path) -> None:
    told = run("demo", f"--out={tmp_path}/demo", "--workers=1")
    assert unknown(told, documented()["demo"]) == set()
    assert json.loads((tmp_path / "demo/isotropic/.isochunk/report.json").read_text()) is not None
