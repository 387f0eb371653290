"""The record of finished blocks, kept in the target itself.

``TARGET/.isochunk/job.json`` holds the plan. ``TARGET/.isochunk/ledger/`` holds small segments that
are only ever added, and folds of many segments into one table. What is recorded is their union, so
two submitters at once, or one that dies between any two writes, lose nothing that was written.
Names sort by time; where two records disagree on a block, the later one holds.
"""

from __future__ import annotations

import io
import json
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isochunk.core.codec import from_json, to_json
from isochunk.errors import AccessError, CorruptDataError, TargetConflictError, UsageError
from isochunk.planning.block import Reports
from isochunk.planning.plan import Plan
from isochunk.storage.volume import ObjectStore

JOB_KEY = ".isochunk/job.json"
LEDGER_PREFIX = ".isochunk/ledger/"
FOLD_SEGMENTS = 256
"""Segments that one submitter writes before it folds them."""

READ_TOGETHER = 64
"""Records read at the same time: one after the other they would take minutes from far away."""

SCAN = 1 << 16
"""Blocks looked at together when listing what is missing."""

ENTRY = np.dtype([("stage", "<u2"), ("index", "<u8"), ("checksum", "<u4"), ("state", "u1")])
STORED, EMPTY, LOST = 0, 1, 2
"""States of an entry: finished; finished, and all background; found to be missing or corrupt."""

RECORDED = np.dtype([("checksum", "<u4"), ("state", "u1")])
"""What an audit needs to know of a block; one that was never finished is LOST, too."""


@dataclass(frozen=True, slots=True)
class Table:
    """What is recorded of one stage, one value a block."""

    done: NDArray[np.bool_]
    """Finished and stored."""
    empty: NDArray[np.bool_]
    """Finished, and all background."""
    checksum: NDArray[np.uint32]
    """CRC-32 of the first level's voxels."""

    @classmethod
    def blank(cls, blocks: int) -> Table:
        """Return the table of a stage of which nothing is done."""
        return cls(
            np.zeros(blocks, np.bool_), np.zeros(blocks, np.bool_), np.zeros(blocks, np.uint32)
        )


def write_job(store: ObjectStore, plan: Plan, version: str) -> None:
    """Write ``job.json``: the plan and the version that made it. It holds no credentials."""
    record = {"isochunk": version, "plan": to_json(plan)}
    store.put(JOB_KEY, json.dumps(record, indent=1).encode())


def read_job(store: ObjectStore) -> Plan | None:
    """Read the plan that a target was made by, or None if there is none.

    Raises:
        UsageError: ``job.json`` cannot be read by this version.
        AccessError: it can be read but not listed.
    """
    data = store.get(JOB_KEY)
    if data is None:
        return None
    if not store.keys(JOB_KEY):  # or all that is recorded would seem to be undone
        raise AccessError(
            f"{store.url}/{JOB_KEY} can be read, but is not listed: access to lists is refused; "
            "what is done is found by listing, allow it (GCS: storage.objects.list)"
        )
    try:
        return from_json(Plan, json.loads(data)["plan"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{store.url}/{JOB_KEY} is not a job of this version: {error}") from error


def check_same_job(store: ObjectStore, old: Plan, new: Plan) -> None:
    """Make sure that two plans give the same bytes.

    Raises:
        TargetConflictError: they do not; the message names what differs.
    """
    changes = list(differences(old.identity(), new.identity()))
    if changes:
        raise TargetConflictError(
            f"{store.url} holds another job: {'; '.join(changes[:5])}"
            f"{'; ...' if len(changes) > 5 else ''}. "  # noqa: PLR2004
            "Choose another target, or --overwrite to delete that output first"
        )


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield every leaf at which two JSON values differ; an object that is not there is empty."""
    both = [{} if value is None else value for value in (old, new)]
    if old != new and all(isinstance(value, dict) for value in both):
        old, new = both
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path} was {old} and is now {new}"


class Ledger:
    """The record of one target, held in memory as bitmaps and written through to storage."""

    def __init__(self, store: ObjectStore, plan: Plan) -> None:
        """Read what is recorded so far.

        Raises:
            CorruptDataError: a segment is damaged.
        """
        self.store = store
        self.tables = [Table.blank(plan.block_count(s)) for s in range(len(plan.stages))]
        self._pending: list[NDArray[np.void]] = []
        self._known: set[str] = set()
        self._session = uuid.uuid4().hex[:12]
        self._segments = 0
        self._load(store.keys(LEDGER_PREFIX))

    def missing(self, stage: int) -> Iterator[int]:
        """Yield the blocks of a stage that are not done, lazily and in order."""
        done = self.tables[stage].done
        for start in range(0, len(done), SCAN):
            yield from (start + np.flatnonzero(~done[start : start + SCAN])).tolist()

    def recorded(self, stage: int, blocks: Sequence[int]) -> NDArray[np.void]:
        """Return a row of :data:`RECORDED` for each of some blocks."""
        table = self.tables[stage]
        at: Any
        if isinstance(blocks, range):  # as nearly all are, and a slice copies nothing
            at = slice(blocks.start, blocks.stop, blocks.step)
        else:
            at = np.array(blocks)
        rows = np.empty(len(blocks), RECORDED)
        rows["checksum"] = table.checksum[at]
        rows["state"] = np.where(table.empty[at], EMPTY, STORED)
        rows["state"][~table.done[at]] = LOST
        return rows

    def missing_count(self, stage: int) -> int:
        """Return the number of blocks of a stage that are not done."""
        return int((~self.tables[stage].done).sum())

    def count(self) -> int:
        """Return the number of blocks done."""
        return int(sum(table.done.sum() for table in self.tables))

    def add(self, reports: Reports) -> None:
        """Take the blocks that are done; :meth:`flush` stores them."""
        entries = np.empty(len(reports.done), ENTRY)
        entries["stage"] = reports.stage
        entries["index"] = reports.done["index"]
        entries["checksum"] = reports.done["checksum"]
        entries["state"] = np.where(reports.done["empty"], EMPTY, STORED)
        self._take(entries)

    def forget(self, stage: int, index: int) -> None:
        """Record that a block is not done any more; :meth:`flush` stores it."""
        self._take(np.array([(stage, index, 0, LOST)], ENTRY))

    def flush(self) -> None:
        """Store what was added since the last flush as one segment; fold if there are many."""
        if not self._pending:
            return
        name = self._name("segment")
        self.store.put(name, seal(np.concatenate(self._pending).tobytes()))
        self._pending.clear()
        self._known.add(name)
        self._segments += 1
        if self._segments >= FOLD_SEGMENTS:
            self.fold()

    def fold(self) -> None:
        """Replace all segments and folds that exist now by one table."""
        self.flush()
        names = self.store.keys(LEDGER_PREFIX)
        if len(names) <= 1:
            return
        if not self._known.issuperset(names):  # another submitter's, to be merged in order
            self._load(names)
        arrays: dict[str, NDArray[Any]] = {}
        for number, table in enumerate(self.tables):
            arrays[f"done_{number}"] = np.packbits(table.done)
            arrays[f"empty_{number}"] = np.packbits(table.empty)
            arrays[f"checksum_{number}"] = table.checksum
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        name = self._name("fold")
        self.store.put(name, seal(buffer.getvalue()))
        self.store.delete(names)
        self._known = {name}
        self._segments = 0

    def _name(self, kind: str) -> str:
        return f"{LEDGER_PREFIX}{time.time_ns():020d}-{self._session}.{kind}"

    def _load(self, names: list[str]) -> None:
        for first in range(0, len(names), READ_TOGETHER):
            some = names[first : first + READ_TOGETHER]
            for name, sealed in zip(some, self.store.get_all(some), strict=True):
                if sealed is None:  # folded by another submitter since it was listed
                    self._load([n for n in self.store.keys(LEDGER_PREFIX) if n > name])
                    return
                data = unseal(sealed, f"{self.store.url}/{name}")
                if name.endswith(".fold"):
                    self._merge_fold(data)
                else:
                    self._merge_entries(np.frombuffer(data, ENTRY))
                self._known.add(name)

    def _take(self, entries: NDArray[np.void]) -> None:
        if len(entries) == 0:
            return  # nor is anything stored of it
        self._merge_entries(entries)
        self._pending.append(entries)

    def _merge_entries(self, entries: NDArray[Any]) -> None:
        for number, table in enumerate(self.tables):
            mine = entries[entries["stage"] == number]
            table.done[mine["index"]] = mine["state"] != LOST
            table.empty[mine["index"]] = mine["state"] == EMPTY
            table.checksum[mine["index"]] = mine["checksum"]

    def _merge_fold(self, data: bytes) -> None:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            for number, table in enumerate(self.tables):
                n = len(table.done)
                done = np.unpackbits(arrays[f"done_{number}"], count=n).astype(bool)
                empty = np.unpackbits(arrays[f"empty_{number}"], count=n).astype(bool)
                table.done[done] = True
                table.empty[done] = empty[done]
                table.checksum[done] = arrays[f"checksum_{number}"][done]


def seal(data: bytes) -> bytes:
    """Append a CRC-32, so that a damaged record is found."""
    return data + zlib.crc32(data).to_bytes(4, "little")


def unseal(sealed: bytes, where: str) -> bytes:
    """Check and remove the CRC-32.

    Raises:
        CorruptDataError: it does not match.
    """
    data, crc = sealed[:-4], sealed[-4:]
    if zlib.crc32(data).to_bytes(4, "little") != crc:
        raise CorruptDataError(
            f"ledger record {where} is damaged; delete it and run the job again, which then redoes "
            "the blocks it recorded"
        )
    return data
