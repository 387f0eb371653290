"""Interpolation of tensors along z, with the taps and weights of ``interpolation``."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from isochunk.core.geometry import reflected
from isochunk.core.spec import Phase
from isochunk.models.interpolation import INTERPOLATIONS, Kernel, Taps, neighbour_weights


def blended(x: Tensor, taps: Taps) -> Tensor:
    """Interpolate along z: (n, c, z, ...) to (n, c, target z, ...)."""
    total = None
    for index, weight in zip(taps.index, taps.weight, strict=True):
        rows = x.index_select(2, on_device_of(x, index))
        term = rows * on_device_of(x, weight).to(x).view(-1, *(1,) * (x.ndim - 3))
        total = term if total is None else total + term
    assert total is not None  # there is always at least one tap
    return total


def reflected_along_z(x: Tensor, kernel: Kernel) -> Tensor:
    """Continue (b, c, z, y, x) along z by half-sample reflection, as far as a kernel reaches."""
    n, reach = x.shape[2], INTERPOLATIONS[kernel]
    return x.index_select(2, on_device_of(x, reflected(-reach, n + reach, 0, n)))


def interpolated(x: Tensor, factor: int, kernel: Kernel, phase: Phase) -> Tensor:
    """Interpolate along z by a whole factor.

    Products and sums, and no convolution: those are rounded by a GPU that may use TF32, and where
    a network is trained in mixed precision.

    Args:
        x: (b, c, z, y, x).
        factor: target voxels per section.
        kernel: linear or cubic.
        phase: where a section lies; see :func:`isochunk.models.interpolation.axis_taps`.

    Returns:
        (b, c, factor * (z - 2 * reach), y, x): the kernel's reach is used up at either end.
    """
    b, c, nz, ny, nx = x.shape
    weights = on_device_of(x, neighbour_weights(kernel, factor, phase)).to(x.dtype)
    taps = weights.shape[1]
    total = x.new_zeros(b, c, nz - taps + 1, factor, ny, nx)
    for tap in range(taps):
        sections = x[:, :, tap : nz - taps + 1 + tap, None]
        total.addcmul_(sections, weights[:, tap, None, None])
    return total.view(b, c, -1, ny, nx)


def on_device_of(x: Tensor, values: NDArray[Any]) -> Tensor:
    """Return an array as a tensor where another is, without waiting for what is computed there."""
    made = torch.from_numpy(values)
    return made.pin_memory().to(x.device, non_blocking=True) if x.is_cuda else made.to(x.device)
