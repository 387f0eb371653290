"""Which workers the scheduler knows."""

from __future__ import annotations

from typing import Any

from distributed import Client

from isochunk.errors import ClusterError


def known_workers(client: Client) -> dict[str, dict[str, Any]]:
    """Ask the scheduler what it knows of its workers, by address.

    ``client.scheduler_info`` is not asked: the client also asks for that answer by itself, without
    workers, every other second, and returns whichever came last.

    Raises:
        ClusterError: the client is closed.
    """
    if client.scheduler is None:
        raise ClusterError("the Dask client is closed; connect a new one to the scheduler")
    identity = client.sync(client.scheduler.identity, n_workers=-1)
    workers: dict[str, dict[str, Any]] = identity["workers"]
    return workers
