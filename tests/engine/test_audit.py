"""What an audit finds in this process, how a stage is cut into its tasks, and what it says."""

from __future__ import annotations

import itertools
import logging
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import Command, noise, write_source

import isochunk
from isochunk.core.limits import PROCESS_BYTES, TASK_BLOCKS
from isochunk.engine.audit import AuditProgress, Tally, audit_task, audit_tasks
from isochunk.engine.auditor import READERS, Audited, open_auditor, readers
from isochunk.engine.holes import Hole
from isochunk.engine.ledger import EMPTY, LOST, RECORDED, STORED, Ledger, Table
from isochunk.engine.target import open_written_target
from isochunk.errors import ClusterError
from isochunk.planning.block import BlockTask
from isochunk.planning.plan import Plan

CHUNKS = {"chunk": "16,16,16", "shard": "none", "block": "32,32,32", "levels": 3, "encoding": "raw"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A target whose first stage has 32 blocks, half of them background."""
    folder = tmp_path_factory.mktemp("written")
    voxels = noise((32, 128, 64))
    voxels[:, 64:] = 0
    source = write_source(f"file://{folder}/in", voxels)
    job = isochunk.Job(source=source, target=f"{folder}/out", model="nearest", **CHUNKS)
    report = isochunk.run(isochunk.plan(job))
    assert (report.complete, report.empty) == (True, 16)
    return f"{folder}/out"


@pytest.fixture(scope="module")
def plan(written: str) -> Plan:
    return open_written_target(written).plan


@pytest.fixture
def ledger(written: str) -> Ledger:
    return open_written_target(written).ledger


def test_what_is_recorded_of_some_blocks(ledger: Ledger) -> None:
    rows = ledger.recorded(0, range(32))
    assert rows["state"].tolist().count(EMPTY) == 16
    assert rows["checksum"].tolist() == ledger.tables[0].checksum.tolist()
    ledger.forget(0, 3)
    assert ledger.recorded(0, (2, 3, 5))["state"].tolist() == [STORED, LOST, STORED]


@settings(deadline=None, max_examples=60)
@given(
    states=st.lists(st.sampled_from([STORED, EMPTY, LOST]), min_size=32, max_size=32),
    workers=st.integers(1, 40),
    most=st.integers(1, 9),
)
def test_tasks_cover_a_stage_once_and_take_about_as_long(
    plan: Plan, states: list[int], workers: int, most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isochunk.engine.audit.AUDIT_VOXELS", most * 32**3 + 5)
        patch.setattr("isochunk.engine.audit.TASK_BLOCKS", 11)
        table = Recorded(states)
        tasks = list(audit_tasks(plan, table, 0, workers))
    assert list(itertools.chain.from_iterable(t.blocks for t in tasks)) == list(range(32))
    for task in tasks:
        assert 1 <= len(task.blocks) <= 11
        stored = [states[i] == STORED for i in task.blocks]
        limit = min(most, math.ceil(32 / (8 * workers)))
        assert sum(stored) <= limit
        # Few tasks: each ends at 11 blocks, at the end, or where as many are read as may be.
        assert len(task.blocks) == 11 or task.blocks.stop == 32 or sum(stored) == limit


class Recorded(Ledger):
    """A ledger of one stage in given states."""

    def __init__(self, states: list[int]) -> None:
        state = np.array(states)
        self.tables = [Table(state != LOST, state == EMPTY, np.zeros(len(state), np.uint32))]


def test_tasks_are_made_as_they_are_asked_for(plan: Plan, ledger: Ledger) -> None:
    tasks = audit_tasks(plan, ledger, 0, 1)
    first = next(tasks)
    ledger.tables[0].done[first.blocks.stop :] = False
    assert len(next(tasks).blocks) > len(first.blocks), "blocks that are not done cost nothing"


def test_a_task_carries_five_bytes_a_block(ledger: Ledger) -> None:
    task = audit_task(ledger, BlockTask(0, range(32)))
    assert len(task.recorded) == 5 * 32 == RECORDED.itemsize * 32
    assert len(pickle.dumps(task)) < 5 * 32 + 200
    assert 5 * TASK_BLOCKS < 6_000


def test_memory_decides_how_many_blocks_are_read_together(plan: Plan) -> None:
    assert readers(plan, None) == READERS
    assert readers(plan, PROCESS_BYTES) == 1
    assert readers(plan, PROCESS_BYTES + 3 * 2 * 32**3) == 3
    assert readers(plan, PROCESS_BYTES + 100 * 2 * 32**3) == READERS


def test_too_many_objects_in_a_block_of_background(written: str, ledger: Ledger) -> None:
    """Only those that are too many are named: that the others are absent is right."""
    empty = np.flatnonzero(ledger.tables[0].empty)
    extra = Path(written) / "10_10_10" / "0-16_112-128_0-16"
    coarse = Path(written) / "20_20_20" / "16-32_48-64_0-16"
    assert len(empty) == 16
    try:
        for file in (extra, coarse):
            assert not file.exists()
            file.write_bytes(noise((16, 16, 16)).tobytes())
        audited = isochunk.audit(written)
    finally:
        extra.unlink()
        coarse.unlink()
    assert {(h.object, h.kind) for h in audited.holes} == {
        (f"{f.parent.name}/{f.name}", "corrupt") for f in (extra, coarse)
    }
    assert {h.block for h in audited.holes if h.stage == 0} <= set(empty.tolist())
    assert isochunk.audit(written).complete


def test_zeros_that_are_stored_are_background(written: str) -> None:
    extra = Path(written) / "10_10_10" / "0-16_112-128_0-16"
    try:
        extra.write_bytes(bytes(16**3))
        assert isochunk.audit(written).complete
        extra.write_bytes(bytes(100))
        (hole,) = isochunk.audit(written).holes
    finally:
        extra.unlink()
    assert (hole.object, hole.kind) == ("10_10_10/0-16_112-128_0-16", "corrupt")
    assert "do not decode" in hole.reason


def test_a_record_of_background_that_is_not_that_of_zeros(written: str, ledger: Ledger) -> None:
    """The state alone proves nothing: the checksum is compared, too."""
    index = int(np.flatnonzero(ledger.tables[0].empty)[0])
    ledger.tables[0].checksum[index] += 1
    assert {hole.block for hole in audit_with(written, ledger)} == {index}


def audit_with(target: str, ledger: Ledger) -> list[Hole]:
    """Audit the first stage against a ledger."""
    found = open_written_target(target)
    auditor = open_auditor(found.plan, found.store.url, found.store.access)
    rows = ledger.recorded(0, range(found.plan.block_count(0)))
    blocks = (found.plan.block(0, i) for i in range(len(rows)))
    return [
        hole for block, row in zip(blocks, rows, strict=True) for hole in auditor.block(block, row)
    ]


def test_a_block_that_never_came_back_proves_nothing() -> None:
    tally = Tally(3, lambda _: None)
    tally.take(Audited(2, 2))
    with pytest.raises(ClusterError, match=r"2 of 3 blocks came back.*audit again"):
        tally.report(8)
    tally.take(Audited(1, 1))
    assert tally.report(8).complete


def test_who_watches_is_told_how_far_it_is(written: str) -> None:
    seen: list[AuditProgress] = []
    report = isochunk.audit(written, None, seen.append)
    assert report.complete
    total = isochunk.status(written)["blocks"]["total"]
    assert [p.read for p in seen] == sorted(p.read for p in seen)
    assert seen[-1] == replace(seen[-1], total=total, read=total, holes=0)
    assert 0 < seen[0].read < total
    assert seen[0].left_s == pytest.approx((total - seen[0].read) / seen[0].blocks_per_s)
    assert seen[-1].left_s == 0
    assert AuditProgress(4).left_s is None


def test_lines_in_a_log_and_a_bar_on_a_terminal(
    written: str,
    run: Command,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "isochunk.cli.progress"):
        run("audit", written)
        assert caplog.text == "", "no line before ten seconds are over"
        monkeypatch.setattr("isochunk.cli.progress.LINE_S", 0.0)
        run("audit", written)
    total = isochunk.status(written)["blocks"]["total"]
    lines = [record.getMessage() for record in caplog.records]
    assert lines[-1].startswith(f"{total} of {total} blocks read, ")
    assert lines[-1].endswith(" blocks/s, 0 holes")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    _, err = run.text("audit", written)
    assert "100%" in err
    assert re.search(rf"{total} of {total} blocks read, \S+ blocks/s, 0\s+holes", err)
