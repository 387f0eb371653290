"""The ledger: what is recorded survives any order of writes, folds and deaths."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plans import plan, volume

from isochunk.core.job import Job
from isochunk.engine.ledger import (
    FOLD_SEGMENTS,
    JOB_KEY,
    LEDGER_PREFIX,
    Ledger,
    check_same_job,
    read_job,
    write_job,
)
from isochunk.errors import CorruptDataError, TargetConflictError
from isochunk.planning.block import BlockReport, Reports
from isochunk.planning.plan import Plan
from isochunk.storage.objects import Store
from isochunk.storage.open import open_store

BLOCKS = {"chunk": "16,32,32", "shard": "none", "block": "16,32,32"}


@pytest.fixture
def made() -> Plan:
    """A plan of 1,024 small blocks."""
    return plan(volume("0:4,0:256,0:256"), "nearest", **BLOCKS)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An object store in a folder."""
    return open_store(f"file://{tmp_path}/out")


def done(*indices: int, stage: int = 0, checksum: int | None = None) -> Reports:
    """Blocks that are done, one in five of them empty; the checksum is the number by default."""
    return Reports.gather(
        stage,
        (
            BlockReport(stage, i, checksum=i if checksum is None else checksum, empty=i % 5 == 0)
            for i in indices
        ),
    )


def test_what_was_flushed_is_read_back(made: Plan, store: Store) -> None:
    ledger = Ledger(store, made)
    count = made.block_count(0)
    ledger.add(done(*range(0, count, 2)))
    ledger.add(done(0, stage=1))
    ledger.flush()
    again = Ledger(store, made)
    assert list(again.missing(0)) == list(range(1, count, 2))
    assert again.count() == ledger.count() == -(-count // 2) + 1
    assert again.tables[0].checksum[4] == 4
    assert bool(again.tables[0].empty[0])


def test_what_was_not_flushed_is_lost_and_nothing_else(made: Plan, store: Store) -> None:
    ledger = Ledger(store, made)
    ledger.add(done(1))
    ledger.flush()
    ledger.add(done(2))
    assert list(Ledger(store, made).missing(0))[:2] == [0, 2]


def test_many_segments_are_folded_into_few(made: Plan, store: Store) -> None:
    ledger = Ledger(store, made)
    for i in range(FOLD_SEGMENTS + 10):
        ledger.add(done(i % made.block_count(0), checksum=i))
        ledger.flush()
    assert len(store.keys(LEDGER_PREFIX)) == 11
    before = [t.checksum.tolist() for t in ledger.tables]
    ledger.fold()
    assert len(store.keys(LEDGER_PREFIX)) == 1
    again = Ledger(store, made)
    assert [t.checksum.tolist() for t in again.tables] == before


def test_folding_ones_own_records_reads_nothing(
    made: Plan, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fold of a large job must not hold the submitter up."""
    ledger, other = Ledger(store, made), Ledger(store, made)
    read: list[str] = []
    get_all = store.get_all
    monkeypatch.setattr(store, "get_all", lambda keys: (read.extend(keys), get_all(keys))[1])
    for i in range(5):
        ledger.add(done(i))
        ledger.flush()
        ledger.fold()
    assert read == []
    other.add(done(9))
    other.flush()
    ledger.fold()
    assert len(read) == len(set(read)) == 2
    assert np.flatnonzero(ledger.tables[0].done).tolist() == [0, 1, 2, 3, 4, 9]


def test_two_submitters_that_fold_at_once_lose_nothing(made: Plan, store: Store) -> None:
    count = made.block_count(0)

    def submit(part: range) -> None:
        ledger = Ledger(store, made)
        for i in part:
            ledger.add(done(i))
            ledger.flush()
            if i % 7 == 0:
                ledger.fold()

    threads = [threading.Thread(target=submit, args=(range(k, count, 2),)) for k in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Ledger(store, made)
    assert list(again.missing(0)) == []
    assert again.tables[0].checksum.tolist() == list(range(count))


def test_a_damaged_segment_is_named(made: Plan, store: Store) -> None:
    ledger = Ledger(store, made)
    ledger.add(done(1))
    ledger.flush()
    (name,) = store.keys(LEDGER_PREFIX)
    data = bytearray(store.get(name) or b"")
    data[3] ^= 1
    store.put(name, bytes(data))
    with pytest.raises(CorruptDataError, match=name):
        Ledger(store, made)


def test_job_round_trip_and_conflict(made: Plan, store: Store) -> None:
    write_job(store, made, "1.2.3")
    assert read_job(store) == made
    check_same_job(store, made, replace(made, depth=1, job=Job(source="x", target="y", model="z")))
    other = plan(volume("0:4,0:256,0:256"), "linear", **BLOCKS)
    wanted = r"model.arch was nearest and is now linear.*--overwrite"
    with pytest.raises(TargetConflictError, match=wanted):
        check_same_job(store, made, other)
    assert json.loads(store.get(JOB_KEY) or b"")["isochunk"] == "1.2.3"


def test_nothing_done_stores_nothing(store: Store, made: Plan) -> None:
    """A run asks twice a second, whatever the blocks take."""
    ledger = Ledger(store, made)
    ledger.add(done())
    ledger.flush()
    assert store.keys() == []
