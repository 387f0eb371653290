"""Audit and repair by the workers of a cluster: what they find, and what becomes of those that die.

Targets lie on an S3 server behind a proxy that counts, delays and disturbs requests; the cluster is
a scheduler and two workers with nannies, all of them processes that can be killed.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import clusters
import numpy as np
import pytest
import servers
from distributed import Client
from jobs import command, noise, stored_objects, write_source
from servers import Faults, ObjectServer

import isochunk
from isochunk.cluster.spec import ClusterSpec
from isochunk.cluster.start import client_of
from isochunk.engine.audit import AuditProgress, AuditReport
from isochunk.engine.pipeline import block_levels
from isochunk.engine.target import open_written_target
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import ClusterError
from isochunk.storage.keys import object_keys
from isochunk.storage.open import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SHAPE = (16, 128, 160)
CHUNKS = {"chunk": "16,16,16", "shard": "none", "block": "32,32,32", "levels": 4}
SHARDS = {**CHUNKS, "shard": "32,32,32"}
SHORT = Timeouts(backup_min_s=60, no_workers_s=60, no_scheduler_s=3, retry_pauses_s=(0.5, 0.5))


@dataclass
class Site:
    """A cluster, and a bucket behind a proxy."""

    bucket: str
    endpoint_url: str
    faults: Faults
    cluster: clusters.Cluster
    client: Client
    folder: Path
    targets: int = 0

    def calm(self) -> None:
        """End all faults, and forget what was asked."""
        self.faults.always.clear()
        self.faults.first.clear()
        self.faults.rules.clear()
        self.faults.requests.clear()
        self.faults.latency_s = 0.0

    def target(self, **layout: Any) -> str:
        """Write a target of 41 blocks, eight of them background, at four levels."""
        voxels = noise(SHAPE)
        voxels[:, :, 120:] = 0
        self.targets += 1
        source = write_source(f"file://{self.folder}/in-{self.targets}", voxels)
        target = f"{self.bucket}/out-{self.targets}"
        job = isochunk.Job(source=source, target=target, model="nearest", **layout)
        report = isochunk.run(isochunk.plan(job))
        assert report.complete
        assert (report.empty, report.total) == (8, 41)
        self.faults.requests.clear()
        return target

    def audit(self, target: str, timeouts: Timeouts = SHORT, **more: Any) -> AuditReport:
        """Audit on the cluster."""
        return isochunk.audit(target, client=self.client, timeouts=timeouts, **more)

    def asked(self, target: str) -> Counter[str]:
        """How often each object was asked for, records left out."""
        name = target.rpartition("/")[2]
        paths = (unquote(path).partition(f"/{name}/")[2] for _, path in self.faults.requests)
        return Counter(p for p in paths if p and p != "info" and ".isochunk" not in p)


@pytest.fixture(scope="module")
def whole_site(s3_server: ObjectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, faults = tmp_path_factory.mktemp("site"), Faults()
    with ExitStack() as closing:
        url = closing.enter_context(servers.proxy(s3_server.endpoint_url, faults))
        patch = closing.enter_context(pytest.MonkeyPatch.context())
        for name, value in {**s3_server.environment, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)
        cluster = closing.enter_context(clusters.cluster(folder))
        client = closing.enter_context(Client(cluster.address, set_as_default=False))
        client.wait_for_workers(2, timeout=60)
        yield Site(f"s3://{servers.BUCKET}/audit", url, faults, cluster, client, folder)


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    whole_site.client.wait_for_workers(2, timeout=60)
    yield whole_site
    whole_site.calm()


@dataclass(frozen=True)
class Damage:
    """What was done to a target, by the keys of objects."""

    gone: str
    noisy: str
    coarse: str
    extra: str

    @property
    def missing(self) -> set[str]:
        return {self.gone, self.coarse}

    @property
    def corrupt(self) -> set[str]:
        return {self.noisy, self.extra}


def damage(target: str) -> Damage:
    """Delete an object, overwrite one with noise, delete a coarse one, store one too many."""
    store = open_store(target)
    keys = store.keys("10_10_10/")
    found = open_written_target(target)
    empty = int(np.flatnonzero(found.ledger.tables[0].empty)[0])
    extra = next(object_keys(found.plan.target, 0, found.plan.block(0, empty).write))
    done = Damage(keys[2], keys[9], store.keys("20_20_20/")[-1], extra)
    size = len(store.get(done.noisy) or b"")
    store.delete([done.gone, done.coarse])
    for number, key in enumerate((done.noisy, done.extra)):
        store.put(key, noise((size, 1, 1), seed=number).tobytes())
    return done


def what(report: AuditReport) -> list[tuple[object, ...]]:
    """Return the holes without their reasons: a server that ignores ranges changes the words."""
    return [(h.stage, h.block, h.level, h.box, h.object, h.kind) for h in report.holes]


def test_two_workers_find_what_one_process_finds(site: Site) -> None:
    """Exactly what was done to the target; both take part, and nothing is written."""
    target = site.target(**SHARDS)
    assert site.audit(target).complete
    done = damage(target)
    before = stored_objects(target)
    site.faults.latency_s = 0.02  # so that both are seen at work
    at_work: set[str] = set()

    def watch(progress: AuditProgress) -> None:
        at_work.update(worker for worker, keys in site.client.processing().items() if keys)
        assert (progress.total, progress.read <= 41) == (41, True)

    found = site.audit(target, watch=watch)
    assert len(at_work) == 2
    site.faults.latency_s = 0.0
    here = isochunk.audit(target)
    assert found.expected == here.expected
    assert what(found) == what(here)
    assert {hole.object for hole in found.holes if hole.kind == "missing"} == done.missing
    assert {hole.object for hole in found.holes if hole.kind == "corrupt"} == done.corrupt
    assert len(found.holes) == 4
    assert stored_objects(target) == before


def block_of(target: str, key: str) -> int:
    """Return the block of the first stage that writes an unsharded object."""
    plan = open_written_target(target).plan
    for index in range(plan.block_count(0)):
        for level, box in block_levels(plan, plan.block(0, index)):
            if key in object_keys(plan.target, level, box):
                return index
    raise AssertionError(key)


def test_every_object_is_asked_for_once(site: Site) -> None:
    """Those of background, which are not there, too."""
    target = site.target(**CHUNKS)
    report = site.audit(target)
    assert report.complete
    asked = site.asked(target)
    assert len(asked) == report.expected
    assert set(asked.values()) == {1}, asked.most_common(3)


def test_a_worker_that_is_killed(site: Site) -> None:
    target = site.target(**SHARDS)
    gone = open_store(target).keys("10_10_10/")[3]
    open_store(target).delete([gone])
    site.faults.latency_s = 0.05
    killed: list[int] = []

    def kill(progress: AuditProgress) -> None:
        if progress.read >= 8 and not killed:
            busy = [bool(keys) for keys in site.client.processing().values()]
            victim = site.cluster.worker(0)
            if all(busy):
                victim.kill()
                killed.append(victim.pid)

    found = site.audit(target, watch=kill)
    assert killed
    assert [(hole.object, hole.kind) for hole in found.holes] == [(gone, "missing")]


def test_a_block_that_hangs_every_worker(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """It is named as not read, never as complete; all else is proved, and nothing deleted."""
    target = site.target(**CHUNKS)
    key = open_store(target).keys("10_10_10/")[5]
    site.faults.always[key] = "stall"
    with caplog.at_level(logging.WARNING, "isochunk"):
        found = site.audit(target, replace(SHORT, hang_min_s=4))
    assert "did not come back and will run again, each alone: no answer for" in caplog.text
    assert not found.complete
    assert {hole.kind for hole in found.holes} == {"unread"}
    assert {hole.block for hole in found.holes} == {block_of(target, key)}
    assert key in {hole.object for hole in found.holes}
    index = block_of(target, key)
    assert found.holes[0].reason.startswith(f"block {index} ")
    assert "not read: it did not come back even when it ran alone: no answer" in (
        found.holes[0].reason
    )
    assert len(found.summary()["corrupt"]) == len(found.holes)
    site.calm()
    site.client.wait_for_workers(2, timeout=60)
    assert site.audit(target).complete


def test_a_scheduler_that_is_gone(site: Site, tmp_path: Path) -> None:
    target = site.target(**SHARDS)
    site.faults.latency_s = 0.05
    with (
        clusters.cluster(tmp_path) as running,
        Client(running.address, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=60)

        def kill(progress: AuditProgress) -> None:
            if progress.read:
                running.scheduler.kill()

        with pytest.raises(ClusterError, match=r"scheduler is gone; an audit keeps nothing"):
            isochunk.audit(target, watch=kill, client=client, timeouts=SHORT)


def test_storage_that_fails_for_a_while(site: Site) -> None:
    """On the cluster and here: what could not be read is read again at the end of its stage."""
    target = site.target(**CHUNKS)
    key = open_store(target).keys("10_10_10/")[7]

    class Mended(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "could not be read and are tried again" in record.getMessage():
                site.faults.always.clear()

    log, mended = logging.getLogger("isochunk.engine.audit"), Mended()
    for client in (site.client, None):
        site.faults.always[key] = 500
        found = isochunk.audit(target, client=client, changes={"timeout_s": 2}, timeouts=SHORT)
        assert {(hole.object, hole.kind) for hole in found.holes} == {(key, "unread")}
        assert found.summary()["corrupt"][0]["object"] == key
        log.addHandler(mended)
        found = isochunk.audit(target, client=client, changes={"timeout_s": 2}, timeouts=SHORT)
        log.removeHandler(mended)
        assert not site.faults.always
        assert found.complete


def test_repair_computes_exactly_the_holes_on_the_same_cluster(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def count(spec: ClusterSpec) -> AbstractContextManager[Client]:
        started.append(spec.path)
        return client_of(spec)

    monkeypatch.setattr("isochunk.cluster.start.client_of", count)
    target = site.target(**CHUNKS)
    good = stored_objects(target)
    done = damage(target)
    holes = isochunk.audit(target).holes
    blocks = {(hole.stage, hole.block) for hole in holes}
    site.faults.stored.clear()
    seen: list[AuditProgress] = []
    found, report = isochunk.repair(target, {"workers": 2}, watch_audit=seen.append)
    assert started == ["distributed.LocalCluster"]
    assert found.holes == holes
    assert seen[-1].read == seen[-1].total == report.total
    assert seen[-1].holes == len(holes)
    assert report.complete
    assert report.done - report.resumed == len(blocks) == 4
    again = stored_objects(target)
    assert {k: v for k, v in again.items() if ".isochunk" not in k} == {
        k: v for k, v in good.items() if ".isochunk" not in k
    }
    assert done.extra not in again
    written = {path.rpartition("/out-")[2].partition("/")[2] for path in site.faults.stored}
    voxels = {key for key in written if not key.startswith(".isochunk")}
    assert {block_of(target, key) for key in voxels} == {
        block_of(target, key) for key in (done.gone, done.noisy, done.coarse)
    }


def test_the_command_line_on_a_scheduler_and_on_workers_of_its_own(site: Site) -> None:
    target = site.target(**CHUNKS)
    damage(target)
    here = isochunk.audit(target).summary()
    for where in (f"--scheduler={site.cluster.address}", "--workers=2"):
        assert command("audit", target, where, code=1) == here
    mended = command("repair", target, f"--scheduler={site.cluster.address}")
    assert mended["found"] == json.loads(json.dumps(here))
    assert mended["blocks"]["done"] - mended["blocks"]["resumed"] == 4
    assert mended["complete"]
    said = command("audit", target, "--scheduler=tcp://127.0.0.1:1", code=2)["error"]
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in said
