"""Local volumes in the browser: a read-only file server and neuroglancer's own client."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from isochunk.core.codec import JsonObject
from isochunk.core.spec import VolumeSpec
from isochunk.errors import UsageError
from isochunk.viewing.neuroglancer import (
    LOCAL,
    PUBLIC_NEUROGLANCER,
    Layer,
    neuroglancer_state,
    neuroglancer_url,
)

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
PIECE_BYTES = 1 << 20
POLL_S = 0.1
"""How long closing may take."""
UNREACHABLE = (LOCAL, "http://", "s3+http://")
"""URLs that a page served over https may not read."""

_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Expose-Headers": "Content-Range, Content-Length, ETag",
}


@dataclass(frozen=True, slots=True)
class FolderServer:
    """A folder being served."""

    url: str
    """Where its files are found; ends without a slash."""


@contextmanager
def serve_folder(folder: Path, port: int = 0) -> Iterator[FolderServer]:
    """Serve the files below a folder, read-only, to programs of this machine.

    Any web page may ask a server on this machine, so the URL holds a secret that only those who
    were given the link know.

    Args:
        folder: what to serve; nothing outside it is reachable, not through links either.
        port: 0 for any that is free.

    Raises:
        UsageError: there is no such folder.
    """
    root = folder.expanduser().resolve()
    if not root.is_dir():
        raise UsageError(f"{root} is no folder; a local volume is a folder of files")
    with serving(partial(_FileHandler, root), port) as url:
        yield FolderServer(url)


class LinkHandler(BaseHTTPRequestHandler):
    """Answers those who know the link's secret, from any web page; what with, subclasses say."""

    protocol_version = "HTTP/1.1"
    timeout = 60

    def __init__(self, secret: str, *request: Any) -> None:
        """Answer one connection."""
        self.secret = secret
        super().__init__(*request)

    def do_OPTIONS(self) -> None:
        """Tell the browser that any page with the link may read."""
        self.send_headers(HTTPStatus.NO_CONTENT, {"Content-Length": "0"})

    def requested(self) -> str | None:
        """Return the path that is asked for below the secret; None without the secret."""
        secret, _, path = unquote(urlsplit(self.path).path).removeprefix("/").partition("/")
        if not secrets.compare_digest(secret.encode(), self.secret.encode()):
            return None
        return path

    def send_headers(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        """Send a status and headers, with those that let other pages read."""
        self.send_response(status)
        for name, value in {**_CORS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep requests out of the terminal and the secret out of logs."""
        log.debug("served: %s %s", self.command, " ".join(map(str, args[1:])))


@contextmanager
def serving(handler: Callable[..., LinkHandler], port: int = 0) -> Iterator[str]:
    """Serve on the loopback, one thread a connection, under a URL with a secret in it.

    Args:
        handler: takes the secret and the connection.
        port: 0 for any that is free.

    Yields:
        The URL, without a slash at the end.
    """
    secret = secrets.token_urlsafe(16)
    server = _Server((LOOPBACK, port), partial(handler, secret))
    thread = Thread(target=server.serve_forever, name="isochunk-serve", daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/{secret}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _FileHandler(LinkHandler):
    """GET and HEAD on the files below one folder, whole or one range of bytes."""

    def __init__(self, root: Path, secret: str, *request: Any) -> None:
        self.root = root
        super().__init__(secret, *request)

    def do_GET(self) -> None:
        """Send a file or the part of it that was asked for."""
        self._send_file()

    def do_HEAD(self) -> None:
        """Send what GET would send, without the body."""
        self._send_file()

    def _send_file(self) -> None:
        file = self._file()
        if file is None:
            # A chunk that is not there is background, so this is no error.
            self.send_headers(HTTPStatus.NOT_FOUND, {"Content-Length": "0"})
            return
        with file.open("rb") as content:
            size = file.stat().st_size
            start, stop, status = byte_range(self.headers.get("Range"), size)
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(stop - start),
                "Accept-Ranges": "bytes",
                # Volumes are looked at while they are being written.
                "Cache-Control": "no-cache",
            }
            if status == HTTPStatus.PARTIAL_CONTENT:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            elif status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                headers["Content-Range"] = f"bytes */{size}"
            self.send_headers(status, headers)
            if self.command != "GET":
                return
            content.seek(start)
            # Never more than was announced, though the file may grow meanwhile.
            while start < stop and (piece := content.read(min(PIECE_BYTES, stop - start))):
                self.wfile.write(piece)
                start += len(piece)

    def _file(self) -> Path | None:
        """Return the file that the request names, if it is one below the folder."""
        path = self.requested()
        if path is None:
            return None
        try:
            file = (self.root / path.lstrip("/")).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # not there, a null byte, a loop of links
            return None
        return file if file.is_relative_to(self.root) and file.is_file() else None


class _Server(ThreadingHTTPServer):
    """One thread a connection; leaving does not wait for browsers that keep theirs open."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what the base class would print: browsers drop requests whenever one looks away."""
        log.debug("connection lost", exc_info=True)


def byte_range(header: str | None, size: int) -> tuple[int, int, HTTPStatus]:
    """Read a Range header (RFC 9110): half-open bounds in the file, and the answer's status.

    Several ranges, other units and what cannot be read are ignored, as the RFC allows.
    """
    whole = (0, size, HTTPStatus.OK)
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or not any(match.groups()):
        return whole
    first, last = match.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return whole
    if start >= stop:
        return (0, 0, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
    return (start, stop, HTTPStatus.PARTIAL_CONTENT)


class RunningViewer:
    """Volumes open in neuroglancer until :meth:`close`, or the end of a ``with`` block."""

    def __init__(self, url: str, client: Any, resources: ExitStack) -> None:
        """Hold what has to stay alive.

        Args:
            url: the link to open.
            client: the ``neuroglancer.Viewer`` behind it; None where the link needs no server.
            resources: closed with the viewer.
        """
        self.url = url
        self.client = client
        self._resources = resources
        self._closed = Event()

    def wait(self) -> None:
        """Return when the viewer is closed, or at once where the link needs no server."""
        if self.client is not None:
            self._closed.wait()

    def close(self) -> None:
        """Stop serving the volumes; the link is dead afterwards."""
        self.client = None
        self._closed.set()
        self._resources.close()

    def __enter__(self) -> RunningViewer:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def view(
    target: VolumeSpec,
    source: VolumeSpec | None = None,
    contrast: tuple[float, float] | None = None,
) -> RunningViewer:
    """Show a volume in neuroglancer, beside its source if that is given.

    Volumes that browsers can reach get a link to the public client; it needs nothing running.
    Local ones are served on this machine, together with neuroglancer's own client.

    Args:
        target: the result, or any volume; ``corner_nm`` as planned, which precomputed metadata
            may not hold.
        source: what it was made from.
        contrast: stored values shown as black and white, for both.

    Raises:
        UsageError: a volume is local and the ``neuroglancer`` package is not installed, or its
            folder is not there.
    """
    layers = [Layer("result", target, contrast)]
    if source is not None:
        layers.append(Layer("source", source, contrast))
    if not any(layer.spec.url.startswith(UNREACHABLE) for layer in layers):
        url = neuroglancer_url(PUBLIC_NEUROGLANCER, neuroglancer_state(layers))
        return RunningViewer(url, None, ExitStack())
    with ExitStack() as resources:
        reachable = [_reachable(layer, resources) for layer in layers]
        client = _local_client(neuroglancer_state(reachable))
        return RunningViewer(client.get_viewer_url(), client, resources.pop_all())


def _reachable(layer: Layer, resources: ExitStack) -> Layer:
    """Serve a layer's folder if it is on this machine."""
    if not layer.spec.url.startswith(LOCAL):
        return layer
    server = resources.enter_context(serve_folder(Path(layer.spec.url.removeprefix(LOCAL))))
    return replace(layer, spec=replace(layer.spec, url=server.url))


def _local_client(state: JsonObject) -> Any:
    try:
        import neuroglancer
    except ImportError as error:
        raise UsageError(
            "local volumes are shown with the neuroglancer package, which is not installed; "
            "pip install 'isochunk[view]'"
        ) from error
    neuroglancer.set_server_bind_address(LOOPBACK)
    client = neuroglancer.Viewer()
    client.set_state(state)
    return client
