"""Seeing a run: status that watches, the event log, metrics of workers."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest
from distributed import Client
from jobs import noise, slow_model, start, write_source

import isochunk
from isochunk.cluster.roster import known_workers
from isochunk.engine.events import EventLog, last_event, read_events
from isochunk.engine.report import KEPT_SAMPLES, Throughput
from isochunk.engine.target import open_written_target
from isochunk.storage.open import open_store

BLOCKS = {"chunk": (16, 16, 16), "shard": (32, 32, 32), "block": (32, 32, 32)}
FLAGS = [f"--{name}={','.join(map(str, value))}" for name, value in BLOCKS.items()]


@pytest.mark.slow
def test_watch_ends_with_the_run(tmp_path: Path) -> None:
    source = write_source(f"file://{tmp_path}/in", noise((16, 160, 160)))
    model = slow_model(tmp_path, 0.1)
    run = start("run", source, f"{tmp_path}/out", "--model", model, "--trust", *FLAGS)
    while not (tmp_path / "out" / ".isochunk" / "ledger").is_dir():
        assert run.poll() is None
    watching = start("status", f"{tmp_path}/out", "--watch", "0.5", "--json")
    out, err = watching.communicate(timeout=120)
    assert watching.returncode == 0, err.decode()
    assert json.loads(out)["complete"] is True
    said = [int(n) for n in re.findall(r"^(\d+) of 51 blocks", err.decode(), re.MULTILINE)]
    assert len(said) > 2
    assert said == sorted(said)
    assert said[-1] == 51
    assert re.search(r"blocks/s, about \d+ s left", err.decode())
    run.communicate(timeout=60)
    assert run.returncode == 0


def test_the_event_log_tells_a_run(tmp_path: Path) -> None:
    source = write_source(f"file://{tmp_path}/in", noise((16, 64, 64)))
    job = isochunk.Job(source=source, target=f"{tmp_path}/out", model="cubic", **BLOCKS)
    report = isochunk.run(isochunk.plan(job))
    isochunk.run(isochunk.plan(job))
    events = list(read_events(open_written_target(f"{tmp_path}/out").store))
    assert [e["event"] for e in events] == ["started", "ended"] * 2
    assert events[0] == {
        "time": events[0]["time"],
        "session": events[0]["session"],
        "event": "started",
        "blocks": report.total,
        "resumed": 0,
        "workers": 1,
    }
    assert events[1]["blocks"]["done"] == report.total
    assert events[2]["resumed"] == report.total
    assert len({e["session"] for e in events}) == 2


def test_lines_are_kept_until_they_are_stored(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/log")
    log = EventLog(store)
    assert last_event(store) is None
    log.add("one", {"n": 1})
    assert list(read_events(store)) == []
    log.flush()
    log.add("two", {"n": 2})
    log.add("three", {"n": 3})
    log.flush()
    log.flush()
    assert [(e["event"], e["n"]) for e in read_events(store)] == [
        ("one", 1),
        ("two", 2),
        ("three", 3),
    ]
    assert last_event(store)["event"] == "three"


def test_rates_stay_few_however_long_the_run() -> None:
    throughput = Throughput()
    for second in range(1, 10_000):
        throughput = throughput.at(float(second), 100 * second)
        assert len(throughput.samples) <= KEPT_SAMPLES
    spans = throughput.summary()
    assert len(spans) > KEPT_SAMPLES // 4
    assert {span["voxels_per_s"] for span in spans} == {100.0}


def test_the_report_says_where_time_went(tmp_path: Path) -> None:
    source = write_source(f"file://{tmp_path}/in", noise((16, 64, 64)))
    job = isochunk.Job(source=source, target=f"{tmp_path}/out", model="cubic", **BLOCKS)
    summary = isochunk.run(isochunk.plan(job)).summary()
    assert abs(sum(summary["shares"].values()) - 1) < 1e-3
    assert summary["first_block_s"] > 0
    again = isochunk.run(isochunk.plan(job)).summary()
    assert again["first_block_s"] is None, "all was done before"
    slowest = [row["seconds"] for row in summary["slowest"]]
    assert slowest == sorted(slowest, reverse=True)
    assert len(slowest) == 5
    assert len({(row["stage"], row["block"]) for row in summary["slowest"]}) == 5


def test_workers_serve_metrics(client: Client, tmp_path: Path) -> None:
    source = write_source(f"file://{tmp_path}/in", noise((16, 64, 64)))
    job = isochunk.Job(source=source, target=f"{tmp_path}/out", model="cubic", **BLOCKS)
    pages: list[str] = []

    def look(report: isochunk.engine.report.Report) -> None:
        if report.complete and not pages:
            for worker in known_workers(client).values():
                url = f"http://127.0.0.1:{worker['services']['dashboard']}/metrics"
                with urllib.request.urlopen(url, timeout=30) as answer:
                    pages.append(answer.read().decode())

    report = isochunk.run(isochunk.plan(job), client, look)
    assert len(pages) == 2
    pattern = r'^isochunk_(\w+)_total\{job="isochunk-[^"]*",kind="(\w+)"\} (\S+)$'
    found = [m for page in pages for m in re.findall(pattern, page, re.MULTILINE)]
    total = {
        (name, kind): sum(float(v) for n, k, v in found if (n, k) == (name, kind))
        for name, kind, _ in found
    }
    assert total["blocks", "stored"] == report.total
    assert total["voxels", "written"] == report.voxels
    assert total["bytes", "written"] == report.bytes_written
    assert total["seconds", "compute"] > 0
