"""Buckets whose requester pays: nothing is asked of them but by a project that is billed for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
import tensorstore as ts
from jobs import Command, noise, read_all, write_source

import isochunk
from isochunk.core.codec import to_json
from isochunk.engine.target import open_written_target
from isochunk.errors import AccessError, UsageError
from isochunk.storage.cloudvolume import open_cloudvolume
from isochunk.storage.open import Access, open_store, open_volume
from isochunk.storage.url import parse_url

PROJECT = "lab-project-7"
PAYING = f"--requester-pays={PROJECT}"
HINT = (
    r"access refused.*; its requester pays: name the project to be billed with "
    r"--requester-pays PROJECT \(requester_pays in Python\)$"
)
SMALL = ("--model=cubic", "--chunk=16,16,16", "--shard=32,32,32", "--block=32,32,32")
SHAPE = (8, 32, 32)


@pytest.fixture
def faults() -> servers.Faults:
    return servers.Faults(requester_pays=True)


@pytest.fixture
def bucket(
    gcs: str,
    gcs_server: servers.ObjectServer,
    faults: servers.Faults,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """A bucket whose requester pays, with a source."""
    write_source(f"{gcs}/in", noise(SHAPE))
    with servers.proxy(gcs_server.endpoint_url, faults) as url:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        yield gcs


def test_a_job_that_pays(bucket: str, faults: servers.Faults, run: Command) -> None:
    """Source, target and record are read and written by every command that names a project."""
    source, target = f"{bucket}/in", f"{bucket}/out"
    for words in (("info", source), ("plan", source, target, *SMALL), ("inspect", source)):
        assert re.search(HINT, run(*words, code=2)["error"])
        run(*words, PAYING)
    assert run("run", source, target, *SMALL, PAYING)["complete"] is True
    for command in ("status", "audit", "repair"):
        assert re.search(HINT, run(command, target, code=2)["error"])
        assert run(command, target, PAYING)["complete"] is True
    paid = [path for _, path in faults.requests if "userProject=" in path]
    assert len(paid) > 20
    assert all(f"userProject={PROJECT}" in path for path in paid)
    faults.requester_pays = False  # to look at what was made
    job = json.loads(open_store(target).get(".isochunk/job.json") or b"")["plan"]["job"]
    assert job["requester_pays"] == PROJECT
    assert read_all(target).shape == (32, 32, 32)


def test_a_record_has_nobody_billed(bucket: str, faults: servers.Faults, run: Command) -> None:
    """Who takes a target up says himself which project pays."""
    target = f"{bucket}/out"
    run("run", f"{bucket}/in", target, *SMALL, PAYING)
    other = open_written_target(target, requester_pays="another-project")
    assert other.plan.job.requester_pays == "another-project"
    faults.requester_pays = False
    assert open_written_target(target).plan.job.requester_pays is None


def test_from_python(bucket: str) -> None:
    volume = isochunk.open(f"{bucket}/in", requester_pays=PROJECT)
    assert volume.read(volume.spec.box).shape == SHAPE
    assert len(isochunk.inspect(volume).profiles) == SHAPE[0]
    with pytest.raises(UsageError, match="cloud-volume, which cannot be told who pays"):
        open_cloudvolume(parse_url(f"{bucket}/in"), Access(requester_pays=PROJECT))


def test_who_pays_is_no_part_of_a_job(tmp_path: Path) -> None:
    source = write_source(f"file://{tmp_path}/in", noise(SHAPE))
    fields = {"source": source, "target": f"{tmp_path}/out", "model": "cubic"}
    usual, paying = (isochunk.Job(**fields, **more) for more in ({}, {"requester_pays": PROJECT}))
    assert isochunk.plan(usual).identity() == isochunk.plan(paying).identity()
    assert "requester_pays" not in to_json(usual)
    for wrong in (True, "", "me", "My Project"):
        with pytest.raises(UsageError, match=r"requester_pays is .*; write the ID of a Google"):
            isochunk.Job(**fields, requester_pays=wrong)


def test_a_bucket_of_s3_that_refuses(
    s3: str, s3_server: servers.ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 does not say why; the message names this reason too, and what to do."""
    write_source(f"{s3}/in", noise(SHAPE))
    with servers.proxy(s3_server.endpoint_url, servers.Faults(always={"/in": 403})) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(AccessError, match=r"if the requester pays for the bucket, copy"):
            open_volume(f"{s3}/in")


def test_tensorstore_cannot_pay_s3(s3: str, s3_server: servers.ObjectServer) -> None:
    """Its header is not S3's. Where this fails, ``--requester-pays`` can serve S3 as well."""
    bucket, _, path = s3.removeprefix("s3://").partition("/")
    faults = servers.Faults()
    with servers.proxy(s3_server.endpoint_url, faults) as url:
        spec = {
            "driver": "s3",
            "bucket": bucket,
            "path": f"{path}/",
            "requester_pays": True,
            "endpoint": url,
            "aws_region": "us-east-1",
            "aws_credentials": {"type": "environment"},
        }
        assert ts.KvStore.open(spec).result().read("none").result().state == "missing"
    (signed,) = [seen for seen in faults.seen if "SignedHeaders=" in seen]
    assert "x-amz-requester-payer" in signed
    assert "x-amz-request-payer" not in signed
