"""Bytes by key below one URL, over tensorstore's key-value stores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import tensorstore as ts

from isochunk.errors import AccessError, StorageError, UsageError
from isochunk.storage.access import (
    Access,
    JsonObject,
    context_json,
    kvstore_json,
    names_credentials,
    storage_error,
)
from isochunk.storage.url import Location, parse_url

T = TypeVar("T")

DELETES_IN_FLIGHT = 256


class Store:
    """An :class:`~isochunk.storage.volume.ObjectStore`; every call has a time-out."""

    def __init__(self, location: Location, access: Access, cache_bytes: int = 0) -> None:
        """Take note of the place; nothing is requested yet."""
        self.location = location
        self.url = location.url
        self.access = access
        self.context = ts.Context(context_json(access, cache_bytes))
        self._opened: tuple[JsonObject, ts.KvStore] | None = None
        self._lock = threading.Lock()

    def wait(self, start: Callable[[], Any], doing: str) -> Any:  # noqa: ANN401
        """Start an operation and wait for its result, no longer than the time-out.

        Raises:
            StorageError: it failed; the kind says how.
        """
        try:
            future = start()
            try:
                return future.result(timeout=self.access.timeout_s)
            except TimeoutError:
                future.cancel()
                raise
        except (ValueError, OSError, RuntimeError, IndexError, NotImplementedError) as error:
            raise storage_error(error, doing, self.location) from error

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
        answer = self.wait(lambda: self.kvstore.read(key), f"reading {key!r} of")
        return None if answer.state == "missing" else bytes(answer.value)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Return the bytes of those keys that exist, asked for at the same time.

        Raises:
            AccessError: none was found and storage refused at least one.
        """
        futures = {key: self.kvstore.read(key) for key in keys}
        found, refused = {}, None
        for key, future in futures.items():
            try:
                answer = self.wait(lambda future=future: future, f"reading {key!r} of")  # type: ignore[misc]
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
        return sorted(key.decode() for key in found)

    def exists(self, key: str) -> bool:
        """Tell whether a key exists; its bytes are transferred only over http(s)."""
        if self.location.scheme in ("http", "https"):
            return self.get(key) is not None
        exact = ts.KvStore.KeyRange(key.encode(), key.encode() + b"\0")
        return bool(self.wait(lambda: self.kvstore.list(exact), f"looking for {key!r} of"))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete keys; those that do not exist are no error."""
        self._writable()
        rest = iter(keys)
        while some := list(islice(rest, DELETES_IN_FLIGHT)):
            futures = [(key, self.kvstore.write(key, None)) for key in some]
            for key, future in futures:
                self.wait(lambda future=future: future, f"deleting {key!r} of")  # type: ignore[misc]

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

