"""Convolutions that other means than the obvious answer faster.

Rectifiers stay apart: oneDNN's own, which would save a pass over memory, makes 0 of NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from isochunk.core.geometry import Triple, ceil_div
from isochunk.models.large_calls import (
    convolved_in_slabs,
    most_elements,
    pooled_in_slabs,
    transposed_in_slabs,
)

ONES: Triple = (1, 1, 1)

SMALL = 20480
"""Elements, without the last axis, up to which torch does without oneDNN."""


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int] = (0, 0, 0)
) -> Tensor:
    """Convolve in 3D, in the weights' number format."""
    x = x.to(weight.dtype)
    most, maps = most_elements(x), weight.shape[0]
    if most is None or padding[0] or max(x.shape[1], maps) * x[:, 0].numel() <= most:
        return _convolved(x, weight, bias, padding)
    return convolved_in_slabs(
        lambda part: _convolved(part, weight, bias, padding), x, maps, weight.shape[2], most
    )


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """Convolve; 1x1x1 kernels as a matrix product, 7x faster on a CPU for one map."""
    if weight.shape[2:] == ONES and not any(padding):
        return functional.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    if left_to_slow_code(x):
        return torch.mkldnn_convolution(*laid_out(x, weight, bias), padding, ONES, ONES, 1)
    return functional.conv3d(x, weight, bias, padding=padding)


def transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int] = (0, 0, 0),
) -> Tensor:
    """Convolve transposed in 3D; arguments as those of ``conv_transpose3d``."""
    if left_to_slow_code(x) and not any(output_padding):
        answer: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            *laid_out(x, weight, bias), padding, output_padding, stride, ONES, 1, "none", [], ""
        )
        return answer
    most = most_elements(x)
    depth, *lateral = (
        (n - 1) * s - 2 * p + k + more
        for n, s, p, k, more in zip(
            x.shape[2:], stride, padding, weight.shape[2:], output_padding, strict=True
        )
    )
    plane = x.shape[0] * weight.shape[1] * math.prod(lateral)
    gaps = output_padding[0] or weight.shape[2] < stride[0]  # which no slab would fill
    if most is None or gaps or max(x.numel(), depth * plane) <= most:
        return functional.conv_transpose3d(x, weight, bias, stride, padding, output_padding)
    window = (weight.shape[2], stride[0], padding[0])
    rims = (0, *padding[1:])
    return transposed_in_slabs(
        lambda part: functional.conv_transpose3d(part, weight, bias, stride, rims, output_padding),
        x,
        window,
        depth,
        plane,
        most,
    )


def max_pooled(x: Tensor, stride: Triple) -> Tensor:
    """Take the maximum of each cell of ``stride``; extents are whole cells."""
    most = most_elements(x)
    if most is None or x.numel() <= most:
        return functional.max_pool3d(x, stride)
    return pooled_in_slabs(lambda part: functional.max_pool3d(part, stride), x, stride[0], most)


def laid_out(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return them as oneDNN takes them: it does not look at strides."""
    layout = torch.channels_last_3d
    return (
        x.contiguous(memory_format=layout),
        weight.contiguous(memory_format=layout),
        None if bias is None else bias.contiguous(),
    )


def left_to_slow_code(x: Tensor) -> bool:
    """Tell whether torch itself would not use oneDNN, which takes 3 to 15 times less on a CPU.

    It asks for more than 20,480 elements, of which it leaves the last axis out (``use_mkldnn`` in
    its ``Convolution.cpp``): a tile of 128^3 has fewer in its first layers.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.is_inference_mode_enabled()  # what is called instead knows no gradients
        and x[..., 0].numel() <= SMALL
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


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
    phases = convolved(x, weight, None if bias is None else bias.expand(stride))
    b, _, _, ny, nx = phases.shape  # (b, phase, z, y, x)
    full = phases.transpose(1, 2).reshape(b, 1, -1, ny, nx)
    return full[:, :, stride - missing :] if missing else full


def lay_out_channels_last(module: nn.Module) -> None:
    """Lay weights of convolutions out with channels innermost: twice as fast on a CPU in 3D."""
    for values in (module.parameters(), module.buffers()):
        for value in values:
            if value.ndim == len(ONES) + 2:
                value.data = value.data.contiguous(memory_format=torch.channels_last_3d)
