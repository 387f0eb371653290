"""Clusters that jobs name: what is refused before anything starts, and what is kept alive."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask
import pytest
from clusters import cluster
from distributed import Client
from jobs import noise, slow_model, start, wait_until, write_source

import isochunk
from isochunk.cli.main import main
from isochunk.cluster.spec import ClusterSpec, read_cluster_file, requested_cluster
from isochunk.cluster.start import (
    SPOT,
    check_versions,
    cluster_class,
    configuration,
    running_cluster,
)
from isochunk.engine.events import read_events
from isochunk.engine.report import Report
from isochunk.engine.target import open_written_target
from isochunk.errors import ModelError, UsageError
from isochunk.models.load import shipped

SMALL = ("--chunk=16,16,16", "--shard=32,32,32", "--block=32,32,32")

BAD_FILES: dict[str, tuple[str, str]] = {
    "unknown kind": ('kind = "slum"', r"kind of .* is 'slum'; choose one of local.* slurm"),
    "misspelt key": ('kin = "slurm"', r"unknown kin; known are kind, class.*under \[options\]"),
    "neither kind nor class": ("workers = 3", r"neither kind nor class; say kind = one of"),
    "both": ('kind = "lsf"\nclass = "a.B"', r"both kind and class"),
    "misspelt option of a job queue": (
        'kind = "slurm"\n[options]\ncore = 4',
        r"unknown core; dask_jobqueue.SLURMCluster takes account.* cores, .*walltime",
    ),
    "misspelt option of Kubernetes": (
        'kind = "kubernetes"\n[options]\nimag = "x"',
        r"unknown imag; .*KubeCluster takes .*custom_cluster_spec.* image,",
    ),
    "misspelt option of EC2": (
        'kind = "ec2"\n[options]\ninstance = "x"',
        r"unknown instance; .* takes .*instance_type",
    ),
    "misspelt option of this machine": (
        'kind = "local"\n[options]\nthread_per_worker = 1',
        r"unknown thread_per_worker; .*threads_per_worker",
    ),
    "workers as text": ('kind = "lsf"\nworkers = "8"', r"workers of .* is '8'; it must be a whole"),
    "no workers": ('kind = "lsf"\nworkers = 0', r"workers of .* is 0; .* at least 1"),
    "wait of text": ('kind = "lsf"\nwait_s = "long"', r"wait_s of .* is 'long'; .* seconds"),
    "negative wait": ('kind = "lsf"\nwait_s = -1', r"wait_s of .* is -1; it must be more than 0"),
    "kind that is a number": ("kind = 3", r"kind of .* is 3; it must be text"),
    "options that are no table": ('kind = "lsf"\noptions = 3', r"must be a table, \[options\]"),
    "misspelt dask configuration": (
        'kind = "local"\n[dask]\n"distributed.scheduler.allowed-failure" = 3',
        r"unknown distributed.scheduler.allowed-failure; .* has .*allowed-failures",
    ),
    "class of no module": ('class = "nowhere.Cluster"', r"nowhere.Cluster, which cannot be imp"),
    "class of no such name": ('class = "distributed.Clutser"', r"no attribute 'Clutser'"),
    "no TOML": ("kind = slurm", r"is not TOML"),
}


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A source of 2 x 5 x 5 target shards."""
    return write_source(f"file://{tmp_path}/in", noise((16, 160, 160)))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused; return what it said."""
    capsys.readouterr()
    code = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert code == 2, (code, out, err)
    assert "Traceback" not in err
    message: str = json.loads(out)["error"]
    return message


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_cluster_file_is_refused_by_plan_and_run(
    name: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, said = BAD_FILES[name]
    file = tmp_path / "cluster.toml"
    file.write_text(text)
    job = (source, f"{tmp_path}/out", "--model=cubic", f"--cluster={file}")
    for command in ("plan", "run"):
        message = refused(capsys, command, *job)
        assert re.search(said, message), message
        assert str(file) in message
    assert not (tmp_path / "out").exists()


def test_words_that_name_no_cluster(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ("plan", source, f"{tmp_path}/out", "--model=cubic")
    said = refused(capsys, *job, "--cluster=cudda")
    assert re.search("'cudda', which is no file; wanted is local or cuda, or a TOML file", said)
    assert "kind = 'slurm'" in refused(capsys, *job, "--cluster=slurm")
    file = tmp_path / "cluster.toml"
    file.write_text('kind = "local"')
    said = refused(capsys, *job, f"--cluster={file}", "--scheduler=tcp://127.0.0.1:1")
    assert "drop the other" in said


def test_a_package_that_is_not_installed() -> None:
    spec = ClusterSpec("no_such_package.SLURMCluster", "cluster.toml", "slurm")
    with pytest.raises(UsageError, match=r"pip install 'isochunk\[jobqueue\]'"):
        cluster_class(spec)


@pytest.mark.parametrize("workers", ["1000", None])
def test_more_gpus_than_there_are(
    workers: str | None,
    source: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    asked = () if workers is None else (f"--workers={workers}",)
    job = (source, f"{tmp_path}/out", "--model=cubic", "--cluster=cuda", *asked)
    said = refused(capsys, "run", *job)
    assert re.search(rf"wants {workers or 'at least 1'} GPU\(s\).*there are 0 here", said), said
    assert "CUDA_VISIBLE_DEVICES" in said
    assert not (tmp_path / "out").exists()


def test_a_cluster_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(
        'class = "dask_jobqueue.LSFCluster"\nworkers = 3\nwait_s = 9\n[options]\ncores = 1\n'
        "[dask]\ndistributed.scheduler.allowed-failures = 7\n'distributed.worker.resources.A' = 1"
    )
    spec = read_cluster_file(str(file))
    assert (spec.kind, spec.workers, spec.wait_s) == ("lsf", 3, 9)
    assert spec.dask == {
        "distributed.scheduler.allowed-failures": 7,
        "distributed.worker.resources.A": 1,
    }
    job = isochunk.Job(source="a", target="b", model="cubic", cluster=str(file), workers=5)
    assert requested_cluster(job).workers == 5, "the command line is stronger than the file"


def test_what_users_configure_of_dask_is_stronger_than_our_defaults() -> None:
    spec = ClusterSpec("dask_jobqueue.LSFCluster", "cluster.toml", "lsf")
    assert SPOT.items() <= configuration(spec).items()
    assert configuration(spec)["jobqueue.lsf.death-timeout"] > 60
    failures = "distributed.scheduler.allowed-failures"
    with dask.config.set({failures: 4}):
        assert failures not in configuration(spec)
    told = ClusterSpec("dask_jobqueue.LSFCluster", "cluster.toml", "lsf", dask={failures: 3})
    assert configuration(told)[failures] == 3
    here = ClusterSpec("distributed.LocalCluster", "--cluster local", "local")
    assert not SPOT.keys() & configuration(here).keys(), "machines here do not come and go"


def test_dask_configuration_holds_while_the_cluster_lives() -> None:
    key = "distributed.scheduler.allowed-failures"
    spec = ClusterSpec("distributed.LocalCluster", "c", "local", workers=1, dask={key: 17})
    usual = dask.config.get(key)
    with running_cluster(spec) as running:
        assert running.scheduler.allowed_failures == 17
        assert running.scheduler.address.startswith("tcp://127.0.0.1:")
    assert dask.config.get(key) == usual


@contextmanager
def stranger(folder: Path, address: str, *python: str) -> Iterator[None]:
    """Run a worker whose packages come first from a folder."""
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                *python,
                "-m",
                "distributed.cli.dask_worker",
                address,
                "--no-nanny",
                "--host",
                "127.0.0.1",
                "--no-dashboard",
                "--name",
                "stranger",
            ],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder / "packages")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()


def other_version(packages: Path) -> tuple[str, ...]:
    """Have importlib find an isochunk of another version."""
    info = packages / "isochunk-0.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: isochunk\nVersion: 0.0.1\n")
    return ()


def without_isochunk(packages: Path) -> tuple[str, ...]:
    """Have Python see all that is installed but isochunk."""
    packages.mkdir()
    for installed in Path(dask.__file__).parents[1].iterdir():
        if "isochunk" not in installed.name:
            (packages / installed.name).symlink_to(installed)
    return ("-S",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "has"), [(other_version, "has isochunk 0.0.1"), (without_isochunk, "has no isochunk")]
)
def test_workers_of_another_version(make: object, has: str, source: str, tmp_path: Path) -> None:
    python = make(tmp_path / "packages")  # type: ignore[operator]
    with cluster(tmp_path, workers=1) as ours, stranger(tmp_path, ours.address, *python):
        with Client(ours.address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=150)
            with pytest.raises(UsageError, match=f"{has}, and the client has"):
                check_versions(client)
        process = start(
            "run", source, f"{tmp_path}/out", "--model=cubic", f"--scheduler={ours.address}"
        )
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    said = err.decode()
    assert re.search(
        rf"worker tcp://.* {has}, and the client has {isochunk.__version__}; install "
        rf"isochunk=={isochunk.__version__} for all workers",
        said,
    ), said
    assert not (tmp_path / "out").exists()


LEAVES = "could not open the job and leaves"

WAITING_MODEL = '''
import time
from pathlib import Path
import torch

class Waiting(torch.nn.Module):
    """Repeats sections four times; once there is a log, not before it says something."""

    factor = (4, 1, 1)
    halo = (1, 1, 1)

    def forward(self, x):
        time.sleep(0.05)  # most tasks are still to come when the stranger does
        log, end = Path({log!r}), time.monotonic() + 60
        while log.exists() and {words!r} not in log.read_text() and time.monotonic() < end:
            time.sleep(0.1)
        return x.repeat_interleave(4, dim=2)

def make():
    return Waiting()
'''


@pytest.mark.slow
def test_a_worker_of_another_version_that_comes_later_leaves(tmp_path: Path) -> None:
    """The job does not end before the stranger was given a task, and left."""
    source = write_source(f"file://{tmp_path}/in", noise((16, 96, 96)))
    other_version(tmp_path / "packages")
    shapes = {"chunk": (16, 16, 16), "shard": "none", "block": (16, 16, 16), "levels": 1}
    job = isochunk.Job(
        source=source,
        target=f"{tmp_path}/out",
        model=f"{tmp_path}/waiting.py:make",
        trust=True,
        **shapes,
    )
    log = tmp_path / "worker.log"
    (tmp_path / "waiting.py").write_text(WAITING_MODEL.format(log=str(log), words=LEAVES))
    with ExitStack() as closing:
        ours = closing.enter_context(cluster(tmp_path, workers=1))
        client = closing.enter_context(Client(ours.address, set_as_default=False))
        joined: list[None] = []

        def join(report: Report) -> None:
            if report.done >= 2 and not joined:
                joined.append(closing.enter_context(stranger(tmp_path, ours.address)))
                wait_until(lambda: len(client.nthreads()) == 2)

        assert isochunk.run(isochunk.plan(job), client, join).complete
        assert joined
        assert LEAVES in log.read_text()
        wait_until(lambda: len(client.nthreads()) == 1)
    events = [e["event"] for e in read_events(open_written_target(f"{tmp_path}/out").store)]
    assert "lost" not in events


def test_a_checkpoint_that_changed_between_plan_and_worker(
    client: Client, source: str, tmp_path: Path
) -> None:
    from isochunk.models.load import SHIPPED

    name = shipped()[0][0]
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / name, folder)
    job = isochunk.Job(source=source, target=f"{tmp_path}/out", model=str(folder), shard="none")
    plan = isochunk.plan(job)
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"digest|sha256"):
        isochunk.run(plan, client)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_another_model_at_the_same_path_when_repairing(tmp_path: Path) -> None:
    """The command line's way: the plan is the target's own, the model what is there now."""
    source = write_source(f"file://{tmp_path}/in", noise((4, 32, 32)))
    model = slow_model(tmp_path, 0)
    target = f"{tmp_path}/out"
    code = main(["run", source, target, "--model", model, "--trust"])
    assert code == 0
    slow_model(tmp_path, 0.5)
    process = start("repair", target, "--model", model, "--trust", "--workers=2")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err.decode()
    assert re.search(r"has digest \w+ here but the job was planned with \w+; give", err.decode()), (
        err.decode()
    )
