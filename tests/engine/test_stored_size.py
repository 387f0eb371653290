"""How much a target takes, as a plan assumes it, a calibration measures it, and a run stores it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs import noise, stored_objects, write_source
from plans import plan, volume

import isochunk
from isochunk.api.jobs import calibrate
from isochunk.engine.cost import Calibration, estimate, month_of, read_prices
from isochunk.planning.plan import Plan
from isochunk.planning.sentences import planned
from isochunk.storage.keys import object_keys

SMALL = {"chunk": "16,16,16", "shard": "none", "block": "32,32,32"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoding": "gzip", "shard": "32,32,32", "levels": 2},
        {"encoding": "raw", "shard": "32,32,32", "levels": 2, "dtype": "uint16"},
        {"format": "ome-zarr", "levels": 1},
        {"format": "ome-zarr", "encoding": "zstd:15", "shard": "32,32,32", "levels": 2},
    ],
    ids=lambda o: "-".join(map(str, o.values())) or "png",
)
def test_calibration_measures_what_a_run_stores(tmp_path: Path, options: dict) -> None:
    source = write_source(f"file://{tmp_path}/in", noise((32, 128, 96)))
    made = isochunk.plan(
        isochunk.Job(source=source, target=f"{tmp_path}/out", model="cubic", **{**SMALL, **options})
    )
    measured = calibrate(made, 1000)
    assert isochunk.run(made).complete
    stage = made.stages[0].writes
    voxel_bytes = sum(made.target.levels[n].box.size for n in stage) * made.target.itemsize
    objects = {k for n in stage for k in object_keys(made.target, n, made.target.levels[n].box)}
    stored = sum(len(v) for k, v in stored_objects(made.target.url).items() if k in objects)
    assert measured.encoded_share == stored / voxel_bytes
    assert stored != voxel_bytes
    bill = estimate(made, measured, read_prices())
    assert bill.stored.quantity * 2**30 == pytest.approx(
        made.bytes_written() * stored / voxel_bytes
    )


def bucket_plan(url: str, encoding: str | None = None, box: str = "0:64,0:64,0:64") -> Plan:
    made = plan(volume(box, "8,8,8"), "identity", format="ome-zarr", encoding=encoding, levels=1)
    return replace(made, target=replace(made.target, url=url))


def test_a_month_of_storage_follows_the_encoding() -> None:
    prices, said = read_prices(), {}
    for encoding in ("raw", "zstd", "zstd:9", "zstd:22", "blosc-zstd", "blosc-zstd:9"):
        said[encoding] = month_of(bucket_plan("gs://abc/out", encoding), prices)["cost"]
    assert said["raw"] == pytest.approx(64**3 / 2**30 * prices.gs.gib_month, rel=1e-5)
    assert sorted(said.values(), reverse=True) == list(said.values()), "more levels, less room"
    assert month_of(bucket_plan("file:///out"), prices)["cost"] == 0


def test_a_plan_says_what_a_month_of_storage_costs() -> None:
    made, prices = bucket_plan("s3://abc/out", box="0:8000,0:10000,0:10000"), read_prices()

    def said(**found: Any) -> list[str]:
        return [s.said for s in planned({**made.summary(), **found}) if s.said.startswith("about")]

    assert said() == ["about 688 GB as blosc-zstd, as EM has it"]
    month = month_of(made, prices)
    assert said(storage_month=month) == [
        "about 688 GB as blosc-zstd, as EM has it: 14.74 USD a month at prices of 2026-06"
    ]
    measured = Calibration(1, 8, 8, 4, 1, 1, 1.0, 1.0, 1.0, 1.0, 0.5)
    cost = estimate(made, measured, prices).summary()
    assert said(storage_month=month, cost=cost) == [
        "about 200 GB as blosc-zstd, as measured: 4.28 USD a month at prices of 2026-06"
    ]
