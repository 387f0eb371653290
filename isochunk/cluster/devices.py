"""What the workers of a cluster compute on: asked of them, not assumed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed import Client

from isochunk.cluster.roster import known_workers
from isochunk.core.gpus import SeenGpus, device_summary
from isochunk.core.job import FoundDevice
from isochunk.errors import ClusterError, UsageError
from isochunk.models.gpus import free_bytes, seen_gpus
from isochunk.planning.plan import Plan
from isochunk.planning.seats import Seating, least_device_bytes, seat_workers

log = logging.getLogger(__name__)

UNEQUAL = 0.9
"""Least memory over most, below which workers are called unequal."""


@dataclass(frozen=True, slots=True)
class WorkerDevices:
    """What workers compute on."""

    found: FoundDevice | None = None
    """Kind of device; None for interpolations, which need none."""
    seating: Seating | None = None
    """Who computes on which GPU; None on CPUs."""
    device_bytes: int | None = None
    """Memory that a worker has of its GPU, that of the one with least; None on CPUs."""
    summary: Mapping[str, Any] | None = None
    """What a report says of the GPUs; None on CPUs."""


async def tell_gpus() -> SeenGpus:
    """Say which GPUs a worker sees; it stays in touch while torch is loaded."""
    return await asyncio.to_thread(seen_gpus)


async def tell_free(seating: Seating, dask_worker: Any) -> int:
    """Say what is free of the GPU that a worker computes on."""
    return await asyncio.to_thread(free_bytes, seating.of(str(dask_worker.name)).index)


def ask_devices(plan: Plan, client: Client) -> WorkerDevices:
    """Ask workers for their GPUs, and give each one of them.

    Workers that compute on CPUs are not asked, and interpolations need no device.

    Raises:
        UsageError: some workers have a GPU and some have none, or one cannot say.
        ClusterError: no worker answered.
    """
    if not plan.is_network or plan.job.device == "cpu":
        return WorkerDevices("cpu" if plan.is_network else None)
    seen = answers(client.run(tell_gpus, on_error="return"))
    if not on_gpus(seen, wanted=plan.job.device == "cuda"):
        return WorkerDevices("cpu")
    known = known_workers(client)
    # A worker that has gone since is not known any more, and needs no seat.
    names = {address: str(known[address]["name"]) for address in seen if address in known}
    seating = seat_workers(
        {name: [gpu.uuid for gpu in seen[address].gpus] for address, name in names.items()}
    )
    free = answers(client.run(tell_free, seating, workers=list(names), on_error="return"))
    seats = {address: seating.of(names[address]) for address in free}
    used = {address: seen[address].gpus[seat.index] for address, seat in seats.items()}
    least, most = least_device_bytes(
        ((seat, used[a].total_bytes, free[a]) for a, seat in seats.items()), plan.job.device_memory
    )
    warn_if_unequal("GPU memory", least, most)
    summary = device_summary([(gpu, seen[address]) for address, gpu in used.items()])
    return WorkerDevices("cuda", seating, least, summary)


def answers(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what workers answered; those that are gone said nothing.

    Args:
        told: answers and errors, by address.

    Raises:
        UsageError: a worker raised another error.
        ClusterError: no worker answered.
    """
    there = {address: said for address, said in told.items() if not isinstance(said, OSError)}
    for address, said in there.items():
        if isinstance(said, Exception):
            raise UsageError(
                f"worker {address} cannot say which GPUs it has ({type(said).__name__}: {said}); "
                "see whether nvidia-smi and torch.cuda.is_available() work there, or compute on "
                "CPUs with --device cpu"
            ) from said
    if not there:
        raise ClusterError(
            "no worker answered when it was asked for its GPUs; start workers and give the same "
            "command again"
        )
    return there


def on_gpus(seen: Mapping[str, SeenGpus], *, wanted: bool) -> bool:
    """Tell whether workers compute on GPUs. Pure.

    Args:
        seen: what each worker sees, by address.
        wanted: the job asks for GPUs.

    Raises:
        UsageError: some have a GPU and some have none, or none has though the job asks for them.
    """
    without = [address for address, said in seen.items() if not said.gpus]
    if not without:
        return True
    if not wanted and len(without) == len(seen):
        return False
    none = f"{len(without)} of {len(seen)} workers have none that torch sees, as {without[0]}"
    advice = (
        "start workers with GPUs only (one process a GPU, as dask cuda worker does), or compute on "
        "CPUs everywhere with --device cpu"
    )
    if wanted:
        raise UsageError(f"--device cuda asks for a GPU in each worker, and {none}; {advice}")
    raise UsageError(
        f"{len(seen) - len(without)} of {len(seen)} workers have a GPU, and {none}; CPUs and GPUs "
        f"do not share a job, whose tiles they would cut differently: {advice}"
    )


def warn_if_unequal(what: str, least: int, most: int) -> None:
    """Say that workers have unequal memory."""
    if least < UNEQUAL * most:
        log.warning(
            "workers have %.1f to %.1f GiB of %s; tiles are made for the least",
            least / 2**30,
            most / 2**30,
            what,
        )
