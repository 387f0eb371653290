"""Interpolation of tensors along z, with the taps and weights of ``interpolation``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from isochunk.core.geometry import reflected
from isochunk.core.spec import Phase
from isochunk.models.interpolation import INTERPOLATIONS, Kernel, Taps, neighbour_weights


def blended(x: Tensor, taps: Taps) -> Tensor:
    """Interpolate along z: (n, c, z, ...) to (n, c, target z, ...)."""
    total = None
    for index, weight in zip(taps.index, taps.weight, strict=True):
        rows = x.index_select(2, torch.from_numpy(index).to(x.device))
        term = rows * torch.from_numpy(weight).to(x).view(-1, *(1,) * (x.ndim - 3))
        total = term if total is None else total + term
    assert total is not None  # there is always at least one tap
    return total


def reflected_along_z(x: Tensor, kernel: Kernel) -> Tensor:
    """Continue (b, c, z, y, x) along z by half-sample reflection, as far as a kernel reaches."""
    n, reach = x.shape[2], INTERPOLATIONS[kernel]
    index = torch.from_numpy(reflected(-reach, n + reach, 0, n))
    return x.index_select(2, index.to(x.device))


def interpolated(x: Tensor, factor: int, kernel: Kernel, phase: Phase) -> Tensor:
    """Interpolate along z by a whole factor, as one convolution with a map for each target voxel.

    Args:
        x: (b, c, z, y, x).
        factor: target voxels per section.
        kernel: linear or cubic.
        phase: where a section lies; see :func:`isochunk.models.interpolation.axis_taps`.

    Returns:
        (b, c, factor * (z - 2 * reach), y, x): the kernel's reach is used up at either end.
    """
    b, c, _, ny, nx = x.shape
    weights = torch.from_numpy(neighbour_weights(kernel, factor, phase)).to(x)
    phases = functional.conv3d(
        x.reshape(b * c, 1, *x.shape[2:]), weights[:, None, :, None, None]
    )  # (b*c, target voxel of a section, z, y, x)
    return phases.transpose(1, 2).reshape(b, c, -1, ny, nx)
