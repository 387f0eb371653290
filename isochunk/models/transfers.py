"""How a block's voxels get to the device that computes, and what is made of them gets back.

Stored integers travel, a quarter of what the device makes of them. A CPU's voxels are there already
(:class:`HostTransfers`). Those of a GPU (:class:`CudaTransfers`) are copied through pinned memory
by streams of their own, one for each way, while it computes; torch's allocators keep both ends of
what was copied for the next block, so that the blocks in flight are the rings' length.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from isochunk.core.geometry import Triple
from isochunk.core.voxels import Voxels

STORED = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.uint16): torch.uint16,
    np.dtype(np.float32): torch.float32,
}
"""Types in which voxels travel: as they are stored or, there alone, with their sections mended."""


@dataclass(frozen=True, slots=True)
class Upload:
    """Source voxels on their way."""

    voxels: Tensor
    """(z, y, x) on the device, as stored."""
    arrived: Any = None
    """Event of their arrival; None where they are there."""


class Download(Protocol):
    """What tiles became, on its way."""

    def wait(self) -> tuple[Voxels, Sequence[bool]]:
        """Wait for it.

        Returns:
            Target voxels, and whether each tile was finite.
        """
        ...

    def compute_s(self) -> float:
        """Return the seconds between ``begin`` and ``download``, as the device counts them."""
        ...


class Transfers(Protocol):
    """Ways there and back."""

    def upload(self, voxels: Voxels) -> Upload:
        """Send source voxels off; in any thread."""
        ...

    def begin(self, upload: Upload) -> tuple[Tensor, Any]:
        """Have all that is computed from now on wait for source voxels.

        Returns:
            The voxels, and when it began, for :meth:`download`.
        """
        ...

    def room(self, shape: Triple, dtype: np.dtype[Any]) -> Tensor:
        """Return memory for the target voxels of a block."""
        ...

    def download(self, target: Tensor, finite: Sequence[Tensor], begun: Any) -> Download:
        """Send target voxels home once they are computed.

        Args:
            target: (z, y, x), as stored.
            finite: of each tile, whether it was.
            begun: of :meth:`begin`.
        """
        ...


class HostTransfers:
    """No way at all."""

    def upload(self, voxels: Voxels) -> Upload:
        """Return the voxels."""
        return Upload(torch.from_numpy(np.ascontiguousarray(voxels)))

    def begin(self, upload: Upload) -> tuple[Tensor, float]:
        """Look at the clock."""
        return upload.voxels, time.perf_counter()

    def room(self, shape: Triple, dtype: np.dtype[Any]) -> Tensor:
        """Return host memory."""
        return torch.empty(shape, dtype=STORED[dtype])

    def download(self, target: Tensor, finite: Sequence[Tensor], begun: float) -> Download:
        """Look at the clock again."""
        took_s = time.perf_counter() - begun
        return _OnHost(target.numpy(), [bool(flag) for flag in finite], took_s)


@dataclass(frozen=True, slots=True)
class _OnHost:
    """What is there."""

    voxels: Voxels
    finite: Sequence[bool]
    took_s: float

    def wait(self) -> tuple[Voxels, Sequence[bool]]:
        """Return it."""
        return self.voxels, self.finite

    def compute_s(self) -> float:
        """Return what was measured."""
        return self.took_s


class CudaTransfers:
    """Pinned memory and two streams beside the one that computes."""

    def __init__(self, device: torch.device) -> None:
        """Make the streams of a device with an index."""
        self.device = device
        self.there = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.back = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def upload(self, voxels: Voxels) -> Upload:
        """Copy into pinned memory, and have the device fetch it."""
        pinned = torch.empty(voxels.shape, dtype=STORED[voxels.dtype], pin_memory=True)
        np.copyto(pinned.numpy(), voxels)
        with torch.cuda.stream(self.there):
            sent = pinned.to(self.device, non_blocking=True)
            return Upload(sent, self.there.record_event())

    def begin(self, upload: Upload) -> tuple[Tensor, torch.cuda.Event]:
        """Have the computing stream wait."""
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(upload.arrived)
        upload.voxels.record_stream(computing)
        begun = _timed_event()
        begun.record(computing)
        return upload.voxels, begun

    def room(self, shape: Triple, dtype: np.dtype[Any]) -> Tensor:
        """Return memory of the device."""
        return torch.empty(shape, dtype=STORED[dtype], device=self.device)

    def download(
        self, target: Tensor, finite: Sequence[Tensor], begun: torch.cuda.Event
    ) -> Download:
        """Have the device write into pinned memory after what it was told to compute."""
        flags = torch.stack(tuple(finite)) if finite else torch.ones(0, device=self.device)
        computed = _timed_event()
        computed.record(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.back):
            self.back.wait_event(computed)
            homes = []
            for sent in (target, flags):
                home = torch.empty(sent.shape, dtype=sent.dtype, pin_memory=True)
                home.copy_(sent, non_blocking=True)
                sent.record_stream(self.back)
                homes.append(home)
            back = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            back.record(self.back)
        return _FromDevice(homes[0], homes[1], begun, computed, back)


@dataclass(frozen=True, slots=True)
class _FromDevice:
    """What a device writes into pinned memory."""

    voxels: Tensor
    finite: Tensor
    begun: torch.cuda.Event
    computed: torch.cuda.Event
    back: torch.cuda.Event

    def wait(self) -> tuple[Voxels, Sequence[bool]]:
        """Sleep, and do not spin, until all is there; the array is the pinned memory itself."""
        self.back.synchronize()
        return self.voxels.numpy(), [bool(flag) for flag in self.finite]

    def compute_s(self) -> float:
        """Return what the device's own clock says."""
        return float(self.begun.elapsed_time(self.computed)) / 1000


def _timed_event() -> torch.cuda.Event:
    """Return an event that knows when it came."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def transfers_of(device: torch.device) -> Transfers:
    """Return the ways to a device and back."""
    return CudaTransfers(device) if device.type == "cuda" else HostTransfers()
