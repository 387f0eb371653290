"""Networks that restore slices with one coarse axis, run on the xz or yz slices of a volume.

Such a network always sees z as the coarse axis: (n, 1, z, x) slices, of any rational factor. yz
slices are xz slices of the volume with y and x exchanged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from isochunk.core.geometry import Box
from isochunk.core.spec import Grid, Phase
from isochunk.models.tiled_layers import Placed

Corner: TypeAlias = tuple[int, int]
"""Target coordinates z, x of the first pixel of a slice."""

PIXELS_AT_ONCE = 1 << 18
"""Pixels of slices that pass through a network together: memory does not grow with the tile."""


class AxialNetwork(nn.Module, ABC):
    """A network on slices, (n, 1, z, x)."""

    config: Any
    """The network's frozen dataclass of hyperparameters."""
    halo: int
    """Pixels needed beyond an aligned slice on each side, along both of its axes."""
    alignment: int
    """Grid on which slices must start, along both axes."""
    grid: Grid
    """Grid of halo and alignment: the source's, or the target's where z is interpolated first."""

    @abstractmethod
    def train_on(
        self, coarse: Tensor, factor: Fraction, phase: Phase = "mean", corner: Corner = (0, 0)
    ) -> Tensor:
        """Restore whole training slices, padded as the network likes.

        Args:
            coarse: (n, 1, z, x), float.
            factor: target pixels per source pixel along z.
            phase: where a source section lies.
            corner: where a network that minds positions is to take the slices to lie.

        Returns:
            (n, 1, floor(factor * z), x).
        """

    @abstractmethod
    def needs(self, want: Box, factor: Fraction, phase: Phase) -> Box:
        """Return the source voxels needed for the xz slices of the target box ``want``."""

    @abstractmethod
    def restore(self, tile: Placed, want: Box, factor: Fraction, phase: Phase) -> Tensor:
        """Restore the xz slices of ``want``, exactly wherever the tile lies.

        Args:
            tile: source voxels ``needs(want)``, (1, 1, z, y, x).
            want: target box; y is as in the source.
            factor: target voxels per source voxel along z.
            phase: where a source section lies.

        Returns:
            (1, 1, z, y, x) of the shape of ``want``.
        """


def slices(tile: Tensor) -> Tensor:
    """Return the xz slices of a tile: (1, 1, z, y, x) to (y, 1, z, x)."""
    return tile[0, 0].permute(1, 0, 2)[:, None]


def volume(restored: Tensor) -> Tensor:
    """Stack xz slices along y: (y, 1, z, x) to (1, 1, z, y, x)."""
    return restored[:, 0].permute(1, 0, 2)[None, None]


def few_at_a_time(x: Tensor, pixels: int) -> tuple[Tensor, ...]:
    """Cut a batch of slices so that at most ``PIXELS_AT_ONCE`` pixels are worked on together.

    Args:
        x: (n, c, z, x).
        pixels: pixels that a network makes of each.
    """
    return torch.split(x, max(1, PIXELS_AT_ONCE // (pixels * x.shape[2] * x.shape[3])))
