"""Storage faults as a table: what goes wrong, when and how often, on real S3 and GCS servers.

Each row is a whole small job from bucket to bucket through a proxy that disturbs it. The output is
compared with that of a run that nothing happened to, and audited. Rows go to docs/reliability.md.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import servers
from jobs import command, noise, stored_digests, tree_digest, write_source
from servers import Faults, ObjectServer, Rule

import isochunk
from isochunk.engine.target import open_written_target
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import AccessError, StorageError

SHAPE, CHUNK = (8, 128, 128), (8, 32, 32)
READS = "/in/0/"
"""Part of the path of every source chunk."""
SHARD = "/out/10_10_10/2.shard"
"""One block of the target."""
pytestmark = pytest.mark.slow  # the table as a whole: rows take 2 to 30 s

ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "TENSORSTORE_GCS_HTTP_URL"}
WRITES = ("PUT", "POST")
HASTY = Timeouts(record_s=2.0, record_refused_s=1.0, retry_pauses_s=())


def job(source: str, target: str, timeout_s: float = 120) -> isochunk.Job:
    return isochunk.Job(
        source=source,
        target=target,
        model="cubic",
        chunk=(16, 16, 16),
        shard=(32, 32, 32),
        block=(32, 32, 32),
        timeout_s=timeout_s,
    )


OPTIONS = ("--model=cubic", "--chunk=16,16,16", "--shard=32,32,32", "--block=32,32,32")


@dataclass
class Site:
    """A source and a target in buckets, behind a proxy that disturbs."""

    kind: str
    """s3 or gs."""
    bucket: str
    """Where this test stores."""
    upstream: str
    """The server itself."""
    proxied: str
    """The proxy."""
    faults: Faults
    """What the proxy does."""
    monkeypatch: pytest.MonkeyPatch = field(repr=False)

    @property
    def source(self) -> str:
        return f"{self.bucket}/in"

    @property
    def target(self) -> str:
        return f"{self.bucket}/out"

    def through(self, url: str) -> None:
        """Reach storage through the proxy or directly."""
        self.monkeypatch.setenv(ENDPOINTS[self.kind], url)

    def run(self, timeout_s: float = 120, timeouts: Timeouts | None = None) -> Any:
        plan = isochunk.plan(job(self.source, self.target, timeout_s))
        return isochunk.run(plan, timeouts=timeouts or Timeouts())


@contextmanager
def opened(kind: str, server: ObjectServer, bucket: str) -> Iterator[Site]:
    """Write the source and put a proxy in front."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = f"{kind}://{servers.BUCKET}/{bucket}"
        write_source(f"{url}/in", noise(SHAPE), chunk=CHUNK)
        faults = Faults()
        with servers.proxy(server.endpoint_url, faults) as proxied:
            site = Site(kind, url, server.endpoint_url, proxied, faults, monkeypatch)
            site.through(proxied)
            yield site


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the output of a run that nothing happened to, in files."""
    folder = tmp_path_factory.mktemp("undisturbed")
    source = write_source(f"file://{folder}/in", noise(SHAPE), chunk=CHUNK)
    assert isochunk.run(isochunk.plan(job(source, f"{folder}/out"))).complete
    return tree_digest(folder / "out")


@pytest.fixture(scope="module")
def usual_s(
    s3_server: ObjectServer, gcs_server: ObjectServer, undisturbed: dict[str, str]
) -> dict[str, float]:
    """Seconds that the job takes on each server where nothing goes wrong."""
    seconds = {}
    for kind, server in (("s3", s3_server), ("gs", gcs_server)):
        with opened(kind, server, f"usual-{time.time_ns()}") as site:
            start = time.perf_counter()
            assert site.run().complete
            seconds[kind] = time.perf_counter() - start
            assert stored_digests(site.target) == undisturbed
    return seconds


@pytest.fixture
def site(
    request: pytest.FixtureRequest, s3_server: ObjectServer, gcs_server: ObjectServer
) -> Iterator[Site]:
    """A place on the server that the test's parameter names."""
    server = {"s3": s3_server, "gs": gcs_server}[request.param]
    with opened(request.param, server, f"faults-{time.time_ns()}") as opened_site:
        yield opened_site


@dataclass
class Row:
    """A row of the table in the making."""

    site: Site
    record: Callable[..., None]
    undisturbed: dict[str, str]
    usual_s: dict[str, float]
    start: float = field(default_factory=time.perf_counter)

    def close(self, fault: str, how_often: str, blocks_redone: int = 0) -> None:
        """Check what is stored, without faults, and write the row."""
        lost = time.perf_counter() - self.start - self.usual_s[self.site.kind]
        struck = len(self.site.faults.struck)
        self.site.through(self.site.upstream)
        audit = isochunk.audit(self.site.target)
        assert audit.complete
        identical = stored_digests(self.site.target) == self.undisturbed
        assert identical
        self.record(
            "Storage faults",
            fault=fault,
            server={"s3": "S3", "gs": "GCS"}[self.site.kind],
            how_often=how_often,
            requests_retried=struck,
            blocks_redone=blocks_redone,
            identical=identical,
            audit="complete",
            seconds_lost=max(0.0, round(lost, 1)),
        )


@pytest.fixture
def row(
    site: Site, record: Callable[..., None], undisturbed: dict[str, str], usual_s: dict[str, float]
) -> Row:
    return Row(site, record, undisturbed, usual_s)


def seldom(fault: servers.Fault, **more: Any) -> list[Rule]:
    return [Rule(fault=fault, rate=0.1, **more)]


PASSING = {
    "429, burst": ([Rule(fault=429, after=20, seconds=10)], "all requests for 10 s"),
    "503, burst": ([Rule(fault=503, after=20, seconds=20)], "all requests for 20 s"),
    "500": (seldom(500), "10% of requests"),
    "connection reset within the answer": (seldom("reset"), "10% of requests"),
    "connection reset before the answer": (seldom("refuse"), "10% of requests"),
    "body cut, connection closed": (seldom("cut"), "10% of requests"),
    "body cut, length adapted": (
        [Rule(fault="truncate", part=READS, count=3)],
        "3 reads of the source",
    ),
    "write refused with 503": ([Rule(fault=503, methods=WRITES, after=3, count=4)], "4 writes"),
    "write done, answer lost": ([Rule(fault="lost", methods=WRITES, after=3, count=4)], "4 writes"),
}
"""Faults that storage gets over by itself: what goes wrong, and how often."""

CASES = [
    (kind, name)
    for kind, other in (("s3", "429, burst"), ("gs", "503, burst"))
    for name in PASSING
    if name != other
]
"""Every fault on both servers, but one burst on each."""


@pytest.mark.parametrize(("site", "name"), CASES, indirect=["site"])
def test_storage_gets_over_it(row: Row, name: str) -> None:
    """No block runs twice, and none fails."""
    row.site.faults.rules, how_often = PASSING[name]
    report = row.site.run()
    assert report.complete
    assert report.errors == ()
    assert (report.retries, report.failed) == (0, 0)
    assert row.site.faults.struck
    row.close(name, how_often)


@pytest.mark.parametrize("site", ENDPOINTS, indirect=True)
def test_latency(row: Row) -> None:
    row.site.faults.latency_s = 0.1
    report = row.site.run()
    assert report.complete
    assert report.retries == 0
    row.close("latency of 100 ms", "all requests")


@pytest.mark.parametrize("site", ["s3"], indirect=True)
def test_answers_that_come_after_30_s(row: Row) -> None:
    row.site.faults.stall_s = 30
    row.site.faults.rules = [Rule(fault="stall", part=READS, after=2, count=3)]
    report = row.site.run(timeout_s=300)
    assert report.complete
    assert report.retries == 0
    assert len(row.site.faults.struck) == 3
    row.close("stall of 30 s", "3 reads of the source")


@pytest.mark.parametrize("site", ["gs"], indirect=True)
def test_answers_that_never_come(row: Row) -> None:
    """A silent request is dropped after a quarter of the time allowed and made again."""
    # This process has told tensorstore once already, by its environment.
    row.site.monkeypatch.delenv("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", raising=False)
    row.site.faults.stall_s = 120
    row.site.faults.rules = [
        Rule(fault="stall", part=READS, count=2),
        Rule(fault="stall", methods=WRITES, count=1),
    ]
    report = command("run", row.site.source, row.site.target, *OPTIONS, "--timeout=24")
    assert report["complete"]
    assert report["retries"] == 0
    assert len(row.site.faults.struck) == 3
    row.close("silence without end", "2 reads, 1 write")


@pytest.mark.parametrize("site", ENDPOINTS, indirect=True)
def test_a_block_that_cannot_be_written(row: Row) -> None:
    """Exactly that block fails, by name; the same command finishes once the cause is gone."""
    row.site.faults.rules = [Rule(fault=500, part=SHARD, methods=WRITES)]
    report = row.site.run(timeout_s=3, timeouts=HASTY)
    assert not report.complete
    assert len(report.errors) == 1
    assert f"writing box 0:32,32:64,0:32 of level 0 of {row.site.target}: " in report.errors[0]
    waiting = report.failed - 1  # of coarse levels
    assert report.done + 1 + waiting == report.total
    row.site.faults.rules = []
    again = row.site.run()
    assert again.complete
    assert again.resumed == report.done
    row.close("one block's write fails for good", "every try", again.done - again.resumed)


@pytest.mark.parametrize("site", ENDPOINTS, indirect=True)
def test_the_record_cannot_be_written_for_a_while(row: Row) -> None:
    """Finished blocks are recorded late, not again."""
    row.site.faults.rules = [Rule(fault=503, part=".isochunk/ledger", methods=WRITES, seconds=4)]
    report = row.site.run(timeout_s=2)
    assert report.complete
    assert report.retries == 0
    assert row.site.faults.struck
    row.close("ledger write refused with 503", "all for 4 s")


@pytest.mark.parametrize("site", ENDPOINTS, indirect=True)
def test_the_record_cannot_be_written_at_all(row: Row) -> None:
    """The run stops; what it had not recorded is computed again."""
    row.site.faults.rules = [Rule(fault=503, part=".isochunk/ledger", methods=WRITES)]
    with pytest.raises(StorageError, match=r"writing '\.isochunk/ledger/.*after retries"):
        row.site.run(timeout_s=2, timeouts=HASTY)
    row.site.faults.rules = []
    again = row.site.run()
    assert again.complete
    row.close("ledger write refused for good", "every try", again.done - again.resumed)


@pytest.mark.parametrize("site", ENDPOINTS, indirect=True)
def test_credentials_expire_and_are_renewed(row: Row) -> None:
    """The run ends by itself and says so; with new credentials the same command goes on."""
    row.site.faults.rules = [Rule(fault="expired", after=45)]
    arguments = ("run", row.site.source, row.site.target, *OPTIONS)
    begun = time.perf_counter()
    said = command(*arguments, code=(1, 2))
    assert time.perf_counter() - begun < 60
    assert "access refused" in str(said.get("error", said.get("errors")))
    done = len({path for path in row.site.faults.stored if "/out/10_10_10/" in path})
    row.site.faults.rules = []
    report = command(*arguments)
    assert report["complete"]
    blocks = report["blocks"]
    row.close("credentials expire", "all requests from one on", max(0, done - blocks["resumed"]))


@pytest.mark.parametrize("site", ENDPOINTS, indirect=True)
def test_a_target_that_is_read_only(row: Row) -> None:
    """Nothing is read of the source before it is known; nothing is left behind."""
    row.site.faults.rules = [Rule(fault=403, methods=WRITES)]
    with pytest.raises(AccessError, match=r"writing '.*' of .*/out: access refused"):
        row.site.run()
    assert not row.site.faults.count("GET", READS)
    row.site.through(row.site.upstream)
    assert stored_digests(row.site.target) == {}
    row.site.through(row.site.proxied)
    row.site.faults.rules = []
    assert row.site.run().complete
    row.close("read-only target", "every write")


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """Make a folder that holds only so many bytes; yields what makes it larger.

    A tmpfs where this user may mount one; elsewhere a limit on the size of each file.
    """
    folder.mkdir()
    mount = shutil.which("mount") or "mount"
    mounted = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode == 0:
        try:
            yield (
                lambda: (
                    subprocess.run(
                        [mount, "-o", f"remount,size={64 * size}", str(folder)], check=True
                    )
                    and None
                )
            )
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (24 * 1024, hard))  # less than a shard
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(
    tmp_path: Path, record: Callable[..., None], undisturbed: dict[str, str]
) -> None:
    """Blocks fail by name or the run stops; once there is space the same command finishes."""
    source, target = write_source(f"file://{tmp_path}/in", noise(SHAPE), chunk=CHUNK), "disk/out"
    plan = isochunk.plan(job(source, f"{tmp_path}/{target}"))
    with small_disk(tmp_path / "disk", 400_000) as enlarge:
        start = time.perf_counter()
        said, done = full(plan)
        assert "No space left" in said or "File too large" in said
        assert f"of file://{tmp_path}/disk/out" in said
        enlarge()
        ledger = open_written_target(f"{tmp_path}/{target}").ledger
        holes = isochunk.audit(f"{tmp_path}/{target}")
        recorded = ledger.count()
        assert recorded <= done
        assert {h.kind for h in holes.holes} == {"missing"}
        assert len({(h.stage, h.block) for h in holes.holes}) == plan.total_blocks - recorded
        again = isochunk.run(plan)
        assert again.complete
        assert again.resumed == recorded
        seconds = time.perf_counter() - start
        assert isochunk.audit(f"{tmp_path}/{target}").complete
        identical = tree_digest(tmp_path / target) == undisturbed
        assert identical
    record(
        "Storage faults",
        fault="full disk",
        server="files",
        how_often="until there is space",
        requests_retried=0,
        blocks_redone=again.done - recorded,
        identical=identical,
        audit="complete",
        seconds_lost=round(seconds, 1),
    )


def full(plan: Any) -> tuple[str, int]:
    """Run a plan on a disk that fills; return what is said, and the blocks done at most."""
    try:
        report = isochunk.run(plan, timeouts=HASTY)
    except StorageError as error:
        return str(error), plan.total_blocks
    assert not report.complete
    assert report.errors
    return "\n".join(report.errors), report.done
