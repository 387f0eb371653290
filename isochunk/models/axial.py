"""Networks that restore slices with one coarse axis, run on the xz or yz slices of a volume.

Such a network always sees z as the coarse axis: (n, 1, z, x) slices, of any rational factor. yz
slices are xz slices of the volume with y and x exchanged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from isochunk.geometry import Box, triple
from isochunk.models.placed import Placed
from isochunk.predict import Taps
from isochunk.spec import Grid, Phase, Plane

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


class SliceEngine(Protocol):
    """What restores xz slices, each by itself."""

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        ...

    def needs(self, want: Box) -> Box:
        """Return the source voxels needed for the xz slices of ``want``."""
        ...

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Restore ``want`` from the source voxels ``needs(want)``, both (1, 1, z, y, x)."""
        ...


@dataclass(frozen=True, slots=True)
class PlanesEngine:
    """A network for slices on xz slices, yz slices or both: then the mean of the answers."""

    engine: SliceEngine
    """What restores xz slices."""
    plane: Plane
    """xz, yz or xz+yz."""
    largest: None = None
    """Any tile will do."""

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        return self.engine.module

    def needs(self, want: Box) -> Box:
        """Return the source voxels under ``want`` and the halo."""
        boxes = [self._needs(want, plane) for plane in self._planes()]
        return Box(
            triple(map(min, zip(*(box.lo for box in boxes), strict=True))),
            triple(map(max, zip(*(box.hi for box in boxes), strict=True))),
        )

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Predict ``want``, (1, 1, z, y, x)."""
        placed = Placed(tile, self.needs(want).lo)
        answers = [self._restore(placed, want, plane) for plane in self._planes()]
        return answers[0] if len(answers) == 1 else (answers[0] + answers[1]) / 2

    def _needs(self, want: Box, plane: str) -> Box:
        return _turned(self.engine.needs(_turned(want, plane)), plane)

    def _restore(self, tile: Placed, want: Box, plane: str) -> Tensor:
        part = tile.crop(self._needs(want, plane)).data
        if plane == "xz":
            return self.engine(part, want)
        return self.engine(part.transpose(3, 4), _turned(want, plane)).transpose(3, 4)

    def _planes(self) -> list[str]:
        return self.plane.split("+")


def _turned(box: Box, plane: str) -> Box:
    """Exchange y and x for yz slices."""
    if plane == "xz":
        return box
    (z0, y0, x0), (z1, y1, x1) = box.lo, box.hi
    return Box((z0, x0, y0), (z1, x1, y1))


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


def blended(x: Tensor, taps: Taps) -> Tensor:
    """Interpolate along z: (n, c, z, x) to (n, c, target z, x)."""
    total = None
    for index, weight in zip(taps.index, taps.weight, strict=True):
        rows = x.index_select(2, torch.from_numpy(index).to(x.device))
        term = rows * torch.from_numpy(weight).to(x)[:, None]
        total = term if total is None else total + term
    assert total is not None  # there is always at least one tap
    return total
