"""What users ask of a target that a run has written: status, audit, repair."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from isochunk.api import Watch, run
from isochunk.auditing import Auditor, AuditReport, audit_target
from isochunk.engine.report import Report
from isochunk.errors import NotFoundError
from isochunk.planning import Plan
from isochunk.storage.access import Access
from isochunk.storage.events import last_event
from isochunk.storage.ledger import Ledger, read_job
from isochunk.storage.objects import Store
from isochunk.storage.tensorstore import open_store, open_target
from isochunk.storage.url import parse_url

if TYPE_CHECKING:
    from distributed import Client

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


def audit(
    target: str, endpoint_url: str | None = None, watch: Callable[[int], None] = lambda _: None
) -> AuditReport:
    """Read every object of a target again and compare it with the record.

    Raises:
        NotFoundError: isochunk wrote nothing there.
    """
    return audit_target(open_result(target, endpoint_url).auditor(), watch)


def repair(
    target: str,
    changes: dict[str, Any] | None = None,
    client: Client | None = None,
    watch: Watch | None = None,
) -> tuple[AuditReport, Report]:
    """Audit a target and compute exactly the blocks again that have a hole.

    Args:
        target: URL of a target.
        changes: fields of :class:`Job` that say how to run: model path, device, workers, ...
        client: as for :func:`run`.
        watch: as for :func:`run`.

    Returns:
        What was found, and the report of the blocks computed.
    """
    changes = changes or {}
    found = open_result(target, changes.get("endpoint_url"))
    audited = audit_target(found.auditor())
    made = replace(found.plan, job=replace(found.plan.job, **changes))
    for hole in audited.holes:
        found.ledger.forget(hole.stage, hole.block)
    found.ledger.flush()  # whatever happens now, these blocks are not done
    # A block that the mask leaves out writes nothing, so it would not replace what is there.
    found.store.delete(hole.object for hole in audited.holes if hole.kind == "corrupt")
    return audited, run(made, client, watch)
