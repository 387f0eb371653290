"""Calls on tensors of more elements than a GPU's kernels count, one slab along z after another.

Many CUDA kernels number elements with 32 bits. A slab of a tensor with channels innermost is
contiguous, so it is passed on as it lies; its answer is copied to its place in the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from isochunk.core.geometry import ceil_div
from isochunk.core.limits import DEVICE_ELEMENTS

Call: TypeAlias = Callable[[Tensor], Tensor]
"""Does to a slab (b, c, z, y, x) what is done to the whole."""


def most_elements(x: Tensor) -> int | None:
    """Return how many elements a call on tensors of a device may see; None for any number."""
    return DEVICE_ELEMENTS if x.is_cuda else None


def convolved_in_slabs(call: Call, x: Tensor, maps: int, kernel: int, most: int) -> Tensor:
    """Convolve with stride 1 and no padding along z.

    Args:
        call: the convolution.
        x: (b, c, z, y, x).
        maps: channels of the answer.
        kernel: extent along z.
        most: elements of a slab, in and out.
    """
    depth = x.shape[2] - kernel + 1
    plane = x.shape[0] * max(x.shape[1], maps) * math.prod(x.shape[3:])
    step = max(1, most // plane - kernel + 1)
    starts = range(0, depth, step)
    return _joined((call(x[:, :, at : at + step + kernel - 1]) for at in starts), starts, depth)


def pooled_in_slabs(call: Call, x: Tensor, stride: int, most: int) -> Tensor:
    """Pool whole cells of ``stride`` along z; arguments as :func:`convolved_in_slabs`."""
    depth = x.shape[2] // stride
    step = max(1, most // (x[:, :, 0].numel() * stride))
    starts = range(0, depth, step)
    return _joined(
        (call(x[:, :, at * stride : (at + step) * stride]) for at in starts), starts, depth
    )


def transposed_in_slabs(
    call: Call, x: Tensor, window: tuple[int, int, int], depth: int, plane: int, most: int
) -> Tensor:
    """Convolve transposed.

    Args:
        call: the transposed convolution, nothing dropped along z.
        x: (b, c, z, y, x).
        window: kernel, stride, and outputs dropped at the start, along z.
        depth: outputs kept along z.
        plane: elements of the answer for one of them.
        most: elements of a slab, in and out.
    """
    kernel, stride, dropped = window
    over = max(plane, x[:, :, 0].numel() // stride)
    step = max(1, most // over - 2 * (kernel + stride))  # inputs at either end make more than that
    starts = range(0, depth, step)

    def slab(at: int) -> Tensor:
        # Output o of the full answer sums inputs (o - kernel + 1) / stride .. o / stride.
        lo, hi = at + dropped, min(at + step, depth) + dropped
        first = max(0, ceil_div(lo - kernel + 1, stride))
        last = min(x.shape[2], (hi - 1) // stride + 1)
        return call(x[:, :, first:last])[:, :, lo - first * stride : hi - first * stride]

    return _joined(map(slab, starts), starts, depth)


def _joined(parts: Iterable[Tensor], starts: Sequence[int], depth: int) -> Tensor:
    """Put slabs together as they come."""
    whole = None
    for start, part in zip(starts, parts, strict=True):
        if whole is None:
            b, c, _, y, x = part.shape
            innermost = part.stride(1) == 1
            whole = torch.empty(
                (b, c, depth, y, x),
                dtype=part.dtype,
                device=part.device,
                memory_format=torch.channels_last_3d if innermost else torch.contiguous_format,
            )
        whole[:, :, start : start + part.shape[2]] = part
    assert whole is not None
    return whole
