"""Bytes by key below one URL, over tensorstore's key-value stores."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import tensorstore as ts

from isochunk.core.codec import JsonObject
from isochunk.errors import AccessError, StorageError, UsageError
from isochunk.storage.access import (
    SILENCE,
    Access,
    kvstore_json,
    limits_json,
    names_credentials,
    retries_json,
    storage_error,
    without_secrets,
)
from isochunk.storage.url import Location, parse_url

T = TypeVar("T")

DELETES_IN_FLIGHT = 256


@lru_cache(maxsize=32)
def process_context(limits: Access) -> ts.Context:
    """Return the context whose limits all volumes of this process share.

    A cap on requests that each volume had for itself would be no cap.
    """
    # tensorstore gives a request no time-out: one whose server fell silent would hang for half an
    # hour. This watch is read from the environment, at the first request of a process.
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    silence_s = max(1, round(SILENCE * limits.timeout_s))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(silence_s))
    return ts.Context(limits_json(limits))


def volume_context(access: Access, cache_bytes: int) -> ts.Context:
    """Return the context of one volume: a cache of its own, limits shared with the others."""
    shared = process_context(
        Access(timeout_s=access.timeout_s, requests=access.requests, slow_start=access.slow_start)
    )
    own = {
        "cache_pool": {"total_bytes_limit": cache_bytes},
        "memory_key_value_store": {},
        **retries_json(access),
    }
    return ts.Context(own, parent=shared)


class Store:
    """An :class:`~isochunk.storage.volume.ObjectStore`; every call has a time-out."""

    def __init__(self, location: Location, access: Access, cache_bytes: int = 0) -> None:
        """Take note of the place; nothing is requested yet."""
        self.location = location
        self.url = location.url
        self.access = access
        self.context = volume_context(access, cache_bytes)
        self._opened: tuple[JsonObject, ts.KvStore] | None = None
        self._lock = threading.Lock()

    def start(self, begin: Callable[[], Any], doing: str) -> Callable[[], Any]:
        """Start an operation; the answer waits for its result, until the time-out from now.

        Raises:
            StorageError: it failed; the kind says how.
        """
        end = time.monotonic() + self.access.timeout_s
        with self._told(doing):
            future = begin()

        def finish() -> Any:
            with self._told(doing):
                try:
                    return future.result(timeout=max(0.0, end - time.monotonic()))
                except TimeoutError:
                    future.cancel()
                    raise

        return finish

    def wait(self, begin: Callable[[], Any], doing: str) -> Any:
        """Start an operation and wait for its result; see :meth:`start`."""
        return self.start(begin, doing)()

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Put what the library raises into words."""
        try:
            yield
        except StorageError:
            raise  # an operation within, in words already
        except (ValueError, OSError, RuntimeError, IndexError, NotImplementedError) as error:
            raise storage_error(error, doing, self.location) from without_secrets(error)

    @property
    def kvstore(self) -> ts.KvStore:
        """The key-value store, opened at first use."""
        return self._open()[1]

    @property
    def kvstore_json(self) -> JsonObject:
        """The key-value store's spec, for arrays in it."""
        return self._open()[0]

    def _open(self) -> tuple[JsonObject, ts.KvStore]:
        with self._lock:
            if self._opened is None:
                self._opened = self._choose()
            return self._opened

    def _choose(self) -> tuple[JsonObject, ts.KvStore]:
        """Open the store; where no AWS credentials are configured, anonymously if that works."""
        default = kvstore_json(self.location, self.access)
        if self.location.scheme != "s3" or names_credentials(os.environ, Path.home()):
            return self._connect(default)
        anonymous = self._connect(kvstore_json(self.location, self.access, anonymous=True))
        if self._refuses(anonymous[1]):
            with_role = self._connect(default)
            if not self._refuses(with_role[1]):
                return with_role
        return anonymous

    def _connect(self, spec: JsonObject) -> tuple[JsonObject, ts.KvStore]:
        store = self.wait(lambda: ts.KvStore.open(spec, context=self.context), "opening")
        return spec, store

    def _refuses(self, kvstore: ts.KvStore) -> bool:
        try:
            self.wait(lambda: kvstore.read("info"), "reading 'info' of")
        except StorageError:
            return True
        return False

    def get(self, key: str) -> bytes | None:
        """Return the bytes, or None if the key does not exist."""
        answer = self._start_get(key)()
        return None if answer.state == "missing" else bytes(answer.value)

    def _start_get(self, key: str) -> Callable[[], Any]:
        return self.start(lambda: self.kvstore.read(key), f"reading {key!r} of")

    def get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the bytes of each key, asked for at the same time; None where it is absent."""
        started = [self._start_get(key) for key in keys]
        answers = [finish() for finish in started]
        return [None if a.state == "missing" else bytes(a.value) for a in answers]

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Return the bytes of those keys that exist, asked for at the same time.

        Raises:
            AccessError: none was found and storage refused at least one.
        """
        reads = {key: self._start_get(key) for key in keys}
        found, refused = {}, None
        for key, finish in reads.items():
            try:
                answer = finish()
            except AccessError as error:  # S3 answers 403 for absent keys if it may not list
                refused = error
                continue
            if answer.state != "missing":
                found[key] = bytes(answer.value)
        if refused and not found:
            raise refused
        return found

    def put(self, key: str, value: bytes) -> None:
        """Write or replace one object atomically."""
        self._writable()
        self.wait(lambda: self.kvstore.write(key, value), f"writing {key!r} of")

    def keys(self, prefix: str = "") -> list[str]:
        """List keys that start with ``prefix``, sorted.

        Raises:
            UsageError: http(s) servers cannot list.
        """
        if self.location.scheme in ("http", "https"):
            raise UsageError(f"{self.url} cannot be listed over http; use s3://, gs:// or a path")
        first = prefix.encode()
        beyond = first[:-1] + bytes([first[-1] + 1]) if first else b""
        found = self.wait(
            lambda: self.kvstore.list(ts.KvStore.KeyRange(first, beyond)), f"listing {prefix!r} of"
        )
        if not found and self.location.scheme == "gs":
            self.get(f"{prefix}?")  # tensorstore takes a refusal for an empty list; this raises
        return sorted(key.decode() for key in found)

    def exists(self, key: str) -> bool:
        """Tell whether a key exists."""
        return not self.absent([key])

    def absent(self, keys: Sequence[str]) -> list[str]:
        """Return those keys that do not exist; bytes are transferred only over http(s)."""
        if self.location.scheme in ("http", "https"):
            found = self.get_many(keys)
            return [key for key in keys if key not in found]
        ranges = {key: ts.KvStore.KeyRange(key.encode(), key.encode() + b"\0") for key in keys}
        listed = {
            key: self.start(lambda exact=exact: self.kvstore.list(exact), f"looking for {key!r} of")  # type: ignore[misc]
            for key, exact in ranges.items()
        }
        missing = [key for key, finish in listed.items() if not finish()]
        if missing and self.location.scheme == "gs":
            found = self.get_many(missing)  # as in keys(): an empty list proves nothing
            missing = [key for key in missing if key not in found]
        return missing

    def delete(self, keys: Iterable[str]) -> None:
        """Delete keys; those that do not exist are no error."""
        rest = iter(keys)
        while some := list(islice(rest, DELETES_IN_FLIGHT)):
            self.start_delete(some)()

    def start_delete(self, keys: Sequence[str]) -> Callable[[], None]:
        """Start to delete keys; the answer waits for the end."""
        self._writable()
        started = [
            self.start(lambda key=key: self.kvstore.write(key, None), f"deleting {key!r} of")  # type: ignore[misc]
            for key in keys
        ]

        def finish() -> None:
            for done in started:
                done()

        return finish

    def _writable(self) -> None:
        check_writable(self.location)


def check_writable(location: Location) -> None:
    """Check that a location can be written at all.

    Raises:
        UsageError: it is served over http(s) or by a graphene server.
    """
    if location.scheme not in ("file", "s3", "gs", "memory"):
        raise UsageError(f"{location.url} is read only; write to a path, s3:// or gs://")


def open_store(url: str, access: Access | None = None) -> Store:
    """Open the objects below a URL.

    Raises:
        UsageError: the URL cannot be understood.
    """
    location = parse_url(url)
    if location.scheme == "graphene":
        raise UsageError(f"{location.url} has no objects; a graphene volume is a source only")
    return Store(location, access or Access())
