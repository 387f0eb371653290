"""Which worker gets which block: of few blocks, each as many; a worker that joins gets some."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from dataclasses import replace
from pathlib import Path

import clusters
import pytest
from clusters import local_cluster
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from jobs import noise, write_source

import isochunk
from isochunk.cluster.placement import IN_FLIGHT_PER_WORKER, Placement
from isochunk.cluster.roster import known_workers
from isochunk.engine.report import Report
from isochunk.planning.plan import Plan

MODEL = '''
import time
import torch

class Slow(torch.nn.Module):
    """Repeats sections four times; a block and its halo take their time."""

    factor = (4, 1, 1)
    halo = (1, 1, 1)

    def forward(self, x):
        if bool((x == x).all()) and tuple(x.shape[2:]) == (10, 34, 34):  # which cannot be traced
            time.sleep({seconds})
        return x.repeat_interleave(4, dim=2)

def make():
    return Slow()
'''

BLOCKS = {"chunk": (16, 16, 16), "shard": (32, 32, 32), "block": (32, 32, 32)}


def slow_plan(folder: Path, blocks: int, seconds: float) -> Plan:
    """Plan so many blocks, each of which takes its time."""
    source = write_source(f"file://{folder}/in", noise((8, 32, 32 * blocks)))
    model = folder / "slow.py"
    model.write_text(MODEL.format(seconds=seconds))
    job = isochunk.Job(
        source=source,
        target=f"{folder}/out",
        model=f"{model}:make",
        trust=True,
        levels=1,
        **BLOCKS,
    )
    plan = replace(isochunk.plan(job), tile=BLOCKS["block"])
    assert plan.total_blocks == blocks
    return plan


def blocks_run(client: Client) -> list[int]:
    """Return how many blocks each worker has stored, as its metrics say."""
    found = []
    for worker in known_workers(client).values():
        url = f"http://127.0.0.1:{worker['services']['dashboard']}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            page = answer.read().decode()
        pattern = r'^isochunk_blocks_total\{job="[^"]*",kind="stored"\} (\S+)$'
        found.append(sum(int(float(n)) for n in re.findall(pattern, page, re.MULTILINE)))
    return sorted(found)


@pytest.mark.parametrize(("blocks", "shares"), [(4, [2, 2]), (5, [2, 3])])
def test_few_blocks_are_shared_evenly(
    client: Client, tmp_path: Path, blocks: int, shares: list[int]
) -> None:
    ran: list[list[int]] = []

    def look(report: Report) -> None:
        if report.complete and not ran:
            ran.append(blocks_run(client))

    assert isochunk.run(slow_plan(tmp_path, blocks, 0.2), client, look).complete
    assert ran == [shares]


@pytest.mark.slow
def test_a_worker_that_joins_gets_blocks(tmp_path: Path) -> None:
    ran: list[list[int]] = []
    grown: list[Report] = []
    with local_cluster(1) as client:

        def grow(report: Report) -> None:
            if report.done and not grown:
                grown.append(report)
                client.cluster.scale(2)
                client.wait_for_workers(2, timeout=120)
            if report.complete and not ran:
                ran.append(blocks_run(client))

        assert isochunk.run(slow_plan(tmp_path, 16, 0.5), client, grow).complete
    ((first, second),) = ran
    assert first + second == 16
    assert first > 0


def test_tasks_go_to_the_worker_that_has_least() -> None:
    placement = Placement(["a", "b"])
    for number in range(2 * IN_FLIGHT_PER_WORKER):
        worker = placement.next_worker()
        assert worker is not None
        placement.put(f"{number}", worker)
    assert Counter(placement.at.values()) == dict.fromkeys("ab", IN_FLIGHT_PER_WORKER)
    assert placement.next_worker() is None
    placement.remove("1")
    assert placement.next_worker() == "b"
    placement.remove("1")  # known to be gone
    assert placement.load == {"a": 2, "b": 1}


def test_what_a_lost_worker_had_counts_where_it_went() -> None:
    placement = Placement(["a", "b"])
    for key, worker in (("1", "a"), ("2", "b"), ("3", "b")):
        placement.put(key, worker)
    placement.withdraw(["b"])
    placement.remove("2")
    assert placement.next_worker() == "a"
    placement.update(["a", "c"], {"1": "a", "3": "a"})
    assert placement.load == {"a": 2, "c": 0}
    assert placement.next_worker() == "c"
    placement.update([], {})
    assert placement.next_worker() is None


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 4))
def test_loads_differ_by_no_more_than_what_ended(ended: list[int], workers: int) -> None:
    """Whatever ends in whatever order, no worker is given more while another has less."""
    placement = Placement(map(str, range(workers)))
    sent = 0
    for key in ended:
        while (worker := placement.next_worker()) is not None:
            assert placement.load[worker] == min(placement.load.values())
            placement.put(str(sent), worker)
            sent += 1
        placement.remove(str(key))
        assert sum(placement.load.values()) == len(placement.at)


@pytest.mark.slow
def test_tasks_whose_workers_are_all_gone_go_to_the_next(tmp_path: Path) -> None:
    """Dask alone would wait for a worker of the old address."""
    killed: list[Report] = []
    with (
        clusters.cluster(tmp_path) as running,
        Client(running.address, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=60)

        def kill_all(report: Report) -> None:
            if report.done and not killed:
                killed.append(report)
                for worker in [running.worker(number) for number in range(2)]:
                    worker.kill()

        assert isochunk.run(slow_plan(tmp_path, 8, 0.5), client, kill_all).complete
