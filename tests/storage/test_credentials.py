"""Known secrets are looked for in everything that a run leaves behind or says."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import servers
from distributed import Client, LocalCluster
from jobs import noise, start, stored_objects, write_source
from servers import Faults, ObjectServer

import isochunk
from isochunk.cli.main import main
from isochunk.engine.timeouts import Timeouts
from isochunk.errors import AccessError, UsageError
from isochunk.storage.open import open_store, open_volume

SESSION = "SESSIONTOKENEXAMPLE77"
BEARER = "ya29.GCSTOKENEXAMPLE77"
SECRETS = {
    "s3": (servers.S3_KEY, servers.S3_SECRET, SESSION, "X-Amz-Signature", "Credential="),
    "gs": (BEARER, "Bearer"),
}
SENT = {"s3": (servers.S3_KEY, SESSION), "gs": (BEARER,)}
"""Secrets that a server gets to see; the others are only signed with."""
OPTIONS = ("--model=cubic", "--chunk=16,16,16", "--shard=32,32,32", "--block=32,32,32")


@dataclass
class Site:
    """A source in a bucket, behind a proxy that is told secrets."""

    kind: str
    bucket: str
    faults: Faults
    url: str = field(repr=False)

    def check(self, said: str) -> None:
        """Look for secrets in a text."""
        for secret in SECRETS[self.kind]:
            assert secret not in said, (secret, said[max(0, said.find(secret) - 300) :][:600])

    def check_stored(self) -> None:
        """Look for secrets in every object of the target."""
        stored = stored_objects(f"{self.bucket}/out")
        assert {"info", "provenance", ".isochunk/job.json"} <= set(stored)
        for part in (".isochunk/ledger/", ".isochunk/events/"):
            assert any(part in key for key in stored), part
        for key, content in stored.items():
            for secret in SECRETS[self.kind]:
                assert secret.encode() not in content, (secret, key)


@pytest.fixture(params=["s3", "gs"])
def site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    kind: str = request.param
    bucket = request.getfixturevalue({"s3": "s3", "gs": "gcs"}[kind])
    server: ObjectServer = request.getfixturevalue({"s3": "s3_server", "gs": "gcs_server"}[kind])
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", BEARER)
    write_source(f"{bucket}/in", noise((8, 64, 64)), chunk=(8, 32, 32))
    faults = Faults()
    with servers.proxy(server.endpoint_url, faults) as url:
        name = {"s3": "AWS_ENDPOINT_URL", "gs": "TENSORSTORE_GCS_HTTP_URL"}[kind]
        monkeypatch.setenv(name, url)
        yield Site(kind, bucket, faults, url)


@pytest.mark.slow
def test_a_run_with_failures_in_processes_of_its_own(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not in what is printed; not in job.json, ledger, events, provenance, info or voxels."""
    more = ("--verbose", *([f"--endpoint-url={site.url}"] if site.kind == "s3" else []))
    arguments = ("run", f"{site.bucket}/in", f"{site.bucket}/out", *OPTIONS, *more)
    site.faults.always["/in/0/0-32_0-32"] = "echo"
    process = start(*arguments, "--workers=2")
    said = "".join(part.decode() for part in process.communicate(timeout=120))
    assert process.returncode == 1, said
    assert main([*arguments, "--json"]) == 1
    site.faults.always.clear()
    assert main([*arguments]) == 0
    for name in ("status", "audit", "repair", "info"):
        assert main([name, f"{site.bucket}/out", *more]) == 0
    said += "".join(capfd.readouterr())
    assert "access refused" in said
    assert all(any(secret in seen for seen in site.faults.seen) for secret in SENT[site.kind])
    site.check(said)
    site.check_stored()


@pytest.mark.slow
def test_the_logs_of_a_cluster(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Neither scheduler nor workers, nor anything that travels between them."""
    job = isochunk.Job(
        source=f"{site.bucket}/in",
        target=f"{site.bucket}/out",
        model="cubic",
        chunk=(16, 16, 16),
        shard=(32, 32, 32),
        block=(32, 32, 32),
    )
    plan = isochunk.plan(job)
    caplog.set_level(logging.DEBUG, "isochunk")
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        site.faults.always["/in/0/0-32_0-32"] = "echo"
        report = isochunk.run(plan, client, timeouts=Timeouts(retry_pauses_s=()))
        assert report.failed
        site.faults.always["/in/info"] = "echo"  # now the workers cannot even open the job
        with pytest.raises(Exception, match="access refused") as caught:
            isochunk.run(plan, client)
        logs = [client.get_worker_logs(), client.get_scheduler_logs(), client.get_events()]
    chain = "".join(traceback.format_exception(caught.value))
    travels = pickle.dumps(plan).decode("latin-1")
    site.check("".join(map(str, (logs, report, report.summary(), plan, job, caplog.text))))
    site.check(chain + travels + repr(caught.value))
    site.check_stored()


def test_exceptions_and_their_causes(site: Site) -> None:
    site.faults.always["/in/"] = "echo"
    store = open_store(f"{site.bucket}/in")
    for attempt in (
        lambda: open_volume(f"{site.bucket}/in"),
        lambda: store.get("info"),
        lambda: store.put("k", b"v"),
        lambda: store.keys(),
        lambda: store.exists("info"),
        lambda: store.delete(["k"]),
    ):
        with pytest.raises(AccessError) as caught:
            attempt()
        site.check("".join(traceback.format_exception(caught.value)) + repr(caught.value))
    site.check(repr(store) + repr(store.access) + repr(store.location))
    # tensorstore keeps a process's first GCS token: the run in processes of its own proves it sent.
    assert site.kind == "gs" or all(any(s in seen for seen in site.faults.seen) for s in SENT["s3"])


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret-word@host/a",
        "https://host/a?X-Amz-Signature=secret-word",
        "s3+https://user:secret-word@host/bucket/a",
        "gs://bucket/a?access_token=secret-word",
        "precomputed://https://secret-word@host/a",
        "zarr://https://host/a?sig=secret-word|zarr3:",
    ],
)
@pytest.mark.parametrize("place", ["source", "target", "mask", "endpoint_url"])
def test_urls_with_secrets_are_refused_unseen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], url: str, place: str
) -> None:
    source = write_source(f"file://{tmp_path}/in", noise((8, 32, 32)), chunk=(8, 32, 32))
    fields = {"source": source, "target": f"{tmp_path}/out", "model": "cubic", place: url}
    config = tmp_path / "job.toml"
    config.write_text("\n".join(f"{name} = {json.dumps(v)}" for name, v in fields.items()))
    for command in ("plan", "run"):
        assert main([command, "--config", str(config), "--verbose", "--json"]) == 2
    with pytest.raises(UsageError) as caught:
        isochunk.run(isochunk.plan(isochunk.Job.from_mapping(fields)))
    said = "".join(traceback.format_exception(caught.value)) + "".join(capfd.readouterr())
    assert "secret-word" not in said
    assert not (tmp_path / "out").exists()


def test_right_keys_work_while_a_store_with_wrong_ones_is_held(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook, whose last error holds all that it was raised in."""
    with monkeypatch.context() as wrong:
        wrong.setenv("AWS_ACCESS_KEY_ID", "AKIDOTHER")
        wrong.setenv("AWS_SECRET_ACCESS_KEY", "SECRETOTHER999")
        held = open_store(f"{s3}/out")
        with pytest.raises(AccessError):
            held.keys()
    assert open_store(f"{s3}/out").keys() == []
    assert held.url.endswith("/out")
