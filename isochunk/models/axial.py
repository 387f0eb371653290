"""Networks that restore slices with one coarse axis, run on the xz or yz slices of a volume.

Such a network always sees z as the coarse axis: (n, 1, z, x) slices, of any rational factor. yz
slices are xz slices of the volume with y and x exchanged.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from isochunk.core.geometry import Box
from isochunk.core.limits import (
    AXIAL_COST_SLICES,
    AXIAL_COST_TILE,
    DEVICE_PIXELS_AT_ONCE,
    PIXELS_AT_ONCE,
    WORKSPACE,
)
from isochunk.core.spec import Grid, ModelSpec, Phase
from isochunk.models.counting import Cost, Recorder
from isochunk.models.network import Corner, Geometry, Network
from isochunk.models.placed import Placed
from isochunk.models.tiling import Engine, PlanesEngine


class AxialNetwork(Network):
    """A network on slices, (n, 1, z, x)."""

    passes_slices = True
    memory_format = torch.channels_last  # a fifth faster for A2I on a CPU, a twelfth for niiv
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

    def restore_crops(
        self, coarse: Tensor, factor: Fraction, phase: Phase, corner: Corner = (0, 0)
    ) -> Tensor:
        """Restore the xz slices of crops."""
        b, _, _, y, _ = coarse.shape
        restored = self.train_on(coarse.movedim(3, 1).flatten(0, 1), factor, phase, corner)
        return restored.reshape(b, y, *restored.shape[1:]).movedim(1, 3)

    def geometry(self) -> Geometry:
        """Return how it lies on the grids of z and x."""
        one, reach, cell = Fraction(1), self.halo, self.alignment
        return Geometry((None, one, one), (reach, 0, reach), (cell, 1, cell), "xz", self.grid)

    def engine(self, spec: ModelSpec) -> Engine:
        """Return what runs it on the planes of a spec."""
        self.in_fastest_layout()
        return PlanesEngine(AxialEngine(self, spec.resolved_factor[0], spec.phase), spec.plane)

    def cost(self) -> Cost:
        """Count multiply-adds and peak memory on the xz slices of a tile, at a factor of 4."""
        hollow = copy.deepcopy(self).to("meta").eval()
        factor, side = Fraction(4), math.ceil(AXIAL_COST_TILE / self.alignment) * self.alignment
        want = Box.from_shape((side, AXIAL_COST_SLICES, side))
        tile = hollow.needs(want, factor, "mean")
        pixels = 16 * side  # large, so that rims do not count
        with torch.no_grad():
            with Recorder() as large:
                hollow.train_on(torch.empty(1, 1, pixels // 4, pixels, device="meta"), factor)
            with Recorder() as live:
                empty = torch.empty(1, 1, *tile.shape, device="meta")
                hollow.restore(Placed(empty, tile.lo), want, factor, "mean")
        macs = large.macs / pixels**2
        others = (
            (side - AXIAL_COST_SLICES) * side**2 * 2 * 4
        )  # float32 of what they are made of, and become
        return Cost(macs, WORKSPACE * (live.peak + others) / side**3)


@dataclass(frozen=True, slots=True)
class AxialEngine:
    """An axial network on the xz slices of a tile."""

    module: AxialNetwork
    """The network."""
    factor: Fraction
    """Target voxels per source voxel along z."""
    phase: Phase
    """Where a source section lies."""
    largest: None = None
    """Any tile will do."""

    def needs(self, want: Box) -> Box:
        """Return the source voxels under ``want`` and the halo."""
        return self.module.needs(want, self.factor, self.phase)

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Predict ``want``, (1, 1, z, y, x)."""
        placed = Placed(tile, self.needs(want).lo)
        return self.module.restore(placed, want, self.factor, self.phase)


def slices(tile: Tensor) -> Tensor:
    """Return the xz slices of a tile: (1, 1, z, y, x) to (y, 1, z, x)."""
    return tile[0, 0].permute(1, 0, 2)[:, None]


def volume(restored: Tensor) -> Tensor:
    """Stack xz slices along y: (y, 1, z, x) to (1, 1, z, y, x)."""
    return restored[:, 0].permute(1, 0, 2)[None, None]


def few_at_a_time(x: Tensor, pixels: int) -> tuple[Tensor, ...]:
    """Cut a batch of slices so that no more pixels are worked on together than the device likes.

    Args:
        x: (n, c, z, x).
        pixels: pixels that a network makes of each.
    """
    most = DEVICE_PIXELS_AT_ONCE if x.is_cuda else PIXELS_AT_ONCE
    return torch.split(x, max(1, most // (pixels * x.shape[2] * x.shape[3])))
