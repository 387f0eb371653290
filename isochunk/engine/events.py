"""The event log of a target: what happened when, one JSON object a line, beside the ledger.

Object stores cannot append, so lines are gathered and stored as small objects whose names sort by
time. Two submitters write to names of their own.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from isochunk.storage.volume import ObjectStore

EVENTS_PREFIX = ".isochunk/events/"

STORE_S = 10.0
"""Lines are gathered this long before they are stored."""

Notify: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Takes an event's name and its details, which JSON can hold."""


class EventLog:
    """Takes events; :meth:`flush` stores them."""

    def __init__(self, store: ObjectStore) -> None:
        """Take note of the place; nothing is stored yet."""
        self.store = store
        self._lines: list[str] = []
        self._session = uuid.uuid4().hex[:12]
        self._stored = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether lines have waited long enough to be stored."""
        return bool(self._lines) and time.monotonic() - self._stored >= STORE_S

    def add(self, event: str, details: Mapping[str, Any]) -> None:
        """Take an event that happened now; details hold no credentials."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "session": self._session, "event": event, **details}
        self._lines.append(json.dumps(line))

    def flush(self) -> None:
        """Store the lines taken since the last time; they are kept where that fails."""
        if self._lines:
            name = f"{EVENTS_PREFIX}{time.time_ns():020d}-{self._session}.jsonl"
            self.store.put(name, ("\n".join(self._lines) + "\n").encode())
            self._lines.clear()
        self._stored = time.monotonic()


def read_events(store: ObjectStore) -> Iterator[dict[str, Any]]:
    """Yield the events of a target, oldest first."""
    for name in store.keys(EVENTS_PREFIX):
        for line in (store.get(name) or b"").decode().splitlines():
            yield json.loads(line)


def last_event(store: ObjectStore) -> dict[str, Any] | None:
    """Return the newest event of a target, or None if there is none."""
    names = store.keys(EVENTS_PREFIX)
    lines = (store.get(names[-1]) or b"").decode().splitlines() if names else []
    return json.loads(lines[-1]) if lines else None
