"""Several processes that train one network: torch's own, started by ``torchrun``.

Each takes its places of every batch; torch averages the gradients, so all keep the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from isochunk.models.load import device_of


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train together."""

    device: torch.device
    """Where it computes."""
    rank: int = 0
    """Which it is; the first also validates and writes."""
    size: int = 1
    """How many there are."""

    @property
    def first(self) -> bool:
        """Whether it is the one that validates and writes."""
        return self.rank == 0

    def share(self, module: nn.Module) -> nn.Module:
        """Return a module whose gradients are the mean over all processes."""
        return module if self.size == 1 else DistributedDataParallel(module)

    def mean(self, value: float) -> float:
        """Return the mean of a number over all processes; NaN if any has NaN."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return float(total) / self.size


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started; alone where it did not.

    Args:
        device: auto, cpu or cuda; each process takes a GPU of its own.

    Raises:
        ModelError: there is no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = device_of(device)
    if size == 1:
        yield Ranks(chosen)
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Ranks(chosen, distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()
