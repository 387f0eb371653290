"""What of several blocks in flight happens when, and what a fault in one of them leaves whole."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import noise, read_all, write_source

import isochunk
from isochunk.engine.opened import open_job
from isochunk.engine.pipeline import Pipeline
from isochunk.engine.prepare import prepare_target
from isochunk.planning.block import BlockTask
from isochunk.planning.plan import Plan

MODEL = "fsrcnn-z4"
BLOCKS = 12


@dataclass
class Watched:
    """A predictor whose steps are noted, and one of which fails for some blocks."""

    predictor: Any
    fault: str = ""
    """Step that fails, in the blocks that start at these sections:"""
    sections: tuple[int, ...] = ()
    noted: list[tuple[str, int, str]] = field(default_factory=list)
    """Step, block, thread; in order."""
    most: int = 0
    """Blocks in flight at once, at most."""
    _flying: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    @property
    def spec(self) -> Any:
        return self.predictor.spec

    @property
    def halvings(self) -> int:
        return self.predictor.halvings

    def note(self, step: str, at: int) -> None:
        with self._lock:
            self.noted.append((step, at, threading.current_thread().name))
            self._flying += (step == "stage") - (step == "fetched")
            self.most = max(self.most, self._flying)
        if step == self.fault and at in self.sections:
            with self._lock:
                self._flying -= 1
            raise ValueError(f"no {step}")

    def stage(self, source: Any, read: Any, write: Any) -> Any:
        at = write.lo[0]
        self.note("stage", at)
        return WatchedStep(self.predictor.stage(source, read, write), self, at)


@dataclass
class WatchedStep:
    """A block between two steps."""

    step: Any
    watched: Watched
    at: int

    def launch(self) -> WatchedStep:
        self.watched.note("launch", self.at)
        launched = self.step.launch()
        self.watched.note("launched", self.at)
        return WatchedStep(launched, self.watched, self.at)

    def fetch(self) -> Any:
        self.watched.note("fetch", self.at)
        voxels = self.step.fetch()
        self.watched.note("fetched", self.at)
        return voxels

    def compute_s(self) -> float:
        return self.step.compute_s()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A dozen blocks along z of a shipped network."""
    job = isochunk.Job(
        source=write_source(f"file://{tmp_path}/in", noise((BLOCKS * 4, 32, 32))),
        target=f"{tmp_path}/out",
        model=MODEL,
        device="cpu",
        chunk="16,32,32",
        shard="none",
        block="16,32,32",
        levels=1,
    )
    return isochunk.plan(job)


def ran(plan: Plan, fault: str = "", sections: tuple[int, ...] = ()) -> tuple[Watched, Any]:
    prepare_target(plan)
    opened = open_job(plan)
    watched = Watched(opened.predictor, fault, sections)
    with Pipeline(replace(opened, predictor=watched)) as pipeline:
        reports = pipeline.run(BlockTask(0, range(plan.block_count(0))))
    return watched, reports


def whole(plan: Plan, tmp_path: Path) -> np.ndarray:
    job = replace(plan.job, target=f"{tmp_path}/whole", block=f"{BLOCKS * 16},32,32")
    assert isochunk.run(isochunk.plan(job)).complete
    return read_all(job.target)


def test_blocks_are_launched_one_by_one_in_one_thread(plan: Plan, tmp_path: Path) -> None:
    watched, reports = ran(plan)
    assert len(reports.done) == plan.block_count(0) == BLOCKS
    launches = [(step, at) for step, at, _ in watched.noted if step.startswith("launch")]
    assert launches[::2] == [("launch", at) for _, at in launches[1::2]], "one after the other"
    threads = {thread for step, _, thread in watched.noted if step.startswith("launch")}
    assert len(threads) == 1
    others = {thread for step, _, thread in watched.noted if step in ("stage", "fetch")}
    assert not threads & others, "the computing thread does nothing else"
    steps = Counter(step for step, _, _ in watched.noted)
    assert set(steps.values()) == {BLOCKS}
    assert (reports.done["compute_s"] > 0).all()
    np.testing.assert_array_equal(read_all(plan.job.target), whole(plan, tmp_path))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_no_more_blocks_are_in_flight_than_planned(plan: Plan, depth: int) -> None:
    watched, _ = ran(replace(plan, depth=depth))
    assert watched.most <= depth
    if depth > 1:
        assert watched.most > 1, "blocks are staged while others are computed"


@pytest.mark.parametrize("fault", ["stage", "launch", "fetch"])
def test_a_fault_in_a_step_fails_its_blocks_alone(plan: Plan, tmp_path: Path, fault: str) -> None:
    bad = (32, 80)
    watched, reports = ran(plan, fault, bad)
    assert {plan.block(0, r.index).write.lo[0] for r in reports.failed} == set(bad)
    assert all(f"no {fault}" in str(r.error) for r in reports.failed)
    assert len(reports.done) == BLOCKS - len(bad)
    stored, wanted = read_all(plan.job.target), whole(plan, tmp_path)
    for at in range(0, BLOCKS * 16, 16):
        part = slice(at, at + 16)
        if at in bad:
            assert not stored[part].any()
        else:
            np.testing.assert_array_equal(stored[part], wanted[part])
    assert watched.most <= plan.depth


def test_the_computing_thread_waits_for_no_pyramid(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isochunk.engine import pipeline

    threads = []
    pool = pipeline.pool

    def slow_pool(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        time.sleep(0.01)
        return pool(*arguments)

    monkeypatch.setattr(pipeline, "pool", slow_pool)
    job = replace(plan.job, levels=2, target=f"{tmp_path}/two", block="32,32,32")
    watched, reports = ran(isochunk.plan(job))
    assert not reports.failed
    computing = {thread for step, _, thread in watched.noted if step == "launch"}
    assert threads
    assert not computing & set(threads)
