"""A Dask cluster that speaks TLS, with the certificates of examples/certificates.py."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import servers
from clusters import end_family
from distributed import Client, Scheduler, SpecCluster
from jobs import command, noise, read_all, start, wait_until, write_source

from isochunk.cluster.start import is_loopback, warn_if_open

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "certificates.py"

OPEN = "listens beyond this machine without TLS"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates and the configuration that uses them."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run([sys.executable, str(EXAMPLE), str(folder)], check=True)
    return folder


@pytest.fixture
def address(certificates: Path, tmp_path: Path) -> Iterator[str]:
    """A scheduler and a worker, told of their certificates by options alone."""
    options = [
        "--tls-ca-file",
        str(certificates / "ca.pem"),
        "--tls-cert",
        str(certificates / "dask.pem"),
        "--tls-key",
        str(certificates / "dask-key.pem"),
        "--protocol",
        "tls",
        "--host",
        "127.0.0.1",
        "--no-dashboard",
    ]
    port = servers.free_port()
    address = f"tls://127.0.0.1:{port}"
    with ExitStack() as closing:
        log = closing.enter_context((tmp_path / "cluster.log").open("wb"))
        for words in (
            ["scheduler", "--port", str(port)],
            ["worker", address, "--nthreads", "1", "--memory-limit", "0"],
        ):
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *words, *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=tmp_path,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            closing.callback(end_family, process)
        said = tmp_path / "cluster.log"
        wait_until(lambda: "Registered to" in said.read_text(), seconds=120)
        yield address


@pytest.mark.slow
def test_a_job_on_a_cluster_that_speaks_tls(
    address: str, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = noise((6, 48, 48))
    source = write_source(f"file://{tmp_path}/in", voxels, "10,10,10")
    job = ("run", source, f"{tmp_path}/out", "--model=identity", "--shard=none")

    # Without certificates, and without TLS, there is no way in.
    for reached in (address, address.replace("tls:", "tcp:")):
        process = start(*job, f"--scheduler={reached}")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2, err.decode()
        assert f"no Dask scheduler answers at {reached}" in err.decode()
        assert ("docs/security.md" if reached == address else "or tls://") in err.decode()
    assert not (tmp_path / "out").exists()

    monkeypatch.setenv("DASK_CONFIG", str(certificates))
    process = start(*job, f"--scheduler={address}")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert OPEN not in err.decode()
    assert (read_all(f"{tmp_path}/out") == voxels).all()
    assert command("audit", f"{tmp_path}/out")["complete"]


def test_the_private_key_is_for_its_owner_alone(certificates: Path) -> None:
    assert (certificates / "dask-key.pem").stat().st_mode & 0o777 == 0o600
    assert sorted(f.name for f in certificates.iterdir()) == [
        "ca.pem",
        "dask-key.pem",
        "dask.pem",
        "dask.yaml",
    ]


class Elsewhere(Scheduler):
    """A scheduler on the loopback that says it is reached from other hosts."""

    def identity(self, n_workers: int = -1) -> dict[str, object]:
        return {**super().identity(n_workers), "address": "tcp://192.0.2.9:8786"}


@pytest.mark.parametrize("kind", [Scheduler, Elsewhere])
def test_a_warning_where_others_may_reach_the_scheduler(
    kind: type[Scheduler], caplog: pytest.LogCaptureFixture
) -> None:
    options = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    with (
        SpecCluster(scheduler={"cls": kind, "options": options}) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        warn_if_open(client)
    warned = [r.message for r in caplog.records if OPEN in r.message]
    assert len(warned) == (kind is Elsewhere)
    assert all("tcp://192.0.2.9:8786" in w and "docs/security.md" in w for w in warned)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("192.0.2.9", False),
        ("0.0.0.0", False),
        ("::", False),
        ("node7", False),
        ("", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_a_target_cannot_name_the_cluster_that_repairs_it(tmp_path: Path) -> None:
    """A client runs what a scheduler sends it, so a foreign job.json must not choose one."""
    source = write_source(f"file://{tmp_path}/in", noise((6, 48, 48)), "10,10,10")
    command("run", source, f"{tmp_path}/out", "--model=identity", "--shard=none")
    record = tmp_path / "out" / ".isochunk" / "job.json"
    written = json.loads(record.read_text())
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        written["plan"]["job"]["scheduler"] = f"tcp://127.0.0.1:{trap.getsockname()[1]}"
        written["plan"]["job"]["cluster"] = f"{tmp_path}/cluster.toml"
        record.write_text(json.dumps(written))
        shutil.rmtree(next(f for f in (tmp_path / "out").iterdir() if f.name[0].isdigit()))
        assert command("repair", f"{tmp_path}/out")["complete"]
        with pytest.raises(TimeoutError):
            trap.accept()
