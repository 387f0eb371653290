"""Local volumes in the browser: a read-only file server and neuroglancer's own client."""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
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
    SUFFIXES,
    FilledSections,
    Layer,
    check_shown,
    neuroglancer_state,
    neuroglancer_url,
)

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
CLOSING_S = 0.1
"""How long closing may take."""
UNREACHABLE = (LOCAL, "http://", "s3+http://")
"""URLs that a page served over https may not read."""

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_ANY_PAGE_MAY_READ = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Expose-Headers": "Content-Range, Content-Length",
}


@contextmanager
def serve_folder(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve the files below a folder, read-only, to programs of this machine.

    Args:
        folder: what to serve; nothing outside it is reachable, not through links either.
        port: 0 for any that is free.

    Yields:
        The folder's URL, as of :func:`serve_link`.

    Raises:
        UsageError: there is no such folder.
    """
    root = folder.expanduser().resolve()
    if not root.is_dir():
        raise UsageError(f"{root} is no folder; a local volume is a folder of files")
    with serve_link(partial(_FileHandler, root), port) as url:
        yield url


@contextmanager
def serve_link(handler: Callable[..., LinkHandler], port: int = 0) -> Iterator[str]:
    """Serve on the loopback, one thread a connection, until the end of the ``with`` block.

    Any web page may ask a server on this machine, so the URL holds a secret that only those who
    were given the link know.

    Args:
        handler: makes the handler of a connection from what ``http.server`` passes.
        port: 0 for any that is free.

    Yields:
        The URL, without a slash at the end.
    """
    server = _LinkServer((LOOPBACK, port), handler)
    thread = Thread(
        target=server.serve_forever, args=(CLOSING_S,), name="isochunk-serve", daemon=True
    )
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/{server.secret}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _LinkServer(ThreadingHTTPServer):
    """One thread a connection; closing hangs up on browsers that keep theirs open."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: Callable[..., LinkHandler]) -> None:
        self.secret = secrets.token_urlsafe(16)
        self._connections: set[Any] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End one connection."""
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Take no more connections and end those there are, whose threads end with them."""
        super().server_close()
        for connection in self._connections.copy():
            with suppress(OSError):  # the browser was first
                connection.shutdown(SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what the base class would print: browsers drop requests whenever one looks away."""
        log.debug("connection lost", exc_info=True)


class LinkHandler(BaseHTTPRequestHandler):
    """Answers those who know the link's secret, from any web page; what with, subclasses say."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    """Seconds for which a connection may be idle."""
    server: _LinkServer

    def answer(self, path: str) -> None:
        """Answer a GET or HEAD for the path below the secret."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer those who know the secret; to others nothing is there."""
        secret, _, path = unquote(urlsplit(self.path).path).removeprefix("/").partition("/")
        if secrets.compare_digest(secret.encode(), self.server.secret.encode()):
            self.answer(path)
        else:
            self.send_not_found()

    def do_HEAD(self) -> None:
        """Send what GET would send; :meth:`answer` leaves out the body."""
        self.do_GET()

    def do_OPTIONS(self) -> None:
        """Tell the browser that any page with the link may read."""
        self.send_head(HTTPStatus.NO_CONTENT, 0)

    def send_not_found(self) -> None:
        """Say that nothing is there; a missing chunk is background, so this is no error."""
        self.send_head(HTTPStatus.NOT_FOUND, 0)

    def send_head(
        self, status: HTTPStatus, length: int, headers: dict[str, str] | None = None
    ) -> None:
        """Send a status and headers; ``length`` is that of the body in bytes."""
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def end_headers(self) -> None:
        """Let other pages read every answer, errors of the base class too."""
        for name, value in _ANY_PAGE_MAY_READ.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep requests out of the terminal, and the secret that they hold out of logs."""


class _FileHandler(LinkHandler):
    """Files below one folder, whole or one range of bytes."""

    def __init__(self, root: Path, *request: Any) -> None:
        self.root = root
        super().__init__(*request)

    def answer(self, path: str) -> None:
        """Send a file or the part of it that was asked for."""
        file = self._file(path)
        if file is None:
            self.send_not_found()
            return
        with file.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            start, stop, status = byte_range(self.headers.get("Range"), size)
            headers = {
                "Content-Type": "application/octet-stream",
                "Accept-Ranges": "bytes",
                # Volumes are looked at while they are being written.
                "Cache-Control": "no-cache",
            }
            if status == HTTPStatus.PARTIAL_CONTENT:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
            elif status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                headers["Content-Range"] = f"bytes */{size}"
            length = stop - start
            self.send_head(status, length, headers)
            if length and self.command == "GET":
                # Never more than was announced, though the file may grow meanwhile. If it
                # shrinks, the next answer would be taken for the rest of this one.
                sent = self.connection.sendfile(content, start, length)
                self.close_connection |= sent < length

    def _file(self, path: str) -> Path | None:
        """Return the file at a path, if it is one below the folder."""
        try:
            file = (self.root / path.lstrip("/")).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # not there, a null byte, a loop of links
            return None
        return file if file.is_relative_to(self.root) and file.is_file() else None


def byte_range(header: str | None, size: int) -> tuple[int, int, HTTPStatus]:
    """Read a Range header (RFC 9110): half-open bounds in the file, and the answer's status.

    Several ranges, other units and what cannot be read are ignored, as the RFC allows.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    first, last = match.groups() if match else ("", "")
    if not (first or last) or (first and last and int(last) < int(first)):
        return (0, size, HTTPStatus.OK)
    if first:
        start, stop = int(first), min(size, int(last) + 1) if last else size
    else:
        start, stop = max(0, size - int(last)), size
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
    filled: FilledSections | None = None,
    source_contrast: tuple[float, float] | None = None,
) -> RunningViewer:
    """Show a volume in neuroglancer, beside its source if that is given.

    Volumes that browsers can reach get a link to the public client; it needs nothing running.
    Local ones are served on this machine, together with neuroglancer's own client.

    Args:
        target: the result, or any volume; ``corner_nm`` as planned, which precomputed metadata
            may not hold.
        source: what it was made from.
        contrast: stored values shown as black and white, for both.
        filled: sections of the source that the result was not made from; a layer marks them.
        source_contrast: the source's own, where its values are others.

    Raises:
        UsageError: a volume is local and the ``neuroglancer`` package is not installed, or its
            folder is not there; or neuroglancer does not read the target's format. A source that
            it does not read is left out.
    """
    check_shown(target)
    layers = [Layer("result", target, contrast)]
    if source is not None and source.format not in SUFFIXES:
        log.warning("neuroglancer does not read %s: %s is not shown", source.format, source.url)
    elif source is not None:
        layers.append(Layer("source", source, source_contrast or contrast))
    if not any(layer.spec.url.startswith(UNREACHABLE) for layer in layers):
        url = neuroglancer_url(PUBLIC_NEUROGLANCER, neuroglancer_state(layers, filled=filled))
        return RunningViewer(url, None, ExitStack())
    with ExitStack() as resources:
        reachable = [_reachable(layer, resources) for layer in layers]
        client = _local_client(neuroglancer_state(reachable, filled=filled))
        return RunningViewer(client.get_viewer_url(), client, resources.pop_all())


def _reachable(layer: Layer, resources: ExitStack) -> Layer:
    """Serve a layer's folder if it is on this machine."""
    if not layer.spec.url.startswith(LOCAL):
        return layer
    url = resources.enter_context(serve_folder(Path(layer.spec.url.removeprefix(LOCAL))))
    return replace(layer, spec=replace(layer.spec, url=url))


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
