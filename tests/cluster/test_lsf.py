"""deploy/lsf: what dask-jobqueue makes of it, and runs with a stand-in for LSF's two commands.

LSF itself cannot be had. The stand-in runs the very job script that dask-jobqueue would submit, on
this machine, in a process group of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from jobs import command, noise, read_all, slow_model, start, tree_digest, wait_until, write_source

from isochunk.cluster.spec import read_cluster_file
from isochunk.cluster.start import arguments, cluster_class

LSF = Path(__file__).resolve().parents[2] / "deploy" / "lsf"

BSUB = """#!/bin/bash
# Takes a job script on standard input and runs it here, in a session of its own.
cd "{folder}"
number=$(( $(ls *.job 2>/dev/null | wc -l) + 1 ))
cat > $number.job
setsid bash $number.job > $number.log 2>&1 < /dev/null &
echo $! > $number.pid
echo "Job <$number> is submitted to queue <gpu>."
"""

BKILL = """#!/bin/bash
kill -TERM -- -$(cat "{folder}/$1.pid")
"""

BLOCKS = ("--chunk=16,16,16", "--shard=32,32,32", "--block=32,32,32")


class StandIn:
    """Jobs that were submitted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def jobs(self) -> int:
        return len(list(self.folder.glob("*.job")))

    def kill(self, number: int) -> None:
        """End a job as LSF does at its wall time, without a word."""
        os.killpg(int((self.folder / f"{number}.pid").read_text()), signal.SIGKILL)


@pytest.fixture
def lsf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Have the stand-in's commands found first, and end what is left of its jobs."""
    folder, programs = tmp_path / "jobs", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name, text in (("bsub", BSUB), ("bkill", BKILL)):
        (programs / name).write_text(text.format(folder=folder))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    made = StandIn(folder)
    yield made
    for number in range(1, made.jobs() + 1):
        with suppress(ProcessLookupError):
            made.kill(number)


def here(folder: Path, workers: int, processes: int) -> Path:
    """Copy deploy/lsf, changed for one small machine without GPUs; only that is changed."""
    copy = folder / "lsf"
    shutil.copytree(LSF, copy)
    file = copy / "cluster.toml"
    text = file.read_text()
    for pattern, line in (
        (r"^workers = .*", f"workers = {workers}"),
        (r"^cores = .*", f"cores = {processes}"),
        (r"^processes = .*", f"processes = {processes}"),
        (r"^worker_command = .*", ""),
        (
            r"^worker_extra_args = .*",
            'worker_extra_args = ["--memory-limit", "0", "--host", "127.0.0.1"]',
        ),
        (r"^dashboard_address = .*", 'dashboard_address = "127.0.0.1:0"\nhost = "127.0.0.1"'),
    ):
        text, changed = re.subn(pattern, line, text, flags=re.MULTILINE)
        assert changed == 1, pattern
    file.write_text(f'{text}\n[dask]\n"distributed.deploy.lost-worker-timeout" = "2s"\n')
    return copy


def test_the_job_script(lsf: StandIn, tmp_path: Path) -> None:
    """From deploy/lsf/cluster.toml as it is, but for the host that the scheduler listens on."""
    spec = read_cluster_file(str(LSF / "cluster.toml"))
    given = arguments(spec)
    given["scheduler_options"] = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with cluster_class(spec)(**given) as cluster:
        script = cluster.job_script()
    head = [line.removeprefix("#BSUB ") for line in script.splitlines() if "#BSUB" in line]
    for line in (
        "-q gpu",
        '-P "isochunk"',
        "-W 04:00",
        "-n 16",
        '-R "span[hosts=1]"',
        '-gpu "num=4:j_exclusive=yes"',
    ):
        assert line in head, head
    assert any(re.fullmatch(r"-M 1280+\d*", line) for line in head), "128 GB"
    assert "export DASK_DISTRIBUTED__WORKER__LIFETIME__DURATION=220m" in script
    (worker,) = [line for line in script.splitlines() if " -m dask_cuda.cli " in line]
    assert worker.startswith(f"{sys.executable} -m dask_cuda.cli tls://127.0.0.1:")
    assert "--nthreads 4 " in worker, "16 cores over 4 GPUs"
    for option, value in (("--memory-limit", "0"), ("--device-memory-limit", "0")):
        assert re.findall(rf"{option} (\S+)", worker)[-1] == value, "the last one counts"
    assert {"--tls-ca-file", "--tls-cert", "--tls-key"} <= set(worker.split())
    lifetime, stagger = (int(n) for n in re.findall(r"LIFETIME__\w+=(\d+)m", script))
    assert lifetime + stagger < 4 * 60, "workers end before LSF ends them"
    assert lsf.jobs() == 0


@pytest.mark.slow
def test_the_submit_script(lsf: StandIn, tmp_path: Path) -> None:
    folder = here(tmp_path, workers=1, processes=1)
    voxels = noise((6, 48, 48))
    source = write_source(f"file://{tmp_path}/in", voxels, "10,10,10")
    done = subprocess.run(
        [sys.executable, str(folder / "submit.py"), source, f"{tmp_path}/out", "identity"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert (read_all(f"{tmp_path}/out") == voxels).all()
    assert lsf.jobs() == 1
    assert " tls://127.0.0.1:" in (lsf.folder / "1.job").read_text()
    assert "without TLS" not in done.stderr
    assert not list(tmp_path.glob(".dask-jobqueue*")), "keys for this run are gone after it"


@pytest.mark.slow
def test_an_interrupted_run_does_not_pass_for_done(lsf: StandIn, tmp_path: Path) -> None:
    folder = here(tmp_path, workers=1, processes=1)
    source = write_source(f"file://{tmp_path}/in", noise((6, 48, 48)))
    process = start(
        "run",
        source,
        f"{tmp_path}/out",
        "--model",
        "cubic",
        "--cluster",
        str(folder / "cluster.toml"),
        *BLOCKS,
    )
    wait_until(lambda: lsf.jobs() == 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err.decode()
    assert "interrupted; the same command resumes" in err.decode()


@pytest.mark.slow
def test_jobs_that_end_are_asked_for_again(lsf: StandIn, tmp_path: Path) -> None:
    """A job of two worker processes is killed; a job queue does not say that it is gone."""
    folder = here(tmp_path, workers=2, processes=2)
    source = write_source(f"file://{tmp_path}/in", noise((16, 96, 96)))
    command(
        "run", source, f"{tmp_path}/good", "--model", slow_model(tmp_path, 0), "--trust", *BLOCKS
    )
    process = start(
        "run",
        source,
        f"{tmp_path}/out",
        "--model",
        slow_model(tmp_path, 0.3),
        "--trust",
        "--cluster",
        str(folder / "cluster.toml"),
        *BLOCKS,
    )
    shards = tmp_path / "out" / "10_10_10"
    wait_until(lambda: len(list(shards.glob("*.shard"))) >= 3, seconds=200)
    lsf.kill(1)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err.decode()
    assert lsf.jobs() == 2
    assert "job LSFCluster-0 and its workers are lost and are asked for again" in err.decode()
    assert " --death-timeout 300 " in (lsf.folder / "1.job").read_text()
    assert command("audit", f"{tmp_path}/out")["complete"]
    digests = [tree_digest(tmp_path / name) for name in ("out", "good")]
    # The models differ in how long they sleep, and so in their digests, which stand in info.
    assert {k: v for k, v in digests[0].items() if k.endswith(".shard")} == {
        k: v for k, v in digests[1].items() if k.endswith(".shard")
    }
