"""A target that a run has written, with its record: what is done of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from isochunk.engine.audit import AuditReport
from isochunk.engine.events import last_event
from isochunk.engine.ledger import Ledger, read_job
from isochunk.errors import NotFoundError
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access
from isochunk.storage.objects import Store
from isochunk.storage.open import open_store
from isochunk.storage.url import parse_url

ENDS = ("ended", "stopped")
"""Events after which a run does nothing more."""


@dataclass(frozen=True, slots=True)
class WrittenTarget:
    """A target that isochunk wrote, with its record."""

    plan: Plan
    """The job it was written by."""
    ledger: Ledger
    """What is done."""
    store: Store
    """Where."""

    def forget(self, audited: AuditReport) -> None:
        """Record that blocks with a hole are not done, and delete what is corrupt.

        What could not be read is not deleted: it may be as it should.
        """
        for hole in audited.holes:
            self.ledger.forget(hole.stage, hole.block)
        self.ledger.flush()  # whatever happens now, these blocks are not done
        # A block that the mask leaves out writes nothing, so it would not replace what is there.
        self.store.delete(hole.object for hole in audited.holes if hole.kind == "corrupt")


def open_written_target(
    url: str, endpoint_url: str | None = None, requester_pays: str | None = None
) -> WrittenTarget:
    """Open the record of a target.

    Args:
        url: of the target.
        endpoint_url: S3-compatible server.
        requester_pays: who is billed for requests, see :class:`~isochunk.core.job.RunOptions`.

    Raises:
        NotFoundError: isochunk wrote nothing there.
    """
    access = Access(endpoint_url=endpoint_url, requester_pays=requester_pays)
    store = open_store(parse_url(url).url, access)
    made = read_job(store)
    if made is None:
        raise NotFoundError(
            f"{store.url} holds no .isochunk/job.json; it is no target of isochunk run"
        )
    made = replace(made, job=made.job.untrusted(endpoint_url, requester_pays))
    return WrittenTarget(made, Ledger(store, made), store)


def status(
    url: str, endpoint_url: str | None = None, requester_pays: str | None = None
) -> dict[str, Any]:
    """Return what the records say of a target, without reading voxels."""
    target = open_written_target(url, endpoint_url, requester_pays)
    done, total = target.ledger.count(), target.plan.total_blocks
    last = last_event(target.store)
    return {
        "target": target.plan.target.url,
        "complete": done == total,
        "blocks": {
            "total": total,
            "done": done,
            "empty": int(sum(t.empty.sum() for t in target.ledger.tables)),
        },
        "sections": target.plan.sections_summary(),
        "invented_voxels": target.plan.invented_voxels(),
        "last_event": last and {"time": last["time"], "event": last["event"]},
    }


def watch_status(
    url: str, every_s: float, endpoint_url: str | None = None, requester_pays: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the status of a target again and again, until it is complete or its run has ended.

    Each status but the first also tells ``blocks_per_s`` since the one before and ``left_s``, the
    time left at that rate; None while nothing moves.
    """
    before, then = status(url, endpoint_url, requester_pays), time.monotonic()
    yield before
    while not (before["complete"] or (before["last_event"] or {}).get("event") in ENDS):
        time.sleep(every_s)
        now, at = status(url, endpoint_url, requester_pays), time.monotonic()
        rate = (now["blocks"]["done"] - before["blocks"]["done"]) / (at - then)
        left = now["blocks"]["total"] - now["blocks"]["done"]
        yield {**now, "blocks_per_s": rate, "left_s": left / rate if rate > 0 else None}
        before, then = now, at
