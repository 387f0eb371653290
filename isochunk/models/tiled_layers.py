"""Layers on tensors that know where they lie, in two paddings that share one network.

Tensors are :class:`isochunk.models.placed.Placed`. ``SAME`` pads with zeros and keeps
the size, for training on patches. ``VALID`` keeps only voxels whose every input is known and moves
the origin, so its answer equals the same crop of the network run on an unbounded volume, wherever
the tile lies. A network writes its structure once, in
:meth:`isochunk.models.tiled_network.TiledNetwork.run`, and serves both.

"Same" padding of a kernel ``k`` pads ``(k - 1) // 2`` voxels before and the rest after. A
transposed convolution of kernel ``k`` and stride ``s <= k`` makes ``s * n`` voxels by dropping
``(k - s) // 2`` before and the rest after.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from isochunk.core.geometry import Box, Triple, add, ceil_div, sub, triple
from isochunk.core.spec import Phase
from isochunk.errors import ModelError
from isochunk.models.interpolation import INTERPOLATIONS, Kernel
from isochunk.models.kernels import (
    convolved,
    makes_one_map,
    max_pooled,
    transposed,
    upsampled_to_one_map,
)
from isochunk.models.placed import Placed
from isochunk.models.torch_interpolation import interpolated, reflected_along_z

ResidualKernel: TypeAlias = Literal["none", "linear", "cubic"]


class Convolution(NamedTuple):
    """What a convolution with stride 1 computes with."""

    weight: Tensor
    """(out, in, z, y, x)."""
    bias: Tensor | None
    """(out,)."""

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Voxels along z, y, x."""
        return tuple(self.weight.shape[2:])


class Padding(Protocol):
    """How layers treat the rim of a tile."""

    def conv(self, x: Placed, layer: nn.Conv3d | Convolution) -> Placed:
        """Convolve with stride 1."""
        ...

    def transposed(self, x: Placed, layer: nn.ConvTranspose3d, within: Box | None = None) -> Placed:
        """Upsample by ``layer.stride``; only voxels inside ``within`` are wanted."""
        ...

    def pool(self, x: Placed, stride: Triple) -> Placed:
        """Take the maximum of each cell of the absolute grid of ``stride``."""
        ...

    def interpolate(self, x: Placed, factor: int, kernel: Kernel, phase: Phase) -> Placed:
        """Interpolate along z; see :func:`isochunk.models.interpolation.axis_taps`."""
        ...


class Same:
    """Zero padding: the size stays, and the rim is only approximately right."""

    def conv(self, x: Placed, layer: nn.Conv3d | Convolution) -> Placed:
        """Convolve with zeros around."""
        kernel = triple(layer.kernel_size)
        data = x.data
        if any(k % 2 == 0 for k in kernel):
            rims = [n for k in reversed(kernel) for n in ((k - 1) // 2, k // 2)]
            return Placed(convolved(functional.pad(data, rims), layer.weight, layer.bias), x.origin)
        half = triple(k // 2 for k in kernel)
        return Placed(convolved(data, layer.weight, layer.bias, half), x.origin)

    def transposed(self, x: Placed, layer: nn.ConvTranspose3d, within: Box | None = None) -> Placed:
        """Upsample to ``stride * n`` voxels; ``within`` is not used."""
        kernel, stride = triple(layer.kernel_size), triple(layer.stride)
        if makes_one_map(layer.weight, stride):
            rim = triple(map(ceil_div, kernel, stride))
            data = functional.pad(x.data, [n for n in reversed(rim) for _ in range(2)])
            around = VALID.transposed(Placed(data, sub(x.origin, rim)), layer)
            return around.crop(Box(_scaled(x.box.lo, stride), _scaled(x.box.hi, stride)))
        full = functional.conv_transpose3d(x.data, layer.weight, layer.bias, stride)
        first = [(k - s) // 2 for k, s in zip(kernel, stride, strict=True)]
        z, y, x_ = (
            slice(a, a + n * s) for a, n, s in zip(first, x.data.shape[2:], stride, strict=True)
        )
        return Placed(full[..., z, y, x_], _scaled(x.origin, stride))

    def pool(self, x: Placed, stride: Triple) -> Placed:
        """Pool; the size must be whole cells."""
        origin = triple(o // s for o, s in zip(x.origin, stride, strict=True))
        return Placed(max_pooled(x.data, stride), origin)

    def interpolate(self, x: Placed, factor: int, kernel: Kernel, phase: Phase) -> Placed:
        """Interpolate the tile continued by half-sample reflection along z."""
        data = interpolated(reflected_along_z(x.data, kernel), factor, kernel, phase)
        return Placed(data, _scaled(x.origin, (factor, 1, 1)))


class Valid:
    """No padding: every voxel kept is exact, and the origin moves."""

    def conv(self, x: Placed, layer: nn.Conv3d | Convolution) -> Placed:
        """Convolve, losing ``(k - 1) // 2`` voxels before and the rest after."""
        origin = triple(
            o + (k - 1) // 2 for o, k in zip(x.origin, triple(layer.kernel_size), strict=True)
        )
        return Placed(convolved(x.data, layer.weight, layer.bias), origin)

    def transposed(self, x: Placed, layer: nn.ConvTranspose3d, within: Box | None = None) -> Placed:
        """Upsample, keeping only outputs of which every contributing input is known."""
        kernel, stride = triple(layer.kernel_size), triple(layer.stride)
        if within is not None:
            x = x.crop(transposed_inputs(within, layer))
        # Output o sums inputs (o + first - k + 1)/s .. (o + first)/s, so k - s outputs at either
        # end of the full transposed convolution miss a contributor.
        margin = triple(k - s for k, s in zip(kernel, stride, strict=True))
        if makes_one_map(layer.weight, stride):
            data = upsampled_to_one_map(x.data, layer.weight, layer.bias, stride[0])
        else:
            data = transposed(x.data, layer.weight, layer.bias, stride, margin)
        origin = triple(
            o * s + m - m // 2 for o, s, m in zip(x.origin, stride, margin, strict=True)
        )
        result = Placed(data, origin)
        return result if within is None else result.crop(within)

    def pool(self, x: Placed, stride: Triple) -> Placed:
        """Pool the whole cells of the absolute grid that lie inside the tile."""
        lo = triple(map(ceil_div, x.box.lo, stride))
        hi = triple(b // s for b, s in zip(x.box.hi, stride, strict=True))
        whole = x.crop(Box(_scaled(lo, stride), _scaled(hi, stride)))
        return Placed(max_pooled(whole.data, stride), lo)

    def interpolate(self, x: Placed, factor: int, kernel: Kernel, phase: Phase) -> Placed:
        """Interpolate where all taps are known."""
        z, y, x_ = x.origin
        data = interpolated(x.data, factor, kernel, phase)
        return Placed(data, ((z + INTERPOLATIONS[kernel]) * factor, y, x_))


SAME = Same()
VALID = Valid()


def concatenate(*parts: Placed) -> Placed:
    """Stack channels of the voxels that all parts cover."""
    common = parts[0].box
    for part in parts[1:]:
        common &= part.box
    return Placed(torch.cat([part.crop(common).data for part in parts], 1), common.lo)


def along_z(parts: Sequence[Placed]) -> Placed:
    """Put slabs together again, those that hold anything."""
    known = [part for part in parts if part.box.size] or parts[:1]
    return Placed(torch.cat([part.data for part in known], 2), known[0].origin)


def conv_slabs(x: Placed, layers: Sequence[nn.Conv3d], count: int, cell: int) -> list[Placed]:
    """Cut what goes into valid convolutions so that what comes out meets; see :meth:`Box.slabs`."""
    outputs = x.box
    for layer in layers:
        outputs = conv_outputs(outputs, layer)
    parts = []
    for slab in outputs.slabs(count, cell):
        for layer in layers:
            slab = conv_inputs(slab, layer)
        parts.append(x.crop(slab))
    return parts


class ResidualConfig(Protocol):
    """Hyperparameters that say what a network's answer is added to."""

    @property
    def factor(self) -> int:
        """Target voxels per section."""
        ...

    @property
    def residual(self) -> ResidualKernel:
        """Interpolation along z that is added; none where the answer stands by itself."""
        ...

    @property
    def phase(self) -> Phase:
        """Where a section lies."""
        ...


def with_residual(x: Placed, source: Placed, config: ResidualConfig, padding: Padding) -> Placed:
    """Add the interpolation of ``source`` along z to a network's answer, where both are known."""
    if config.residual == "none":
        return x
    base = padding.interpolate(source, config.factor, config.residual, config.phase)
    common = x.box & base.box
    return Placed(x.crop(common).data + base.crop(common).data, common.lo)


def zero_for_residual(last: nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d) -> None:
    """Zero the last layer, so that training starts from the interpolation itself."""
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


def conv_inputs(outputs: Box, layer: nn.Conv3d) -> Box:
    """Return the voxels that a convolution needs for ``outputs``."""
    before, after = _rims(layer)
    return Box(sub(outputs.lo, before), add(outputs.hi, after))


def conv_outputs(inputs: Box, layer: nn.Conv3d) -> Box:
    """Return the outputs of a valid convolution."""
    before, after = _rims(layer)
    return Box(add(inputs.lo, before), sub(inputs.hi, after))


def _rims(layer: nn.Conv3d) -> tuple[Triple, Triple]:
    """Return the voxels that a convolution needs before and after each output."""
    kernel = triple(layer.kernel_size)
    return triple((k - 1) // 2 for k in kernel), triple(k // 2 for k in kernel)


def transposed_inputs(outputs: Box, layer: nn.ConvTranspose3d) -> Box:
    """Return the voxels that a transposed convolution needs for ``outputs``."""
    lo, hi = [], []
    sizes = zip(triple(layer.kernel_size), triple(layer.stride), strict=True)
    for a, b, (k, s) in zip(outputs.lo, outputs.hi, sizes, strict=True):
        first = (k - s) // 2
        lo.append(ceil_div(a + first - k + 1, s))
        hi.append((b - 1 + first) // s + 1)
    return Box(triple(lo), triple(hi))


def require_kernel(kernel: Triple, stride: Triple, role: str) -> None:
    """Refuse a transposed convolution that leaves gaps.

    Raises:
        ModelError: the kernel is smaller than the stride on an axis.
    """
    if any(k < s for k, s in zip(kernel, stride, strict=True)):
        raise ModelError(
            f"{role}: transposed kernel {kernel} is smaller than its stride {stride}; "
            "some output voxels would have no input"
        )


def _scaled(origin: Triple, by: Triple) -> Triple:
    return (origin[0] * by[0], origin[1] * by[1], origin[2] * by[2])
