"""SLURM for real: jobs that end before their work does, submitted through deploy/slurm.

A model notes every block that it computes and is slow until it is told otherwise. Once blocks are
recorded, the wall time of the job is set to the next minute or the one after: SLURM has no shorter.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask_jobqueue
import pytest
from jobs import noise, start, tree_digest, write_source
from slurm import PACKAGES, Slurm, missing, slurm

import isochunk
from isochunk.cluster.spec import read_cluster_file
from isochunk.core.job import Job
from isochunk.engine.target import status

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(500)]

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy" / "slurm"
CERTIFICATES = ROOT / "examples" / "certificates.py"

MODEL = '''
import time, zlib
from pathlib import Path
import torch

FOLDER = Path({folder!r})

class Paced(torch.nn.Module):
    """Repeats sections four times."""

    factor = (4, 1, 1)
    halo = (1, 1, 1)

    def forward(self, x):
        # Looked at so that it cannot be traced, which would leave out all but its answer.
        known = bool(x.isfinite().all())
        if known and x.shape[2:] == (10, 34, 34):  # a block with its halo; probes have other shapes
            with open(FOLDER / "calls", "a") as log:
                log.write(f"{{zlib.crc32(x.numpy().tobytes())}}\\n")
            if not (FOLDER / "fast").exists():
                time.sleep(1.2)  # so all of them take longer than any job here may run
        return x.repeat_interleave(4, dim=2)

def make():
    return Paced()
'''

SHAPE = (16, 320, 320)
BLOCKS = 200
SEAM = 4
"""Boxes that are computed once more when all blocks are done, to measure the seam."""
ROW = "SLURM"


@dataclass
class Case:
    """A source, a model and a target."""

    folder: Path
    source: str

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "model.py").write_text(MODEL.format(folder=str(self.folder)))

    @property
    def target(self) -> Path:
        return self.folder / "out"

    @property
    def job(self) -> dict[str, Any]:
        """Fields of the job."""
        return {
            "source": self.source,
            "target": str(self.target),
            "levels": 1,
            "trust": True,
            "model": f"{self.folder}/model.py:make",
            "chunk": "16,16,16",
            "shard": "32,32,32",
            "block": "32,32,32",
        }

    @property
    def arguments(self) -> list[str]:
        """The same for the command line."""
        job = self.job
        words = [job.pop("source"), job.pop("target"), *(["--trust"] if job.pop("trust") else [])]
        return [*words, *(f"--{name}={value}" for name, value in job.items())]

    def make_fast(self) -> None:
        """Have the model take no more pauses."""
        (self.folder / "fast").touch()

    def calls(self) -> Counter[str]:
        """How often each block ran, by what it read, since the last time."""
        log = self.folder / "calls"
        lines = log.read_text().splitlines()
        log.unlink()
        return Counter(lines)

    def done(self) -> int:
        """How many blocks are recorded as done."""
        done: int = status(str(self.target))["blocks"]["done"]
        return done


@dataclass(frozen=True)
class Good:
    """A run that nothing happened to."""

    digest: dict[str, str]
    calls: Counter[str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_source(f"file://{tmp_path_factory.mktemp('source')}/in", noise(SHAPE))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, source: str) -> Good:
    case = Case(tmp_path_factory.mktemp("good"), source)
    case.make_fast()
    assert isochunk.run(isochunk.plan(Job(**case.job))).complete
    calls = case.calls()
    assert len(calls) == calls.total() == BLOCKS + SEAM
    return Good(tree_digest(case.target), calls)


@pytest.fixture(scope="module")
def daemons() -> Iterator[Slurm]:
    if lacking := missing():
        message = f"needs {', '.join(lacking)}: apt install {PACKAGES}"
        if os.environ.get("ISOCHUNK_REQUIRE_SLURM"):
            pytest.fail(message)
        pytest.skip(message)
    with slurm() as running:
        yield running


@pytest.fixture
def site(daemons: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """SLURM as users find it: its commands and isochunk are on the path."""
    path = f"{Path(sys.executable).parent}:{daemons.environment['PATH']}"
    own = {"PATH": path, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    environment = {**daemons.environment, **own}
    for name in ("SLURM_CONF", *own):
        monkeypatch.setenv(name, environment[name])
    return Slurm(daemons.folder, environment)


Check = Callable[..., None]


@pytest.fixture
def check(good: Good, record: Callable[..., None]) -> Check:
    """Check the final state and add a row to the table of the page."""

    def complete(case: Case, what: str, after: str, done: int, calls: Counter[str]) -> None:
        redone = calls - good.calls
        assert calls & good.calls == good.calls, "every block ran"
        identical = tree_digest(case.target) == good.digest
        audit = isochunk.audit(str(case.target))
        record(
            ROW,
            what=what,
            wall_time=after,
            blocks_done_before=f"{done} of {BLOCKS}",
            redone=redone.total(),
            identical=identical,
            audit="complete" if audit.complete else "holes",
        )
        assert identical
        assert audit.complete
        assert 0 < done < BLOCKS

    return complete


def test_a_client_that_is_a_job(site: Slurm, tmp_path: Path, source: str, check: Check) -> None:
    """One is killed at its wall time and submitted again; one goes back to the queue by itself."""

    def submit(case: Case, *options: str) -> str:
        return site.submit(f"--chdir={case.folder}", *options, f"{DEPLOY}/job.sh", *case.arguments)

    def log(number: str) -> str:
        return Path(site.job(number)["StdOut"]).read_text()

    killed, requeued = (Case(tmp_path / name, source) for name in ("killed", "requeued"))
    first = submit(killed, "--signal=B:USR1@0")  # no warning
    warned = submit(requeued, "--signal=B:USR1@5")  # up to half a minute earlier
    # Time for the warning: SLURM looks every half minute whether one is due.
    wall_times = [shorten(site, killed, first), shorten(site, requeued, warned, 40)]

    site.wait(lambda: site.job(warned)["Restarts"] == "1", 180)
    site("scontrol", "update", f"JobId={warned}", "TimeLimit=30")  # once is enough
    requeued.make_fast()
    done, calls = requeued.done(), requeued.calls()
    assert ended(site, warned, 150) == "COMPLETED", log(warned)
    again = requeued.calls()
    assert again.total() == BLOCKS - done + SEAM
    what = "client that puts itself back into the queue"
    check(requeued, what, wall_times[1], done, calls + again)

    assert ended(site, first, 180) == "TIMEOUT", log(first)
    killed.make_fast()
    done, calls = killed.done(), killed.calls()
    second = submit(killed)
    assert ended(site, second, 150) == "COMPLETED", log(second)
    again = killed.calls()
    assert again.total() == BLOCKS - done + SEAM
    check(killed, "client killed, and submitted again", wall_times[0], done, calls + again)


def shorten(site: Slurm, case: Case, number: str, warned_s: int = 0) -> str:
    """Wait until blocks are done and let a job's wall time end soon; return it."""
    site.wait(lambda: any((case.target / ".isochunk" / "ledger").glob("*")), 180)
    hours, minutes, seconds = map(int, site.job(number)["RunTime"].split(":"))
    limit = 60 * hours + minutes + (seconds + warned_s) // 60 + 1
    site("scontrol", "update", f"JobId={number}", f"TimeLimit={limit}")
    return f"{limit} min"


def ended(site: Slurm, number: str, seconds: float) -> str:
    """Wait until a job has ended and return how."""
    live = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
    site.wait(lambda: site.job(number)["JobState"] not in live, seconds)
    return site.job(number)["JobState"]


def changed(name: str, folder: Path, **options: Any) -> str:
    """Write a shipped cluster file with other options, fit for this machine."""
    text = (DEPLOY / name).read_text()
    given = {"queue": "main", "log_directory": str(folder / "logs"), **options}
    for key, value in given.items():
        line = "" if value is None else f"{key} = {json.dumps(value)}"
        text, found = re.subn(rf"(?m)^{key} = .*$", line, text)
        assert found == 1, key
    text = text.replace("[options]", '[options]\ninterface = "lo"').replace(":8787", ":0")
    text += '\n[dask]\n"distributed.deploy.lost-worker-timeout" = "5s"\n'
    file = folder / name
    file.write_text(text)
    return str(file)


def test_workers_that_are_jobs(site: Slurm, tmp_path: Path, source: str, check: Check) -> None:
    """Some are killed at their wall time, some leave before; the client asks for others."""
    killed, leaving = (Case(tmp_path / name, source) for name in ("killed", "leaving"))
    small = {"workers": 2, "processes": 2, "cores": 2, "memory": "2GiB"}

    file = changed("cpu.toml", killed.folder, job_name="killed", **small)
    first = start("run", *killed.arguments, f"--cluster={file}", "--json")

    file = changed("cpu.toml", leaving.folder, job_name="leaving", **small)
    text = Path(file).read_text()
    assert "=230minutes" in text
    Path(file).write_text(text.replace("=230minutes", "=70s").replace("=5minutes", "=2s"))
    job = leaving.folder / "job.toml"
    job.write_text("".join(f"{name} = {json.dumps(v)}\n" for name, v in leaving.job.items()))
    second = subprocess.Popen(
        [sys.executable, f"{DEPLOY}/submit.py", file, str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    site.wait(lambda: bool(site.jobs("killed")), 90)
    wall_time = shorten(site, killed, site.jobs("killed")[0]["JobId"])
    # A job whose workers have left may be cancelled before it ends by itself.
    for case, client, ends, what, after in (
        (leaving, second, {"COMPLETED", "CANCELLED"}, "workers that leave in time", "70 s"),
        (killed, first, {"TIMEOUT"}, "workers killed, two in a job", wall_time),
    ):
        name = case.folder.name
        assert ended(site, site.jobs(name)[-1]["JobId"], 180) in ends
        done = case.done()
        case.make_fast()
        out, err = client.communicate(timeout=150)
        assert client.returncode == 0, (out, err)
        report = json.loads(out)
        assert report["complete"]
        assert report["blocks"]["failed"] == 0
        assert len(site.jobs(name)) == 2
        check(case, what, after, done, case.calls())
    site.wait(site.idle, 20)


def test_one_job_for_all(site: Slurm, tmp_path: Path, source: str, good: Good) -> None:
    """Scheduler, workers and client of one job, with TLS; here without GPUs."""
    case = Case(tmp_path / "one", source)
    case.make_fast()
    text = (DEPLOY / "one_job.sh").read_text()
    for old, new in (("dask cuda worker", "dask worker"), (" --device-memory-limit 0", "")):
        assert text.count(old) == 1 or old == "dask cuda worker"
        text = text.replace(old, new)
    script = case.folder / "one_job.sh"
    script.write_text(text)
    small = ("--gres=none", "--cpus-per-task=2", "--mem=2G", f"--chdir={case.folder}")

    bare = site.submit(*small, str(script), *case.arguments)
    assert ended(site, bare, 60) == "FAILED"
    assert "certificates.py" in Path(site.job(bare)["StdOut"]).read_text()
    assert not case.target.exists()

    subprocess.run([sys.executable, CERTIFICATES, tmp_path / "tls"], check=True)
    site.environment["DASK_CONFIG"] = str(tmp_path / "tls")
    number = site.submit(*small, str(script), *case.arguments)
    said = Path(site.job(number)["StdOut"])
    assert ended(site, number, 150) == "COMPLETED", said.read_text()
    assert "listens beyond this machine without TLS" not in said.read_text()
    assert tree_digest(case.target) == good.digest
    site.wait(site.idle, 20)


def test_gpu_nodes(site: Slurm, tmp_path: Path) -> None:
    """SLURM takes the job, which gives two GPUs to dask-cuda's command."""
    gpus = {"processes": 2, "job_extra_directives": ["--gres=gpu:2"], "security": None}
    file = changed("cluster.toml", tmp_path, **gpus)
    with dask_jobqueue.SLURMCluster(**read_cluster_file(file).options) as cluster:
        script = cluster.job_script()
    assert f"{sys.executable} -m dask cuda worker tcp://127.0.0.1:" in script
    assert "--gres=gpu:2" in script
    assert script.rindex("--memory-limit 0 --device-memory-limit 0") > script.index("--nthreads 16")
    (tmp_path / "job.sh").write_text(script)
    site("sbatch", "--test-only", f"{tmp_path}/job.sh")
