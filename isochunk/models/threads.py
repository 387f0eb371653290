"""How many threads of a process compute, by measurement.

Dask's number is of tasks at a time, and often 1 where a worker has many cores, or all cores where
several workers share them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

SAME = 1.05
"""Times within this ratio are the same: then fewer threads are better, for what else there is."""

ROUNDS = 4
"""Times that each number is tried, in turn with the others; the best counts. The first of a number
starts its threads."""

CHANNELS = 16
EXTENTS = (16, 64, 64)
"""The convolution that is timed: 0.5 billion multiply-adds, about 20 ms on one core."""


def candidates(told: int, cores: int, sharing: int | None) -> tuple[int, ...]:
    """Return the numbers of threads worth trying.

    Args:
        told: threads of the worker, as Dask says.
        cores: that the worker may run on.
        sharing: workers that share these cores, itself included; None where that is not known.

    Returns:
        ``told`` first, then powers of two up to the worker's share of the cores, and the share.
    """
    if sharing is None:
        return (told,)
    share = max(1, cores // sharing)
    powers = [1 << n for n in range(share.bit_length())]
    return tuple(dict.fromkeys((told, *powers, share)))


def fewest_of_fastest(seconds: Mapping[int, float]) -> int:
    """Choose by how long each number of threads took."""
    limit = SAME * min(seconds.values())
    return min(threads for threads, took in seconds.items() if took <= limit)


def choose_threads(numbers: Sequence[int]) -> int:
    """Time a small convolution with each number of threads, and keep the best for this process.

    Threads that have computed already keep their number, but for the calling one.

    Returns:
        The number chosen.
    """
    import torch

    if len(numbers) == 1:
        torch.set_num_threads(numbers[0])
        return numbers[0]
    source = torch.ones(1, CHANNELS, *EXTENTS)
    weights = torch.ones(CHANNELS, CHANNELS, 3, 3, 3)
    seconds = dict.fromkeys(numbers, float("inf"))
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for threads in numbers:
                torch.set_num_threads(threads)
                begun = time.perf_counter()
                torch.conv3d(source, weights)
                seconds[threads] = min(seconds[threads], time.perf_counter() - begun)
    chosen = fewest_of_fastest(seconds)
    torch.set_num_threads(chosen)
    log.info(
        "%d threads compute; a convolution took %s",
        chosen,
        ", ".join(f"{1000 * took:.1f} ms with {n}" for n, took in seconds.items()),
    )
    return chosen
