"""Who fails, when and how often: every row ends with the bytes of an undisturbed run.

A model misbehaves in the one block whose source holds a voxel of 0, as often as it is told, and
notes every block it computes. The cluster is a scheduler and two workers with nannies, all of them
processes that can be killed.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import clusters
import pytest
from distributed import Client
from jobs import noise, start, tree_digest, wait_until, write_source

import isochunk
from isochunk.engine.events import read_events
from isochunk.engine.report import Report
from isochunk.engine.target import open_written_target
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import ClusterError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

MODEL = '''
import ctypes, os, signal, time, zlib
from pathlib import Path
import torch

FOLDER = Path({folder!r})

class Faulty(torch.nn.Module):
    """Repeats sections four times."""

    factor = (4, 1, 1)
    halo = (1, 1, 1)

    def forward(self, x):
        # Values come first, so that it cannot be traced, which would leave out all but its answer.
        marked = bool((x == 0).any()) and x.shape[2] <= 10 and x.shape[4] <= 34  # not a probe
        if tuple(x.shape[2:]) == (10, 34, 34):  # a block and its halo
            time.sleep(0.05)
            with open(FOLDER / "calls", "a") as log:
                log.write(f"{{zlib.crc32(x.numpy().tobytes())}} {{int(marked)}}\\n")
        if marked and bool(x.any()) and self.turn():
            return getattr(self, (FOLDER / "fault").read_text())(x)
        return x.repeat_interleave(4, dim=2)

    def turn(self):
        for number in range(int((FOLDER / "times").read_text())):
            try:
                os.close(os.open(FOLDER / f"turn-{{number}}", os.O_CREAT | os.O_EXCL))
                return True
            except FileExistsError:
                pass
        return False

    def die(self, x):
        os.kill(os.getpid(), signal.SIGKILL)

    def hang_with_gil(self, x):
        ctypes.PyDLL(None).sleep(600)

    def hang(self, x):
        time.sleep(600)

    def lag(self, x):
        time.sleep(8)
        return x.repeat_interleave(4, dim=2)

    def fail(self, x):
        raise ArithmeticError("on purpose")

    def answer_nan(self, x):
        return x.repeat_interleave(4, dim=2) * float("nan")

    def run_out_of_memory(self, x):
        raise MemoryError("on purpose")

def make():
    return Faulty()
'''

SHAPE = (16, 160, 160)
MARKED = (14, 70, 70)
"""Within one block, out of reach of other blocks' halos and of the boxes that compare seams."""
MARKED_BLOCK = 25
BLOCKS = {"chunk": (16, 16, 16), "shard": (32, 32, 32), "block": (32, 32, 32)}
FLAGS = [f"--{name}={','.join(map(str, value))}" for name, value in BLOCKS.items()]
ALWAYS = 1000
SHORT = Timeouts(backup_min_s=60, no_workers_s=60, no_scheduler_s=3, retry_pauses_s=(0.5, 0.5))


@dataclass
class Case:
    """A source, a model that misbehaves, and a target."""

    folder: Path
    source: str

    @property
    def target(self) -> Path:
        return self.folder / "out"

    def job(self, fault: str = "fail", times: int = 0) -> isochunk.Job:
        model = self.folder / "faulty.py"
        model.write_text(MODEL.format(folder=str(self.folder)))
        (self.folder / "fault").write_text(fault)
        (self.folder / "times").write_text(str(times))
        return isochunk.Job(
            source=self.source,
            target=str(self.target),
            model=f"{model}:make",
            trust=True,
            levels=1,
            **BLOCKS,
        )

    def command(self, scheduler: str) -> tuple[str, ...]:
        """The job as the program is told it."""
        job = self.job()
        return (
            "run",
            job.source,
            job.target,
            "--model",
            job.model,
            "--trust",
            "--levels=1",
            *FLAGS,
            "--scheduler",
            scheduler,
        )

    def calls(self) -> Counter[str]:
        """How often each block ran, by what it read, since the last time."""
        log = self.folder / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return Counter(lines)

    def events(self) -> list[dict[str, Any]]:
        return list(read_events(open_written_target(str(self.target)).store))

    def named(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events() if e["event"] == event]


@dataclass(frozen=True)
class Good:
    """A run that nothing happened to."""

    digest: dict[str, str]
    calls: Counter[str]
    seconds: float


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    voxels = noise(SHAPE)
    voxels[MARKED] = 0
    return write_source(f"file://{tmp_path_factory.mktemp('source')}/in", voxels)


@pytest.fixture
def case(tmp_path: Path, source: str) -> Case:
    return Case(tmp_path, source)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clusters.Cluster]:
    with clusters.cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def client(cluster: clusters.Cluster) -> Iterator[Client]:
    with Client(cluster.address, set_as_default=False) as client:
        cluster.wait_until_whole(client)
        yield client


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, source: str, cluster: clusters.Cluster) -> Good:
    folder = tmp_path_factory.mktemp("good")
    case = Case(folder, source)
    with Client(cluster.address, set_as_default=False) as client:
        cluster.wait_until_whole(client)
        begun = time.monotonic()
        assert isochunk.run(isochunk.plan(case.job()), client).complete
        seconds = time.monotonic() - begun
    calls = case.calls()
    (marked,) = (key for key in calls if key.endswith(" 1"))
    assert calls[marked] == 1
    return Good(tree_digest(folder / "out"), calls, seconds)


Row = Callable[..., None]


@pytest.fixture
def row(case: Case, good: Good, record: Row) -> Row:
    """Check the final state and add a row to the table of the page."""
    begun = time.monotonic()

    def check(fault: str, when: str, then: str, most: int) -> None:
        seconds = time.monotonic() - begun - good.seconds
        calls = case.calls()
        redone = calls - good.calls
        assert set(redone) <= set(good.calls)
        assert max(redone.values(), default=0) <= most, redone
        assert tree_digest(case.target) == good.digest
        assert isochunk.audit(str(case.target)).complete
        record(
            "Dask faults",
            fault=fault,
            when=when,
            what_happened=then,
            blocks_redone=redone.total(),
            identical=True,
            audit="complete",
            seconds_lost=max(0.0, seconds),
        )

    return check


def after(blocks: int, act: Callable[[], None]) -> Callable[[Report], None]:
    """Return a watch that acts once when so many blocks are done."""
    left = [act]

    def watch(report: Report) -> None:
        if report.done >= blocks and left:
            left.pop()()

    return watch


@pytest.mark.parametrize("blocks", [0, 25])
def test_kill_a_worker(
    case: Case, client: Client, cluster: clusters.Cluster, row: Row, blocks: int
) -> None:
    report = isochunk.run(
        isochunk.plan(case.job()), client, after(blocks, lambda: cluster.worker(0).kill()), SHORT
    )
    assert report.complete
    row("kill -9 of a worker", f"{blocks} of 50 blocks done", "its nanny starts another", 1)


def test_kill_a_worker_again_and_again(
    case: Case, client: Client, cluster: clusters.Cluster, row: Row
) -> None:
    killed = 0

    def kill_often(report: Report) -> None:
        nonlocal killed
        if killed < 4 and report.done >= 8 * (killed + 1):
            with suppress(StopIteration):  # its nanny has not started another yet
                cluster.worker(killed % 2).kill()
                killed += 1

    assert isochunk.run(isochunk.plan(case.job()), client, kill_often, SHORT).complete
    assert killed == 4
    row("kill -9 of a worker, 4 times", "every 8 blocks", "its nanny starts another", 5)


def test_kill_a_nanny(case: Case, row: Row, tmp_path: Path) -> None:
    with (
        clusters.cluster(tmp_path) as running,
        Client(running.address, set_as_default=False) as client,
    ):
        running.wait_until_whole(client)
        kill = running.nannies[0].kill
        report = isochunk.run(isochunk.plan(case.job()), client, after(10, kill), SHORT)
    assert report.complete
    assert {e["workers"] for e in case.named("workers")} == {1}
    row("kill -9 of a nanny", "10 of 50 blocks done", "the other worker does the rest", 1)


def test_kill_the_scheduler(case: Case, good: Good, row: Row, tmp_path: Path) -> None:
    plan = isochunk.plan(case.job())
    with (
        clusters.cluster(tmp_path) as running,
        Client(running.address, set_as_default=False) as client,
    ):
        running.wait_until_whole(client)
        with pytest.raises(ClusterError, match=r"scheduler is gone.*same command again"):
            isochunk.run(plan, client, after(20, running.scheduler.kill), SHORT)
    recorded = open_written_target(str(case.target)).ledger.count()
    assert 20 <= recorded < 50
    assert "scheduler is gone" in case.named("stopped")[-1]["error"]
    with (
        clusters.cluster(tmp_path) as running,
        Client(running.address, set_as_default=False) as client,
    ):
        report = isochunk.run(plan, client, timeouts=SHORT)
    assert report.complete
    assert report.resumed == recorded
    row("kill -9 of the scheduler", "20 of 50 blocks done", "ends with 1; started again", 1)


def test_kill_the_client(case: Case, cluster: clusters.Cluster, row: Row) -> None:
    command = case.command(cluster.address)
    process = start(*command)
    wait_until(lambda: len(list((case.target / "10_10_10").glob("*.shard"))) >= 20)
    process.kill()
    process.communicate()
    recorded = open_written_target(str(case.target)).ledger.count()
    again = start(*command)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err.decode()
    assert case.named("started")[-1]["resumed"] == recorded
    row("kill -9 of the client", "20 of 50 blocks stored", "the same command resumes", 1)


def test_two_submitters(case: Case, cluster: clusters.Cluster, row: Row) -> None:
    command = case.command(cluster.address)
    processes = [start(*command) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
    row("two submitters at once", "from the start", "both finish", 2)


FAULTS = {
    "a worker dies of a block, once": ("die", 1, "another worker runs it", 2),
    "a worker hangs holding the GIL, once": ("hang_with_gil", 1, "restarted when silent", 2),
    "a worker hangs without the GIL, once": ("hang", 1, "a speculative copy finishes", 2),
    "a straggler": ("lag", 1, "a speculative copy finishes first", 2),
    "a straggler, and so is its copy": ("lag", 2, "the first answer counts", 2),
    "out of memory in a block, once": ("run_out_of_memory", 1, "its tile is halved", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass(case: Case, client: Client, row: Row, fault: str) -> None:
    method, times, then, most = FAULTS[fault]
    sooner = replace(SHORT, backup_min_s=3)
    report = isochunk.run(isochunk.plan(case.job(method, times)), client, None, sooner)
    assert report.complete
    assert report.errors == ()
    assert report.done == 50
    if method in ("hang", "lag"):
        assert any(MARKED_BLOCK in late["blocks"] for late in case.named("straggler"))
    if method == "run_out_of_memory":
        assert report.halvings == 1
    row(fault, "the marked block", then, most)


LASTING = {
    "a block kills every worker": ("die", r"quarantined.*KilledWorker", "quarantined"),
    "a block hangs every worker": ("hang", r"quarantined.*no answer for", "quarantined"),
    "an exception in a block": ("fail", r"ArithmeticError: on purpose", "fails by name"),
    "NaN in a block": ("answer_nan", r"PredictionError.*NaN", "fails by name"),
    "out of memory in a block": ("run_out_of_memory", r"memory", "fails by name"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_faults_that_stay(case: Case, client: Client, good: Good, row: Row, fault: str) -> None:
    method, says, then = LASTING[fault]
    plan = isochunk.plan(case.job(method, ALWAYS))
    assert plan.block(0, MARKED_BLOCK).write.lo == (32, 64, 64)
    report = isochunk.run(plan, client, None, replace(SHORT, hang_min_s=15))
    assert (report.done, report.failed) == (49, 1)
    (error,) = report.errors
    assert error.startswith(f"block {MARKED_BLOCK} 32:64,64:96,64:96: ")
    assert re.search(says, error), error
    holes = isochunk.audit(str(case.target)).holes
    assert {(h.stage, h.block) for h in holes} == {(0, MARKED_BLOCK)}
    if then == "quarantined":
        (verdict,) = case.named("quarantined")
        assert verdict["blocks"] == [MARKED_BLOCK]
    mended = isochunk.run(isochunk.plan(case.job(method, 0)), client, None, SHORT)
    assert mended.complete
    assert mended.resumed == 49
    row(fault, "the marked block, always", f"{then}, the rest is done; mended later", 12)
