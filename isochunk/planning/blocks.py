"""Which block costs least, over all that whole shards allow. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from isochunk.core.geometry import Box, Triple, ceil_div, triple
from isochunk.core.job import Precision
from isochunk.core.limits import (
    ASSUMED_WORKERS,
    BLOCK_S,
    CACHE_BYTES,
    CPU_MACS_PER_S,
    GPU_MACS_PER_S,
    LARGEST_BLOCK,
    STORAGE_BYTES_PER_S,
    WORKER_LIFE_S,
)
from isochunk.errors import UsageError
from isochunk.planning.plan import Plan
from isochunk.planning.tiles import block_macs, fit_device, fit_memory


@dataclass(frozen=True, slots=True)
class Workers:
    """What is known of the workers before they are there."""

    memory_bytes: int
    """Host memory of one."""
    device_bytes: int | None = None
    """Memory that one has of a GPU; None where networks run on the CPU."""
    count: int | None = None
    """How many; None where that is not known."""

    def with_twice_the_memory(self) -> Workers:
        """Return workers of twice the memory."""
        device = None if self.device_bytes is None else 2 * self.device_bytes
        return replace(self, memory_bytes=2 * self.memory_bytes, device_bytes=device)


def choose_block(made: Callable[[Triple | None], Plan], workers: Workers) -> Plan:
    """Choose block, tile and depth of the least cost that fits.

    Args:
        made: makes the plan for a block; None for the default, the smallest that is tried.
        workers: what they have.

    Raises:
        UsageError: the default block fits no worker.
    """
    default = fit_workers(made(None), workers)
    if default.costs is None:  # interpolations have no halo to speak of
        return default
    plans = [default]
    for block in larger_blocks(default):
        try:
            plans.append(fit_workers(made(block), workers))
        except UsageError:
            continue  # it does not fit
    return min(plans, key=lambda plan: run_s(plan, workers))


def fit_workers(made: Plan, workers: Workers) -> Plan:
    """Choose tile and depth of a plan.

    Host memory decides first how many blocks are in flight, see
    :func:`~isochunk.planning.tiles.fit_memory`, and then that of a GPU
    (:func:`~isochunk.planning.tiles.fit_device`).
    """
    fitted = fit_memory(made, workers.memory_bytes)
    if fitted.on_gpu and workers.device_bytes is not None:
        return fit_device(fitted, workers.device_bytes)
    return fitted


def larger_blocks(made: Plan) -> Iterator[Triple]:
    """Yield blocks of whole objects, the default one doubled along some axes."""
    level, block = made.target.levels[0], made.stages[0].block
    along = []
    for extent, whole, least in zip(level.box.shape, level.object_shape, block, strict=True):
        end = min(ceil_div(extent, whole) * whole, max(LARGEST_BLOCK, least))
        extents = {min(least << n, end) for n in range(end.bit_length())}
        along.append(sorted(n for n in extents if n % whole == 0))
    return (shape for shape in map(triple, product(*along)) if shape != block)


def run_s(made: Plan, workers: Workers) -> float:
    """Estimate the time of a plan's first stage, for comparison with other plans of the job.

    Work is shared by the workers, and the last block keeps one of them busy while the others have
    no more to do; a worker that goes takes half a block with it.
    """
    count = workers.count or ASSUMED_WORKERS
    compute_s = block_macs(made) / macs_per_s(made.on_gpu, made.precision)
    read_s = shared_read_bytes(made) / STORAGE_BYTES_PER_S
    block_s = compute_s + read_s + BLOCK_S
    blocks = made.target.box.size / math.prod(made.stages[0].block)
    lost = block_s / 2 / WORKER_LIFE_S
    return blocks * block_s / count * (1 + lost) + (1 - 1 / count) * block_s


def macs_per_s(on_gpu: bool, precision: Precision) -> float:  # noqa: FBT001 - a property of plans
    """Return how fast a usual worker computes."""
    return GPU_MACS_PER_S[precision] if on_gpu else CPU_MACS_PER_S


def shared_read_bytes(made: Plan) -> float:
    """Return the source bytes read for a block; the halo towards the one before is still cached."""
    block = made.stages[0].block
    z, y, x = made.model.read_box(Box.from_shape(block)).shape
    own = block[0] / made.model.resolved_factor[0]
    size = made.source.itemsize
    cached = (z - own) * y * x * size <= CACHE_BYTES
    return float((own if cached else z) * y * x * size)
