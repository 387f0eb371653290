"""Convolutions that other means than the obvious answer faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from isochunk.core.geometry import Triple, ceil_div

ONES: Triple = (1, 1, 1)


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int] = (0, 0, 0)
) -> Tensor:
    """Convolve in 3D; 1x1x1 kernels as a matrix product, 7x faster on a CPU for one map."""
    if weight.shape[2:] != ONES or any(padding):
        return functional.conv3d(x, weight, bias, padding=padding)
    return functional.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def makes_one_map(weight: Tensor, stride: Sequence[int]) -> bool:
    """Tell whether a transposed convolution is better run by :func:`upsampled_to_one_map`.

    Args:
        weight: (c, maps, z, y, x).
        stride: along z, y and x.
    """
    return weight.shape[1] == 1 and tuple(stride[1:]) == (1, 1) and weight.shape[2] >= stride[0]


def upsampled_to_one_map(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Upsample along z to one map by a plain convolution with a map for each phase.

    The same products as the transposed convolution, for which oneDNN has only its slow reference
    code where one map comes out.

    Args:
        x: (b, c, z, y, x).
        weight: (c, 1, z, y, x), at least ``stride`` taps along z.
        bias: (1,) or None.
        stride: target voxels per section.

    Returns:
        The outputs to which no input is missing: those of the full transposed convolution without
        ``kernel - stride`` at either end.
    """
    c, _, k, ky, kx = weight.shape
    taps = ceil_div(k, stride)
    missing = taps * stride - k
    if missing:
        # The first cell of outputs needs one input fewer than the kernel made whole has.
        weight = functional.pad(weight, (0, 0, 0, 0, 0, missing))
        x = functional.pad(x, (0, 0, 0, 0, 1, 0))
    weight = weight.reshape(c, taps, stride, ky, kx).permute(2, 0, 1, 3, 4).flip(2, 3, 4)
    phases = functional.conv3d(x, weight, None if bias is None else bias.expand(stride))
    b, _, _, ny, nx = phases.shape  # (b, phase, z, y, x)
    full = phases.transpose(1, 2).reshape(b, 1, -1, ny, nx)
    return full[:, :, stride - missing :] if missing else full


def lay_out_channels_last(module: nn.Module) -> None:
    """Lay weights of convolutions out with channels innermost: twice as fast on a CPU in 3D."""
    for values in (module.parameters(), module.buffers()):
        for value in values:
            if value.ndim == len(ONES) + 2:
                value.data = value.data.contiguous(memory_format=torch.channels_last_3d)
