"""What the framework itself costs: null blocks, the ledger."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import write_source

import isochunk
from isochunk.engine.ledger import Ledger
from isochunk.planning.block import BlockReport, Reports
from isochunk.storage.open import open_store


@pytest.fixture
def null_plan(tmp_path: Path) -> Any:
    """1,024 blocks of background through the identity."""
    source = write_source(f"file://{tmp_path}/in", np.zeros((16, 512, 512), np.uint8), "8,8,8")
    return isochunk.plan(
        isochunk.Job(
            source=source,
            target=f"{tmp_path}/out",
            model="identity",
            levels=1,
            chunk=(16, 16, 16),
            shard="none",
            block=(16, 16, 16),
            overwrite=True,
        )
    )


def test_null_blocks_in_one_process(benchmark: Any, null_plan: Any) -> None:
    def delete() -> tuple[tuple[Any], dict[str, Any]]:
        shutil.rmtree(null_plan.target.url.removeprefix("file://"), ignore_errors=True)
        return (null_plan,), {}

    report = benchmark.pedantic(isochunk.run, setup=delete, rounds=3)
    assert report.complete
    assert report.resumed == 0
    benchmark.extra_info["blocks"] = report.total


def test_ledger_of_100_000_blocks(benchmark: Any, null_plan: Any, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/ledger")
    ledger = Ledger(store, null_plan)
    blocks = (BlockReport(0, i % null_plan.block_count(0), checksum=i) for i in range(100_000))
    reports = Reports.gather(0, blocks)

    def record() -> None:
        ledger.add(reports)
        ledger.flush()

    benchmark(record)
    assert Ledger(store, null_plan).count() == null_plan.block_count(0)
