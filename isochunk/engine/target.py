"""What users ask of a target that a run has written: status, audit, repair."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from isochunk.engine.audit import Auditor
from isochunk.engine.events import last_event
from isochunk.engine.ledger import Ledger, read_job
from isochunk.errors import NotFoundError
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access
from isochunk.storage.objects import Store
from isochunk.storage.open import open_store, open_target
from isochunk.storage.url import parse_url

if TYPE_CHECKING:
    pass

ENDS = ("ended", "stopped")
"""Events after which a run does nothing more."""


@dataclass(frozen=True, slots=True)
class Target:
    """A target that isochunk wrote, with its record."""

    plan: Plan
    """The job it was written by."""
    ledger: Ledger
    """What is done."""
    store: Store
    """Where."""

    def auditor(self) -> Auditor:
        """Return what compares storage with the record."""
        target = open_target(self.plan.target, self.store.access)
        return Auditor(self.plan, self.ledger, target, self.store)


def open_result(url: str, endpoint_url: str | None = None) -> Target:
    """Open the record of a target.

    Raises:
        NotFoundError: isochunk wrote nothing there.
    """
    store = open_store(parse_url(url).url, Access(endpoint_url=endpoint_url))
    made = read_job(store)
    if made is None:
        raise NotFoundError(
            f"{store.url} holds no .isochunk/job.json; it is no target of isochunk run"
        )
    # What a target says of itself must not make this machine run code: no model that does so, and
    # no cluster, since a client runs what a scheduler sends it.
    made = replace(
        made,
        job=replace(
            made.job,
            endpoint_url=endpoint_url,
            trust=False,
            scheduler=None,
            cluster="local",
            workers=None,
        ),
    )
    return Target(made, Ledger(store, made), store)


def status(url: str, endpoint_url: str | None = None) -> dict[str, Any]:
    """Return what the records say of a target, without reading voxels."""
    target = open_result(url, endpoint_url)
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
        "last_event": last and {"time": last["time"], "event": last["event"]},
    }


def watch(url: str, every_s: float, endpoint_url: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the status of a target again and again, until it is complete or its run has ended.

    Each status but the first also tells ``blocks_per_s`` since the one before and ``left_s``, the
    time left at that rate; None while nothing moves.
    """
    before, then = status(url, endpoint_url), time.monotonic()
    yield before
    while not (before["complete"] or (before["last_event"] or {}).get("event") in ENDS):
        time.sleep(every_s)
        now, at = status(url, endpoint_url), time.monotonic()
        rate = (now["blocks"]["done"] - before["blocks"]["done"]) / (at - then)
        left = now["blocks"]["total"] - now["blocks"]["done"]
        yield {**now, "blocks_per_s": rate, "left_s": left / rate if rate > 0 else None}
        before, then = now, at
