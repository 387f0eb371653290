"""What a job costs: requests against a real S3 server, blocks that really run, and the sums."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import command, noise, slow_model, write_source

import isochunk
from isochunk.api.jobs import calibrate
from isochunk.core.geometry import Box, Spacing
from isochunk.core.job import Job
from isochunk.core.spec import Intensity, LevelSpec, VolumeSpec
from isochunk.engine.calibrate import spread_blocks
from isochunk.engine.cost import (
    PRICES,
    Calibration,
    Machine,
    Prices,
    Service,
    estimate,
    gets,
    read_prices,
    traffic,
)
from isochunk.engine.local import LocalBackend
from isochunk.engine.opened import open_job
from isochunk.engine.pipeline import Pipeline
from isochunk.engine.prepare import prepare_target
from isochunk.errors import IsochunkError, UsageError
from isochunk.models.interpolation import interpolation_spec
from isochunk.planning.layout import grid_shape
from isochunk.planning.make import Inputs, make_plan
from isochunk.planning.plan import Plan
from isochunk.storage import target as storage_target
from isochunk.storage.access import Access
from isochunk.storage.keys import object_keys
from isochunk.storage.open import create_volume, open_target, open_volume

SMALL = {"chunk": "16,16,16", "shard": "none", "block": "32,32,32"}
FLAGS = [f"--{name}={value}" for name, value in SMALL.items()]


def job(tmp_path: Path, model: str = "cubic", **changes: Any) -> Job:
    """A job of 4 x 4 x 3 blocks of files."""
    source = write_source(f"file://{tmp_path}/in", noise((32, 128, 96)))
    return Job(source=source, target=f"{tmp_path}/out", model=model, **{**SMALL, **changes})


# Requests


def run_stages(plan: Plan, cache_bytes: int) -> None:
    """Run every block of a plan once, and nothing else that reads."""
    plan = replace(plan, depth=1)  # tensorstore reads a chunk once that two ask for at a time
    access = replace(Access.for_job(plan.job), cache_bytes=cache_bytes)
    opened = replace(open_job(plan), source=open_volume(plan.source.url, access))
    with Pipeline(opened) as pipeline:
        backend = LocalBackend(pipeline)
        for stage in range(len(plan.stages)):
            blocks = iter(range(plan.block_count(stage)))
            for reports in backend.map(plan.tasks(stage, blocks, 1), lambda *_: None):
                assert all(r.error is None for r in reports)


def target_key(path: str) -> str:
    """Return the key below the target that a request is about; empty if it is of the source."""
    return path.split("?")[0].partition("/out/")[2]


@pytest.mark.parametrize(
    "options",
    [
        {"model": "cubic"},
        {"model": "linear", "box": "3:19,0:48,5:60", "block": "32,64,32"},
        {"model": "identity", "encoding": "jpeg"},
        {"model": "cubic", "shard": "32,32,32"},
        {"model": "nearest", "format": "ome-zarr", "shard": "32,32,32"},
    ],
    ids=lambda o: "-".join(o.values()),
)
def test_requests_of_a_plan_are_those_of_its_run(
    s3: str, s3_server: servers.ObjectServer, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    write_source(f"{s3}/in", noise((20, 64, 70)), chunk=(8, 32, 32))
    faults = servers.Faults()
    with servers.proxy(s3_server.endpoint_url, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        plan = isochunk.plan(Job(source=f"{s3}/in", target=f"{s3}/out", **{**SMALL, **options}))
        prepare_target(plan)
        faults.requests.clear()
        faults.stored.clear()
        run_stages(plan, cache_bytes=0)
        counted = traffic(plan)
        assert counted.source_gets == faults.count("GET", "/in/0/")
        objects = {
            key
            for number, level in enumerate(plan.target.levels)
            for key in object_keys(plan.target, number, level.box)
        }
        assert Counter(map(target_key, faults.stored)) == dict.fromkeys(objects, 1)
        assert counted.puts == len(faults.stored)
        asked = [target_key(path) for method, path in faults.requests if method == "GET"]
        read_back = sum(key in objects for key in asked)
        if "shard" in options:  # rclone ignores ranges, so whole shards are read instead
            assert counted.target_gets >= read_back
        else:
            assert counted.target_gets == read_back
        faults.requests.clear()
        run_stages(plan, cache_bytes=1 << 27)
        assert 0 < faults.count("GET", "/in/0/") <= counted.source_gets


@pytest.mark.parametrize("format_", ["precomputed", "zarr3"])
def test_shards_are_counted_as_they_are_read(tmp_path: Path, format_: str) -> None:
    shape = (64, 64, 80)
    level = LevelSpec("s0", Box.from_shape(shape), Spacing.parse("8,8,8"), (16,) * 3, (32,) * 3)
    spec = VolumeSpec(f"file://{tmp_path}/v", format_, "uint8", "raw", (Fraction(0),) * 3, (level,))
    create_volume(spec).write(level.box, noise(shape))
    faults = servers.Faults()
    with servers.file_server(tmp_path, faults) as url:
        for text in ("0:64,0:64,0:80", "0:32,32:64,0:64", "16:48,16:48,16:48", "0:40,0:32,0:80"):
            box = Box.parse(text)
            volume = open_volume(f"{url}/v", Access.for_job(Job(source="a", target="b", model="c")))
            volume.read(Box.from_shape((1, 1, 1), (63, 63, 79)))  # what is read once
            faults.requests.clear()
            volume.read(box)
            spans = [[(lo, hi)] for lo, hi in zip(box.lo, box.hi, strict=True)]
            counted, real = gets(level, format_, spans), faults.count("GET", "/v/s0/")
            whole = all(
                lo % 32 == 0 and (hi % 32 == 0 or (hi == n and format_ == "precomputed"))
                for lo, hi, n in zip(box.lo, box.hi, shape, strict=True)
            )
            assert counted == real if whole else counted >= real, text


spans_of = st.lists(
    st.tuples(st.integers(-3, 30), st.integers(1, 12)).map(lambda s: (s[0], s[0] + s[1])),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(
    spans=st.tuples(spans_of, spans_of, spans_of),
    many=st.tuples(*[st.integers(1, 3)] * 3),
    index=st.sampled_from([("precomputed", 2), ("zarr3", 1), ("zarr3", 0)]),
)
def test_gets_are_the_sum_over_boxes_and_objects(spans, many, index) -> None:
    format_, extra = index
    chunk, end = (4, 3, 5), (31, 32, 33)
    shard = tuple(c * m for c, m in zip(chunk, many, strict=True)) if extra else None
    level = LevelSpec("s0", Box.from_shape(end), Spacing.parse("8,8,8"), chunk, shard)
    expected = 0
    for ranges in itertools.product(*spans):
        box = Box(*zip(*ranges, strict=True)) & level.box
        chunks = itertools.product(
            *(range(a // c * c, b, c) for a, b, c in zip(box.lo, box.hi, chunk, strict=True))
        )
        touched = Counter(
            tuple(v // s for v, s in zip(first, level.object_shape, strict=True))
            for first in chunks
        )
        for place, inside in touched.items():
            lo = tuple(p * s for p, s in zip(place, level.object_shape, strict=True))
            whole = Box.from_shape(level.object_shape, lo)
            if format_ == "precomputed":
                whole &= level.box
            expected += 1 if whole in box or not extra else extra + inside
    assert gets(level, format_, spans) == expected


# Blocks


@settings(deadline=None)
@given(cells=st.tuples(*[st.integers(1, 6)] * 3), blocks=st.integers(1, 60))
def test_blocks_are_spread(cells, blocks) -> None:
    shape = tuple(n * 8 for n in cells)
    plan = plan_of(shape)
    chosen = spread_blocks(plan, blocks)
    assert len(set(chosen)) == len(chosen) == min(blocks, math.prod(cells))
    assert all(0 <= index < math.prod(cells) for index in chosen)


def plan_of(shape) -> Plan:
    """A plan of blocks of 8^3 without halo."""
    level = LevelSpec("0", Box.from_shape(shape), Spacing.parse("8,8,8"), (8, 8, 8), None)
    source = VolumeSpec("file:///in", "zarr3", "uint8", "raw", (Fraction(0),) * 3, (level,))
    wanted = Job(
        source="in",
        target="out",
        model="identity",
        chunk="8,8,8",
        block="8,8,8",
        shard="none",
        levels=1,
    )
    found = Inputs(source, interpolation_spec("identity"), Intensity(), "file:///out", "zarr3")
    return make_plan(wanted, found)


def test_few_blocks_reach_all_octants() -> None:
    plan = plan_of((80, 80, 80))
    middles = [np.add(b.lo, 4) for b in (plan.block(0, i).write for i in spread_blocks(plan, 24))]
    assert len({tuple(m > 40) for m in middles}) == 8
    assert tuple(middles[0]) == (44, 44, 44)


def test_calibration_runs_blocks_and_writes_nothing(tmp_path: Path) -> None:
    plan = isochunk.plan(job(tmp_path, slow_model(tmp_path, 0.02), trust=True))
    measured = calibrate(plan, 5)
    assert measured.blocks == 5
    assert measured.voxels == measured.read_voxels == measured.stored_voxels == 5 * 32**3
    assert measured.workers == 1
    assert measured.compute_s >= 5 * 0.02 <= measured.worker_s
    assert measured.read_s > 0 < measured.write_s
    assert not (tmp_path / "out").exists()
    everything = calibrate(plan, 1000)
    assert everything.blocks == plan.block_count(0)
    assert everything.voxels == plan.target.box.size


def test_calibration_on_a_cluster(client: Client, tmp_path: Path) -> None:
    plan = isochunk.plan(job(tmp_path))
    measured = calibrate(plan, 8, client)
    assert (measured.blocks, measured.workers) == (8, 2)
    assert measured.voxels == 8 * 32**3
    assert min(measured.read_s, measured.compute_s, measured.write_s) > 0
    assert measured.encoded_share > 0.5, "workers tell it"
    assert not (tmp_path / "out").exists()
    assert isochunk.run(plan, client).complete  # the trial left nothing behind on the workers


def test_background_is_counted_by_its_share(tmp_path: Path) -> None:
    """A quarter is outside the mask, and a quarter is inside but black."""
    voxels = noise((32, 128, 128))
    voxels[:, :64, 64:] = 0
    source = write_source(f"file://{tmp_path}/in", voxels)
    covered = np.ones((32, 128, 128), "uint8")
    covered[:, 64:, 64:] = 0
    mask = write_source(f"file://{tmp_path}/mask", covered)
    plan = isochunk.plan(
        Job(source=source, target=f"{tmp_path}/out", model="nearest", mask=mask, **SMALL)
    )
    measured = calibrate(plan, plan.block_count(0))
    assert measured.read_voxels / measured.voxels == 3 / 4
    assert measured.stored_voxels / measured.voxels == 1 / 2
    bill = estimate(plan, measured, read_prices())
    kept = plan.bytes_written() / 2 * measured.encoded_share
    assert bill.stored.quantity * 2**30 == pytest.approx(kept)
    few = calibrate(plan, 24)
    assert 0.5 < few.read_voxels / few.voxels < 0.95
    assert 0.3 < few.stored_voxels / few.voxels < 0.7


def test_a_block_that_fails_stops_the_calibration(tmp_path: Path) -> None:
    plan = isochunk.plan(job(tmp_path))
    next((tmp_path / "in" / "0").iterdir()).write_bytes(b"short")
    with pytest.raises(IsochunkError, match=r"calibration stopped: block \d+ .*CorruptDataError"):
        calibrate(plan, 48)
    with pytest.raises(UsageError, match="calibrate is 0; it must be at least 1"):
        calibrate(plan, 0)


@pytest.mark.parametrize(
    ("format_", "shard", "encoding"),
    [
        ("precomputed", None, "raw"),
        ("precomputed", (16, 16, 16), "jpeg"),
        ("zarr3", (16, 16, 16), "zstd"),
        ("zarr2", None, "blosc"),
    ],
)
def test_a_target_in_memory_keeps_its_last_boxes(format_, shard, encoding) -> None:
    key = "8_8_8" if format_ == "precomputed" else "s0"
    level = LevelSpec(key, Box.from_shape((640, 16, 16)), Spacing.parse("8,8,8"), (8,) * 3, shard)
    spec = VolumeSpec("memory://t", format_, "uint8", encoding, (Fraction(0),) * 3, (level,))
    volume, voxels = open_target(spec), np.full((16, 16, 16), 7, "uint8")
    for z in range(0, 640, 16):
        box = Box.from_shape((16, 16, 16), (z, 0, 0))
        volume.write(box, voxels)
        np.testing.assert_array_equal(volume.read(box), voxels)
    kept = [z for z in range(0, 640, 16) if volume.read(Box((z, 0, 0), (z + 16, 16, 16))).any()]
    assert kept == list(range(640 - 16 * storage_target.KEPT_BOXES, 640, 16))
    assert not open_target(spec).read(level.box).any(), "another target is another memory"


def test_memory_is_no_target_of_a_job(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would be gone with the process"):
        isochunk.plan(replace(job(tmp_path), target="memory://here"))


# Money

price = st.floats(0, 1e3)
services = st.builds(Service, price, price, price, price)
prices_lists = st.builds(
    lambda s3, gs, hour, workers: Prices(
        "USD", "now", "m", s3, gs, (Machine("m", hour, workers), Machine("other", 1e9, 1))
    ),
    services,
    services,
    price,
    st.integers(1, 8),
)
measurements = st.builds(
    lambda voxels, seconds, workers, depth, shares: Calibration(
        4, 4 * voxels, shares[0] * voxels, min(shares) * voxels, workers, depth, *seconds, 1.0
    ),
    st.integers(1, 1 << 30),
    st.tuples(*[st.floats(0.01, 1e4)] * 3),
    st.integers(1, 1000),
    st.integers(1, 4),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
)


@cache
def bucket_plan() -> Plan:
    plan = plan_of((64, 64, 64))
    return replace(
        plan,
        source=replace(plan.source, url="s3://abc/in"),
        target=replace(plan.target, url="gs://abc/out"),
    )


@settings(deadline=None)
@given(measured=measurements, prices=prices_lists)
def test_a_bill_is_the_sum_of_its_items(measured: Calibration, prices: Prices) -> None:
    plan = bucket_plan()
    bill = estimate(plan, measured, prices)
    assert bill.total == pytest.approx(
        sum(row.quantity / row.per * row.price for row in bill.items)
    )
    voxels = 64**3
    assert bill.worker_hours * 3600 * measured.voxels_per_s == pytest.approx(voxels)
    assert bill.wall_s * measured.workers == pytest.approx(bill.worker_hours * 3600)
    assert measured.compute_s <= measured.worker_s
    assert measured.worker_s <= measured.read_s + measured.compute_s + measured.write_s
    rows = {(row.item, row.unit): row for row in bill.items}
    share = measured.read_voxels / measured.voxels
    assert rows["m", "machine hours"].cost == pytest.approx(
        bill.worker_hours / prices.chosen().workers * prices.chosen().hour
    )
    assert rows["source", "GETs"].quantity == round(512 * share)
    assert rows["source", "GETs"].price == prices.s3.get_per_1000
    assert rows["target", "PUTs"].price == prices.gs.put_per_1000
    assert bill.stored.cost == pytest.approx(
        voxels
        * plan.encoded_share
        * measured.stored_voxels
        / measured.voxels
        / 2**30
        * prices.gs.gib_month
    )
    half = estimate(plan, replace(measured, encoded_share=plan.encoded_share / 2), prices)
    assert half.stored.cost == pytest.approx(bill.stored.cost / 2), "what is measured goes before"


@settings(deadline=None)
@given(measured=measurements, prices=prices_lists, factor=st.integers(2, 9))
def test_a_bill_follows_what_it_is_made_of(measured, prices, factor) -> None:
    plan = bucket_plan()
    once = estimate(plan, measured, prices)
    slower = replace(
        measured,
        read_s=measured.read_s * factor,
        compute_s=measured.compute_s * factor,
        write_s=measured.write_s * factor,
    )
    assert estimate(plan, slower, prices).worker_hours == pytest.approx(once.worker_hours * factor)
    more = estimate(plan, replace(measured, workers=measured.workers * factor), prices)
    assert more.wall_s == pytest.approx(once.wall_s / factor)
    assert more.worker_hours == once.worker_hours
    local = estimate(plan_of((64, 64, 64)), measured, prices)
    assert local.total == pytest.approx(local.items[0].cost), "files are not priced"


def test_the_shipped_prices_are_dated_examples_that_can_be_checked_by_hand() -> None:
    prices = read_prices()
    assert "EXAMPLES" in PRICES.read_text()
    assert prices.as_of
    measured = Calibration(2, 1 << 30, 1 << 30, 1 << 30, 4, 4, 10.0, 3600.0, 10.0, 1000.0)
    huge = bucket_plan()
    bill = estimate(
        huge, replace(measured, voxels=64**3, read_voxels=64**3, stored_voxels=64**3), prices
    )
    assert bill.worker_hours == 1
    assert bill.wall_s == 900
    assert bill.items[0].cost == prices.chosen().hour == 1.006
    assert bill.items[3].cost == pytest.approx(512 * 0.005 / 1000)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('currency = "USD"', "", r"Prices holds .*wanted the keys .*'currency'"),
        ('currency = "USD"', 'currency = "USD"\nmoney = 1', r"Prices holds .*'money'"),
        ("gib_month = 0.023", "gib_monht = 0.023", r"Prices.s3 holds .*'gib_monht'.*'gib_month'"),
        ("gib_month = 0.023", "gib_month = -1", r"gib_month is -1.0; a price must be 0 or more"),
        ("gib_month = 0.023", "gib_month = nan", r"gib_month is nan; a price must be"),
        ("gib_month = 0.023", 'gib_month = "2 ct"', r"Prices.s3.gib_month is '2 ct'; wanted float"),
        ("gib_month = 0.023", "gib_month = true", r"Prices.s3.gib_month is True; wanted float"),
        ("workers = 1", "workers = 0", r"workers of machine 'aws g5.* is 0; it must be at least 1"),
        ("workers = 1", "workers = true", r"workers is True; wanted int"),
        ('machine = "aws', 'machine = "my', r"machine is 'my g5.*choose one of aws g5"),
        ("[s3]", "[s3", r"is not TOML"),
    ],
)
def test_a_price_list_that_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = PRICES.read_text()
    assert old in text
    file = tmp_path / "mine.toml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=message) as caught:
        read_prices(str(file))
    assert str(file) in str(caught.value)
    with pytest.raises(UsageError, match=r"missing\.toml cannot be read"):
        read_prices(str(tmp_path / "missing.toml"))


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    wanted = job(tmp_path)
    mine = tmp_path / "mine.toml"
    table = PRICES.read_text().replace("hour = 1.006", "hour = 3600")
    mine.write_text(table)
    words = ("plan", wanted.source, wanted.target, "--model", "cubic", *FLAGS)
    plain = command(*words, "--prices", str(mine))
    assert not {"calibration", "cost"} & set(plain)
    told = command(*words, "--calibrate", "3", "--prices", str(mine), "--workers", "2")
    assert {k: v for k, v in told.items() if k not in ("calibration", "cost")} == plain
    assert not (tmp_path / "out").exists()
    found, cost = told["calibration"], told["cost"]
    assert (found["blocks"], found["workers"], found["written_to"]) == (3, 2, "memory")
    assert found["voxels_per_s"] == pytest.approx(2 * found["voxels_per_s_per_worker"], rel=1e-4)
    assert cost["total"] == pytest.approx(sum(row["cost"] for row in cost["rows"]), rel=1e-4)
    for row in cost["rows"] + cost["storage"]:
        expected = row["quantity"] / row["per"] * row["price"]
        assert row["cost"] == pytest.approx(expected, rel=1e-4)
    voxels = math.prod(plain["target"]["shape"])
    seconds = voxels / found["voxels_per_s_per_worker"]
    assert cost["wall_s"] == pytest.approx(seconds / 2, rel=1e-3)
    assert cost["total"] == pytest.approx(seconds, rel=1e-3), "3600 an hour is 1 a second"
    assert cost["prices_as_of"] == tomllib.loads(table)["as_of"]


def test_grids_of_spans_match_blocks(tmp_path: Path) -> None:
    """The plan's spans, which requests are counted from, are those of its blocks."""
    plan = isochunk.plan(job(tmp_path, box="1:30,7:100,0:96"))
    boxes = {plan.read_box(plan.block(0, i)) for i in range(plan.block_count(0))}
    spans = plan.source_intervals()
    assert boxes == {Box(*zip(*ranges, strict=True)) for ranges in itertools.product(*spans)}
    assert tuple(map(len, spans)) == grid_shape(plan.target.box.shape, plan.stages[0].block)
