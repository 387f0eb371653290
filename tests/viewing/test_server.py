"""The local file server, asked over real sockets, and what ``view`` hands out."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isochunk.core.geometry import Box, Spacing
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.errors import UsageError
from isochunk.storage.open import create_volume, open_volume
from isochunk.viewing.server import byte_range, serve_folder, view

ORIGIN = (Fraction(0),) * 3
CONTENT = bytes(range(200))
LARGE_BYTES = 64 << 20


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "chunk").write_bytes(CONTENT)
    (folder / "empty").touch()
    (folder / "inside").symlink_to(folder / "sub" / "chunk")
    (folder / "outside").symlink_to(tmp_path / "private")
    (folder / "loop").symlink_to(folder / "loop")
    (tmp_path / "private").write_text("secret")
    (tmp_path / "served-too").mkdir()
    (tmp_path / "served-too" / "file").write_text("secret")
    with serve_folder(folder) as url:
        yield url


def ask(
    url: str, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[HTTPResponse, bytes]:
    """Ask without any client tidying up the path."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        connection.request(method, parts.path + path, headers=headers or {})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_files_are_sent_whole_and_head_sends_no_body(served):
    response, body = ask(served, "/sub/chunk")
    assert (response.status, body) == (200, CONTENT)
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert response.headers["Accept-Ranges"] == "bytes"
    response, body = ask(served, "/sub/chunk", "HEAD")
    assert (response.status, body) == (200, b"")
    assert response.headers["Content-Length"] == "200"
    assert ask(served, "/inside")[1] == CONTENT
    assert ask(served, "/empty")[0].status == 200


@pytest.mark.parametrize(
    ("asked", "status", "body", "content_range"),
    [
        ("bytes=0-0", 206, CONTENT[:1], "bytes 0-0/200"),
        ("bytes=10-19", 206, CONTENT[10:20], "bytes 10-19/200"),
        ("bytes=190-", 206, CONTENT[190:], "bytes 190-199/200"),
        ("bytes=-16", 206, CONTENT[-16:], "bytes 184-199/200"),
        ("bytes=-500", 206, CONTENT, "bytes 0-199/200"),
        ("bytes=150-999", 206, CONTENT[150:], "bytes 150-199/200"),
        ("bytes=200-", 416, b"", "bytes */200"),
        ("bytes=-0", 416, b"", "bytes */200"),
        ("bytes=9-3", 200, CONTENT, None),
        ("bytes=0-1,5-6", 200, CONTENT, None),
        ("lines=0-1", 200, CONTENT, None),
        ("bytes=-", 200, CONTENT, None),
        ("bytes=" + "9" * 5000 + "-", 200, CONTENT, None),
        ("bytes=٣-٤", 200, CONTENT, None),
    ],
)
def test_a_range_header_is_answered_as_the_rfc_says(served, asked, status, body, content_range):
    response, got = ask(served, "/sub/chunk", headers={"Range": asked.encode()})
    assert (response.status, got) == (status, body)
    assert response.headers["Content-Range"] == content_range


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_a_range_is_the_bytes_that_exist_of_it(size, first, last):
    start, stop, status = byte_range(f"bytes={first}-{last}", size)
    wanted = [i for i in range(size) if first <= i <= last]
    if last < first:
        assert (start, stop, status) == (0, size, 200)
    elif wanted:
        assert (list(range(start, stop)), status) == (wanted, 206)
    else:
        assert (start, stop, status) == (0, 0, 416)


@pytest.mark.parametrize(
    "path",
    [
        "/missing",
        "/sub",
        "/",
        "",
        "/outside",
        "/loop",
        "/../private",
        "/%2e%2e/private",
        "/sub/../../private",
        "/..%2fprivate",
        "/../served-too/file",
        "//etc/passwd",
        "/%00",
        "/" + "x" * 5000,
    ],
)
def test_only_files_below_the_folder_can_be_reached(served, path):
    response, body = ask(served, path)
    assert (response.status, body) == (404, b"")
    assert response.headers["Access-Control-Allow-Origin"] == "*"


def test_without_the_secret_nothing_is_there(served):
    base = served.rsplit("/", 1)[0]
    assert ask(base, "/sub/chunk")[0].status == 404
    assert ask(base, "/guess/sub/chunk")[0].status == 404
    assert urlsplit(served).hostname == "127.0.0.1"


def test_methods_that_write_are_refused(served):
    for method in ("PUT", "POST", "DELETE"):
        assert ask(served, "/sub/chunk", method)[0].status == 501
    assert ask(served, "/sub/chunk")[1] == CONTENT


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/sub/chunk", "OPTIONS", 204),
        ("/sub/chunk", "PUT", 501),
        ("/sub/chunk", "GET", 200),
        ("/missing", "HEAD", 404),
    ],
)
def test_pages_from_anywhere_may_read_every_answer(served, path, method, status):
    response, _ = ask(served, path, method)
    assert response.status == status
    assert response.headers.get_all("Access-Control-Allow-Origin") == ["*"]
    assert response.headers["Access-Control-Allow-Methods"] == "GET, HEAD, OPTIONS"


def test_browsers_ask_again_since_volumes_are_looked_at_while_they_are_written(tmp_path):
    chunk = tmp_path / "chunk"
    with serve_folder(tmp_path) as url:
        assert ask(url, "/chunk")[0].status == 404
        for content in (b"first", b"other"):
            chunk.write_bytes(content)
            response, body = ask(url, "/chunk")
            assert body == content
            assert response.headers["Cache-Control"] == "no-cache"
            assert response.headers["Content-Type"] == "application/octet-stream"


@contextmanager
def asked_for_a_large_file(folder: Path) -> Iterator[HTTPConnection]:
    """Ask for more than the buffers between client and server hold, and do not read it yet."""
    with (folder / "large").open("wb") as file:
        file.truncate(LARGE_BYTES)
    with serve_folder(folder) as url:
        parts = urlsplit(url)
        connection = HTTPConnection(parts.hostname, parts.port, timeout=10)
        connection.request("GET", parts.path + "/large")
        yield connection
        connection.close()


def test_of_a_file_that_grows_no_more_is_sent_than_announced(tmp_path):
    with asked_for_a_large_file(tmp_path) as connection:
        response = connection.getresponse()
        with (tmp_path / "large").open("ab") as file:
            file.write(CONTENT)
        assert len(response.read()) == LARGE_BYTES
        # What follows on the same connection is the next answer, not the file's new end.
        connection.request("GET", "/")
        assert connection.getresponse().status == 404


def test_of_a_file_that_shrinks_the_answer_ends_with_the_connection(tmp_path):
    with asked_for_a_large_file(tmp_path) as connection:
        response = connection.getresponse()
        os.truncate(tmp_path / "large", LARGE_BYTES // 2)
        with pytest.raises(IncompleteRead):
            response.read()


def test_the_secret_is_not_logged(served, caplog):
    caplog.set_level(logging.DEBUG)
    for path in ("/sub/chunk", "/missing", "/not a request", "/%00", "/" + "x" * 70_000):
        parts = urlsplit(served)
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(f"GET {parts.path}{path} HTTP/1.1\r\n\r\n".encode())
            assert connection.recv(1000)
    assert parts.path.strip("/") not in caplog.text


def test_a_browser_that_hangs_up_prints_nothing(served, capfd):
    parts = urlsplit(served)
    for _ in range(3):
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(b"GET / HTTP/1.1\r\nHos")
    assert ask(served, "/sub/chunk")[1] == CONTENT
    assert capfd.readouterr() == ("", "")


def test_the_server_ends_with_its_block(tmp_path):
    with serve_folder(tmp_path) as url:
        parts = urlsplit(url)
        kept_open = socket.create_connection((parts.hostname, parts.port), timeout=10)
        kept_open.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert kept_open.recv(1 << 16)
    assert kept_open.recv(1) == b"", "browsers are hung up on"
    kept_open.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((parts.hostname, parts.port))


def test_what_is_no_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no folder"), serve_folder(tmp_path / "missing"):
        pass


@pytest.mark.parametrize(
    ("format_", "encoding", "shard"),
    [
        ("precomputed", "raw", (32, 32, 32)),
        ("zarr3", "zstd", (32, 32, 32)),
        ("zarr2", "zstd", None),
    ],
)
def test_tensorstore_reads_a_served_volume(tmp_path, format_, encoding, shard):
    level = LevelSpec("s0", Box.from_shape((40, 50, 60)), Spacing.parse("8,8,8"), (16,) * 3, shard)
    spec = VolumeSpec(str(tmp_path / "v"), format_, "uint8", encoding, ORIGIN, (level,))
    voxels = np.random.default_rng(0).integers(1, 255, level.box.shape, dtype=np.uint8)
    create_volume(spec).write(level.box, voxels)
    with serve_folder(tmp_path / "v") as url:
        np.testing.assert_array_equal(open_volume(url).read(level.box), voxels)


LEVEL = LevelSpec("s0", Box.from_shape((4, 4, 4)), Spacing.parse("8,8,8"), (4, 4, 4), None)
CLOUD = VolumeSpec("gs://bucket/volume", "precomputed", "uint8", "raw", ORIGIN, (LEVEL,))


def test_cloud_volumes_need_no_server():
    with view(CLOUD, replace(CLOUD, url="s3://bucket/source")) as viewer:
        assert viewer.client is None
        viewer.wait()  # returns: there is nothing to wait for
        assert viewer.url.startswith("https://neuroglancer-demo.appspot.com/#!")


def test_local_volumes_are_served_on_this_machine_only(tmp_path):
    local = replace(CLOUD, url=tmp_path.as_uri())
    (tmp_path / "info").write_text("{}")
    with view(local, CLOUD) as viewer:
        assert urlsplit(viewer.url).hostname == "127.0.0.1"
        sources = {v.name: v.source[0].url for v in viewer.client.state.layers}
        assert sources["source"] == "gs://bucket/volume/|neuroglancer-precomputed:"
        assert ask(sources["result"].split("/|")[0], "/info")[1] == b"{}"
    with pytest.raises(ConnectionRefusedError):
        ask(sources["result"].split("/|")[0], "/info")


def test_without_the_neuroglancer_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "neuroglancer", None)
    with pytest.raises(UsageError, match=r"isochunk\[view\]"):
        view(replace(CLOUD, url=tmp_path.as_uri()))
