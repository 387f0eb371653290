"""What 10^15 voxels cost before the first of them is read: 7.5 million blocks of 512^3."""

from __future__ import annotations

import itertools
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from isochunk.core.geometry import Box, Spacing
from isochunk.core.job import Job
from isochunk.core.spec import Intensity, LevelSpec, VolumeSpec
from isochunk.engine.audit import audit_task, audit_tasks
from isochunk.engine.ledger import Ledger
from isochunk.models.interpolation import interpolation_spec
from isochunk.planning.make import Inputs, make_plan
from isochunk.planning.plan import Plan
from isochunk.storage.open import open_store

BLOCKS = 49 * 391 * 391
WORKERS = 1000


def petavoxel() -> Plan:
    """Plan 25,000 x 200,000 x 200,000 target voxels, four of a source voxel along z."""
    shape = (6_250, 200_000, 200_000)
    level = LevelSpec("0", Box.from_shape(shape), Spacing.parse("32,8,8"), (16, 64, 64), None)
    zero = (Fraction(0), Fraction(0), Fraction(0))
    source = VolumeSpec("gs://b/em/", "precomputed", "uint8", "raw", zero, (level,))
    job = Job(source=source.url, target="gs://b/out", model="cubic", spacing="8,8,8")
    found = Inputs(source, interpolation_spec("cubic"), Intensity(), "gs://b/out/", "precomputed")
    return make_plan(job, found)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return petavoxel()


def test_plan(benchmark: Any) -> None:
    made = benchmark(petavoxel)
    assert made.target.box.size == 10**15
    assert made.block_count(0) == BLOCKS


def test_summary(benchmark: Any, plan: Plan) -> None:
    summary = benchmark(plan.summary)
    assert summary["blocks"] > BLOCKS
    assert summary["bytes_written"] > 1.1e15


def test_first_tasks(benchmark: Any, plan: Plan) -> None:
    """As many as 1,000 workers take at once, of blocks that none has looked at before."""

    def first() -> int:
        tasks = plan.tasks(0, iter(range(BLOCKS)), WORKERS)
        return sum(len(task.blocks) for task in itertools.islice(tasks, 3 * WORKERS))

    assert benchmark(first) >= 3 * WORKERS


def test_last_block(benchmark: Any, plan: Plan) -> None:
    """Any block by its number."""
    assert benchmark(plan.block, 0, BLOCKS - 1).write.size > 0


@pytest.fixture
def recorded(plan: Plan, tmp_path: Path) -> Ledger:
    """A ledger in which all blocks but one in a thousand are done."""
    ledger = Ledger(open_store(f"file://{tmp_path}"), plan)
    ledger.tables[0].done[:] = True
    ledger.tables[0].done[999::1000] = False
    ledger.forget(0, 999)
    ledger.flush()
    ledger.forget(0, 1999)
    return ledger


def test_open_a_new_ledger(benchmark: Any, plan: Plan, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}")
    ledger = benchmark(Ledger, store, plan)
    assert next(ledger.missing(0)) == 0


def test_find_the_first_missing_block(benchmark: Any, recorded: Ledger) -> None:
    assert benchmark(lambda: next(recorded.missing(0))) == 999


def test_cut_what_is_missing_into_tasks(benchmark: Any, plan: Plan, recorded: Ledger) -> None:
    def tasks() -> int:
        return sum(len(task.blocks) for task in plan.tasks(0, recorded.missing(0), WORKERS))

    assert benchmark(tasks) == BLOCKS // 1000


def test_fold(benchmark: Any, recorded: Ledger) -> None:
    """All records become one table, as happens every few minutes."""

    def fold() -> None:
        recorded.forget(0, 999)
        recorded.fold()

    benchmark.pedantic(fold, rounds=3)
    (name,) = recorded.store.keys()
    assert len(recorded.store.get(name) or b"") < 33_000_000


def test_take_up_a_folded_ledger(benchmark: Any, plan: Plan, recorded: Ledger) -> None:
    recorded.fold()
    ledger = benchmark.pedantic(Ledger, (recorded.store, plan), rounds=3)
    assert ledger.count() == recorded.count()


def test_first_tasks_of_an_audit(benchmark: Any, plan: Plan, recorded: Ledger) -> None:
    """As many as 1,000 workers take at once, each with what is recorded of its blocks."""

    def first() -> int:
        tasks = itertools.islice(audit_tasks(plan, recorded, 0, WORKERS), 3 * WORKERS)
        return sum(len(audit_task(recorded, task).recorded) for task in tasks)

    assert benchmark(first) >= 3 * WORKERS * 5


def test_memory_of_the_tasks_of_an_audit(plan: Plan, recorded: Ledger) -> None:
    """The same for the first thousand tasks and for the first twenty thousand."""

    def peak(count: int) -> int:
        tracemalloc.start()
        for task in itertools.islice(audit_tasks(plan, recorded, 0, WORKERS), count):
            audit_task(recorded, task)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    # Threads that other tests left behind take a little too; 19,000 tasks kept would be 95 MB.
    assert peak(20_000) < peak(1_000) + (1 << 20)
