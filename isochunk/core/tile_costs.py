"""What tiles of any shape cost a network, from a few that were walked.

In a network of convolutions the extent of every tensor along an axis grows in step with the
tile's: by a constant for the halo and a slope for the layer's own grid. So its size at any tile
follows from four: one tile, and that one longer along each axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isochunk.core.geometry import Triple

VOXEL_BYTES = 8
"""Of what a tile of slices is made of and becomes, both in float32."""


@dataclass(frozen=True, slots=True)
class TileCost:
    """What one tile costs."""

    macs: float
    """Multiply-adds."""
    bytes: float
    """Largest sum of what is alive at once."""
    elements: float
    """Of the largest tensor."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What a network did to one tile, in order."""

    macs: list[float]
    """Multiply-adds of each operation that has any."""
    bytes: list[float]
    """Bytes that come (positive) and go (negative)."""
    elements: list[float]
    """Of each tensor that came."""


@dataclass(frozen=True, slots=True)
class Slices:
    """A tile that passes through a network in a few slices at a time."""

    axis: int
    """The one that slices lie along."""
    rim: Triple
    """Target voxels computed on both sides of a tile together, and thrown away."""
    pixels: int
    """Most pixels that pass together, unless one slice has more."""

    def together(self, tiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many slices of each of many tiles, (n, 3), pass together."""
        area = np.delete(tiles + np.array(self.rim), self.axis, axis=1).prod(axis=1)
        few: NDArray[np.int64] = np.clip(self.pixels // area, 1, tiles[:, self.axis])
        return few


@dataclass(frozen=True, slots=True, eq=False)
class TileCosts:
    """Costs as functions of a tile's shape in target voxels."""

    base: NDArray[np.float64]
    """(3,) shape of the first tile that was walked."""
    macs: NDArray[np.float64]
    """(n, 4): value at the base, and growth by a voxel along z, y and x as a share of it."""
    bytes: NDArray[np.float64]
    """(n, 4), in order."""
    elements: NDArray[np.float64]
    """(n, 4)."""
    slices: Slices | None = None
    """How slices pass; all counts are then of one slice, and grow with their number."""
    then: TileCosts | None = None
    """What is done to the tile afterwards, as along another plane: work adds, memory does not."""

    @classmethod
    def of_walks(
        cls, tiles: Sequence[Triple], walks: Sequence[Walk], slices: Slices | None = None
    ) -> TileCosts | None:
        """Fit costs to four walks.

        Args:
            tiles: a tile, and it grown along z, along y, and along x.
            walks: what the network did to each.
            slices: how slices pass; tiles then hold one, and the one grown along the slices' axis
                is not walked again.

        Returns:
            The costs, or None where it did other things to one than to another.
        """
        steps = [max(1, tiles[axis + 1][axis] - tiles[0][axis]) for axis in range(3)]
        fitted = []
        for name in ("macs", "bytes", "elements"):
            seen = [np.asarray(getattr(walk, name), np.float64) for walk in walks]
            if len({values.shape for values in seen}) > 1:
                return None
            with np.errstate(invalid="ignore", divide="ignore"):
                growth = [(v / seen[0] - 1) / step for v, step in zip(seen[1:], steps, strict=True)]
            fitted.append(np.nan_to_num(np.stack([seen[0], *growth], axis=-1).reshape(-1, 4)))
        macs, size, elements = fitted
        return cls(np.asarray(tiles[0], np.float64), macs, size, elements, slices)

    @classmethod
    def padded(cls, macs: float, bytes: float, elements: float, rim: Triple) -> TileCosts:
        """Return the costs of a network that is run on a tile and its halo, and cropped.

        Args:
            macs: multiply-adds for one target voxel.
            bytes: the same, of what is alive at once.
            elements: the same, of the largest tensor.
            rim: target voxels computed on both sides of a tile together, and thrown away.
        """
        grown = np.asarray(rim, np.float64) + 1
        values = [np.array([[v * grown.prod(), *(1 / grown)]]) for v in (macs, bytes, elements)]
        return cls(np.ones(3), values[0], values[1], values[2])

    def with_pixels(self, pixels: int) -> TileCosts:
        """Return the costs where more or fewer pixels of slices pass together."""
        if self.slices is None:
            return self
        then = None if self.then is None else self.then.with_pixels(pixels)
        return replace(self, slices=replace(self.slices, pixels=pixels), then=then)

    def of(self, tile: Triple) -> TileCost:
        """Return what a tile of a shape costs."""
        return TileCost(*(float(values[0]) for values in self.of_many(np.array([tile]))))

    def of_many(self, tiles: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
        """Return what tiles of many shapes cost.

        Args:
            tiles: (n, 3) shapes in target voxels.

        Returns:
            Multiply-adds, bytes and elements, (n,) each; see :class:`TileCost`.
        """
        macs, alive, largest = self._of_one(tiles)
        if self.then is None:
            return macs, alive, largest
        more, alive_then, largest_then = self.then.of_many(tiles)
        return macs + more, np.maximum(alive, alive_then), np.maximum(largest, largest_then)

    def _of_one(self, tiles: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
        """Return the same, without what is done afterwards."""
        # Extents multiply, so each count is a polynomial of them, and so is a sum of counts.
        powers = _products(tiles - self.base)
        macs, sizes, elements = (
            table[:, :1] * _products(table[:, 1:])
            for table in (self.macs, self.bytes, self.elements)
        )
        total = powers @ macs.sum(axis=0)
        alive = (powers @ np.cumsum(sizes, axis=0).T).max(axis=1, initial=0)
        largest = (powers @ elements.T).max(axis=1, initial=0)
        if self.slices is None:
            return total, alive, largest
        together = self.slices.together(tiles)
        voxels = tiles.prod(axis=1)
        return (
            total * tiles[:, self.slices.axis],
            alive * together + VOXEL_BYTES * voxels,
            np.maximum(largest * together, voxels),
        )


def _products(factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for rows (n, 3) of z, y and x, the terms (n, 8) of (1 + z) (1 + y) (1 + x)."""
    z, y, x = np.stack([np.ones_like(factors), factors], axis=-1).swapaxes(0, 1)
    terms: NDArray[np.float64] = np.einsum("ni,nj,nk->nijk", z, y, x).reshape(-1, 8)
    return terms
