"""Which GPU each worker computes on, and how many share it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seat:
    """The GPU that one worker computes on."""

    index: int = 0
    """Its number among those that the worker sees."""
    sharing: int = 1
    """Workers that compute on it."""

    def share(self, device_memory: float) -> float:
        """Return the worker's share of the GPU's memory.

        Args:
            device_memory: what all of them may take of it together.
        """
        return device_memory / self.sharing


@dataclass(frozen=True, slots=True)
class Seating:
    """The seats of all workers."""

    seats: Mapping[str, Seat]
    """By the name of the worker, which a worker keeps that its nanny starts again."""

    def of(self, name: str) -> Seat:
        """Return the seat of a worker.

        One that came later takes the first GPU that it sees, since dask-cuda shows each process
        its own first, and the smallest share that was given, since others may be there already.
        """
        return self.seats.get(name, Seat(0, self.most_sharing))

    @property
    def most_sharing(self) -> int:
        """Workers on the GPU that has most."""
        return max((seat.sharing for seat in self.seats.values()), default=1)


def seat_workers(seen: Mapping[str, Sequence[str]]) -> Seating:
    """Give each worker one of the GPUs that it sees, so that few share one.

    Workers that see fewest choose first, and each takes the one that is used least; of equals, the
    first it sees. GPUs are told apart by their UUIDs alone: containers of one machine have
    addresses of their own, and may see the same GPU.

    Args:
        seen: for each worker, by name, the UUIDs of the GPUs that it sees, in its order; at least
            one.
    """
    used: Counter[str] = Counter()
    chosen: dict[str, int] = {}
    for name, gpus in sorted(seen.items(), key=lambda item: (len(item[1]), item[0])):
        # min takes the first of equals.
        index = min(range(len(gpus)), key=lambda i, gpus=gpus: used[gpus[i]])  # type: ignore[misc]
        used[gpus[index]] += 1
        chosen[name] = index
    return Seating({name: Seat(i, used[seen[name][i]]) for name, i in chosen.items()})


def least_device_bytes(
    room: Iterable[tuple[Seat, int, int | None]], device_memory: float
) -> tuple[int, int]:
    """Return the least and the most memory that a worker has of its GPU.

    Args:
        room: for each worker its seat, the memory of its GPU, and what of that is free; None where
            that is not known.
        device_memory: share of a GPU that those on it may take together.
    """
    sizes = [
        min(
            int(seat.share(device_memory) * total),
            total if free is None else free // seat.sharing,
        )
        for seat, total, free in room
    ]
    return min(sizes), max(sizes)


def seats_here(workers: int, gpus: Iterable[str]) -> Seating:
    """Return the seats of workers that all see the same GPUs, at least one."""
    seen = tuple(gpus)
    return seat_workers({str(n): seen for n in range(workers)})
