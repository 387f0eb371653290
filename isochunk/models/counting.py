"""What a network costs: multiply-adds and memory, counted and not timed.

A network is run on ``meta`` tensors, which hold no data, and every operation and every tensor that
comes and goes is noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from isochunk.core.tile_costs import Walk


@dataclass(frozen=True, slots=True)
class Cost:
    """What one target voxel costs."""

    macs: float
    """Multiply-adds, without halo."""
    bytes: float
    """Peak bytes of live tensors, halo of a usual tile included."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation, and every tensor that comes and goes."""

    def __init__(self) -> None:
        """Start with nothing."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.walk = Walk([], [], [])
        self.peak = 0
        """Largest sum of bytes alive."""
        self._alive = 0
        self._sizes: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(  # torch calls it with anything
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        """Run one operation, and note what came of it."""
        kwargs = kwargs or {}
        self._forget()  # what went since the last operation had gone before this one asked for more
        result = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.walk.macs.append(count(*args, **kwargs, out_val=result) / 2)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _forget(self) -> None:
        for key, (reference, size) in list(self._sizes.items()):
            if reference.expired():  # type: ignore[no-untyped-call]
                del self._sizes[key]
                self._change(-size)

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        if reference.cdata in self._sizes:
            return
        self._sizes[reference.cdata] = (reference, storage.nbytes())
        self.walk.elements.append(tensor.numel())
        self._change(storage.nbytes())

    def _change(self, size: int) -> None:
        self.walk.bytes.append(size)
        self._alive += size
        self.peak = max(self.peak, self._alive)

    @property
    def macs(self) -> float:
        """Multiply-adds of all operations."""
        return sum(self.walk.macs)
