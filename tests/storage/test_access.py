"""Limits on how storage is used: pauses, requests in flight, slow starts."""

from __future__ import annotations

import ast
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st
from jobs import noise, write_source

import isochunk
from isochunk.errors import UsageError
from isochunk.storage.access import FIRST_PAUSE_S, LONGEST_PAUSE_S, Access, retries_within
from isochunk.storage.open import open_store, open_volume

SHAPE, CHUNK = (16, 64, 64), (16, 16, 16)
ENDPOINT = {"s3": "AWS_ENDPOINT_URL", "gs": "TENSORSTORE_GCS_HTTP_URL"}


@given(st.floats(min_value=1, max_value=1e5))
def test_pauses_leave_time_for_requests(timeout_s: float) -> None:
    """tensorstore doubles its pauses and adds up to the first one to each."""
    pauses = [
        min(FIRST_PAUSE_S * (2 ** min(n, 9) + 1), LONGEST_PAUSE_S)
        for n in range(retries_within(timeout_s))
    ]
    rounding = 1e-6 * timeout_s
    assert sum(pauses) <= 0.75 * timeout_s + rounding
    assert sum(pauses) + LONGEST_PAUSE_S > 0.75 * timeout_s - rounding
    assert len(pauses) >= 1


def test_nothing_waits_without_a_time_out() -> None:
    """Every result that storage is asked for comes with the time that it may take."""
    waits = 0
    for file in (Path(isochunk.__file__).parent / "storage").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name, given = node.func.attr, {k.arg for k in node.keywords}
                assert name != "result" or "timeout" in given, f"{file.name}:{node.lineno}"
                waits += name == "result"
    assert waits == 2, "tensorstore's and cloud-volume's"


def test_a_burst_of_a_minute_is_waited_out_by_default() -> None:
    shortest = [min(FIRST_PAUSE_S * 2 ** min(n, 9), 0.75 * LONGEST_PAUSE_S) for n in range(99)]
    assert sum(shortest[: retries_within(Access().timeout_s)]) > 60


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_requests_are_capped_over_all_volumes(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Three volumes that are read at once share the cap of their process."""
    bucket = request.getfixturevalue({"s3": "s3", "gs": "gcs"}[kind])
    server = request.getfixturevalue({"s3": "s3_server", "gs": "gcs_server"}[kind])
    voxels = noise(SHAPE)
    write_source(f"{bucket}/v", voxels, chunk=CHUNK)
    for cap in (3, 7):
        faults = servers.Faults(latency_s=0.05)
        with servers.proxy(server.endpoint_url, faults) as url:
            monkeypatch.setenv(ENDPOINT[kind], url)
            access = Access(requests=cap, cache_bytes=0)
            volumes = [open_volume(f"{bucket}/v", access) for _ in range(3)]
            with ThreadPoolExecutor(3) as pool:
                for read in pool.map(lambda v: v.read(v.spec.box), volumes):
                    np.testing.assert_array_equal(read, voxels)
            assert faults.count("GET", "/0/") + faults.count("GET", "%2F0%2F") >= 3 * 16
            assert faults.peak == cap


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_slow_start_holds_requests_back(request: pytest.FixtureRequest, kind: str) -> None:
    bucket = request.getfixturevalue({"s3": "s3", "gs": "gcs"}[kind])
    keys = [f"k{n}" for n in range(16)]
    store = open_store(f"{bucket}/slow", Access(slow_start=8.0, timeout_s=60))
    start = time.monotonic()
    for key in keys[:8]:
        store.put(key, b"v")
    assert store.get_all(keys) == [b"v"] * 8 + [None] * 8
    # 8 writes take a second, in which 8 reads are saved up; 8 more reads take another.
    assert time.monotonic() - start > 1.5


def test_a_job_says_how_storage_is_used(tmp_path) -> None:
    source = write_source(f"file://{tmp_path}/in", noise((8, 32, 32)))
    fields = {"source": source, "target": f"{tmp_path}/out", "model": "cubic"}
    usual = isochunk.plan(isochunk.Job(**fields))
    job = isochunk.Job(**fields, timeout_s=7, requests=5, slow_start="12.5")
    assert Access.for_job(job) == Access(timeout_s=7, requests=5, slow_start=12.5)
    assert isochunk.plan(job).identity() == usual.identity()
    for wrong in ({"requests": 0}, {"requests": "many"}, {"slow_start": 0}, {"slow_start": "x"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            isochunk.Job(**fields, **wrong)
