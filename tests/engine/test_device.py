"""The GPU in the report of a run, a cuDNN that is warned of, and which device a process opens."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jobs import noise, write_source

import isochunk
from isochunk.core.geometry import Box
from isochunk.core.spec import ModelSpec
from isochunk.engine import opened
from isochunk.engine.events import EventLog
from isochunk.engine.local import LocalBackend
from isochunk.engine.loop import Recorder, execute
from isochunk.engine.opened import open_job
from isochunk.engine.pipeline import Pipeline
from isochunk.engine.prepare import prepare_target
from isochunk.engine.timeouts import Timeouts
from isochunk.planning.seats import Seat

DEVICE = {"name": "H100", "count": 1, "torch": "2.9.0", "cuda": "12.8", "cudnn": "9.10.2"}


@pytest.fixture
def job(tmp_path: Path) -> isochunk.Job:
    source = write_source(f"file://{tmp_path}/in", noise((8, 32, 32)))
    return isochunk.Job(source=source, target=f"{tmp_path}/out", model="fsrcnn-z4", device="cpu")


def ran(plan: Any, precision: str, device: Any) -> isochunk.Report:
    """Run a plan as if on a GPU, in fp32 whatever it says."""
    with Pipeline(replace(open_job(plan), device=device)) as pipeline:
        ledger = prepare_target(plan)
        recorder = Recorder(ledger, EventLog(ledger.store), Timeouts())
        told = replace(plan, precision=precision)
        return execute(told, recorder, LocalBackend(pipeline), lambda _: None, 0.0)


@pytest.mark.parametrize(("precision", "warned"), [("fp16", True), ("tf32", False)])
def test_a_report_names_the_gpu_and_a_wrong_cudnn_is_warned_of(
    job: isochunk.Job, caplog: pytest.LogCaptureFixture, precision: str, warned: bool
) -> None:
    with caplog.at_level(logging.WARNING, "isochunk.engine.loop"):
        report = ran(isochunk.plan(job), precision, DEVICE)
    assert report.complete
    assert report.summary()["device"] == DEVICE
    said = [record.getMessage() for record in caplog.records if "cuDNN" in record.getMessage()]
    assert bool(said) == warned
    assert all("cuDNN 9.10.2 computes some 3D convolutions in fp16 wrongly" in s for s in said)


def test_on_a_cpu_there_is_no_device(job: isochunk.Job) -> None:
    assert isochunk.run(isochunk.plan(job)).summary()["device"] is None


@pytest.mark.parametrize(
    ("device", "found", "seat", "asked"),
    [
        ("auto", "cuda", Seat(2, 4), ("cuda:2", 0.2)),
        ("auto", "cuda", None, ("cuda", 0.8)),
        ("auto", "cpu", Seat(2, 4), ("cpu", 0.2)),
        ("cuda", None, Seat(1, 1), ("cuda:1", 0.8)),
        ("cpu", "cuda", Seat(1, 1), ("cpu", 0.8)),
        ("auto", None, None, ("cuda", 0.8)),  # read from its record, where there is a GPU
    ],
)
def test_a_process_opens_the_device_that_was_planned(
    job: isochunk.Job, monkeypatch: pytest.MonkeyPatch, device: Any, found: Any, seat: Any, asked
) -> None:
    plan = replace(
        isochunk.plan(job), job=replace(job, device=device, device_memory=0.8), found_device=found
    )
    asked_for: list[tuple[str, float]] = []
    loaded: list[Any] = []

    def limit(wanted: str, share: float) -> int:
        asked_for.append((wanted, share))
        return 16 << 30

    def load(_: str, runtime: Any) -> Any:
        loaded.append(runtime)
        return SimpleNamespace(spec=plan.model)

    monkeypatch.setattr(opened, "device_of", lambda _: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(opened, "limit_threads", lambda *_: None)
    monkeypatch.setattr(opened, "limit_device", limit)
    monkeypatch.setattr(opened, "load", load)
    monkeypatch.setattr(opened, "_told", lambda _: DEVICE)
    prepare_target(plan)
    made = open_job(plan, (), seat)
    assert asked_for == [asked]
    assert [runtime.device for runtime in loaded] == [asked[0]]
    assert made.device == (None if asked[0] == "cpu" else DEVICE)
    assert isinstance(made.predictor.spec, ModelSpec)


def test_every_thread_that_computes_is_on_the_gpu_of_the_process(
    job: isochunk.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each would hold memory of the first GPU, too."""
    used: set[tuple[str, str]] = set()
    monkeypatch.setattr(
        opened, "use_device", lambda name: used.add((name, threading.current_thread().name[:13]))
    )
    plan = isochunk.plan(job)
    prepare_target(plan)
    with Pipeline(replace(open_job(plan), seat=Seat(3, 2))) as pipeline:
        assert pipeline.submit(0, 0).result().error is None
        pipeline.compare(Box.from_shape((8, 8, 8)))
    assert used == {
        ("cuda:3", "isochunk-bloc"),
        ("cuda:3", "isochunk-comp"),
        ("cuda:3", "MainThread"),
    }
    used.clear()
    with Pipeline(open_job(plan)) as pipeline:
        assert pipeline.submit(0, 0).result().error is None
    assert not used, "there is nothing to choose on a CPU"
