"""What support asks first: versions, machine, credentials that are named and not shown, storage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import servers
from jobs import Command

import isochunk
from isochunk.storage.open import open_store

ALL_OK = [{"what": what, "answer": "ok"} for what in ("list", "write", "read", "delete")]


def test_it_says_what_is_installed(run: Command) -> None:
    told = run("doctor")
    assert told["isochunk"] == isochunk.__version__
    assert all(told["packages"].values())
    assert told["cores"] >= 1
    assert "storage" not in told
    out, _ = run.text("doctor")
    assert f"torch {told['packages']['torch']}" in " ".join(out.split())


@pytest.mark.parametrize("place", ["s3", "gcs"])
def test_a_bucket_that_can_be_written(
    run: Command, place: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue(place)
    assert run("doctor", url)["storage"] == {"url": url, "tried": ALL_OK[:1]}
    assert run("doctor", url, "--write")["storage"] == {"url": url, "tried": ALL_OK}
    assert open_store(url).keys() == [], "nothing stays"


def test_credentials_are_named_and_not_shown(
    run: Command, s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del s3  # its environment has a key and a secret
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("[default]\naws_access_key_id = HIDDENEXAMPLE\n")
    told = run("doctor")
    assert told["credentials"]["AWS"] == ["AWS_ACCESS_KEY_ID", "~/.aws/credentials"]
    for said in (json.dumps(told), *run.text("doctor")):
        assert servers.S3_KEY not in said
        assert servers.S3_SECRET not in said
        assert "HIDDENEXAMPLE" not in said


def test_a_bucket_that_refuses(run: Command, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    told = run("doctor", f"{s3}-refused", "--write", code=1)
    (tried,) = told["storage"]["tried"]
    assert tried["what"] == "list"
    assert "credentials" in tried["answer"]


def test_a_place_that_cannot_be_written(run: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    told = run("doctor", f"{tmp_path}/file", "--write", code=1)
    assert told["storage"]["tried"][-1]["what"] in ("list", "write")
    assert told["storage"]["tried"][-1]["answer"] != "ok"
