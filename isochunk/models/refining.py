"""Networks that refine slices whose coarse axis was interpolated first, by any rational factor."""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional

from isochunk.core.geometry import Box, Triple, ceil_div, triple
from isochunk.core.spec import Grid, Phase
from isochunk.models.axial import AxialNetwork, few_at_a_time, slices, volume
from isochunk.models.interpolation import axis_taps, whole_axis_taps
from isochunk.models.network import Corner
from isochunk.models.placed import Placed
from isochunk.models.torch_interpolation import blended


class RefiningNetwork(AxialNetwork):
    """A network from interpolated slices to clear ones of the same size."""

    grid: Grid = "target"

    @abstractmethod
    def refine(self, x: Tensor, factor: Fraction, phase: Phase, origin: Triple) -> Tensor:
        """Refine interpolated slices, (n, 1, z, x); both extents multiples of the alignment.

        Args:
            x: cubic interpolation along z.
            factor: by which it was interpolated.
            phase: where a source section lies.
            origin: target coordinates z, y, x of the first pixel of the first slice.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Refine slices of a ratio of 1; see :meth:`refine`."""
        return self.refine(x, Fraction(1), "mean", (0, 0, 0))

    def train_on(
        self, coarse: Tensor, factor: Fraction, phase: Phase = "mean", corner: Corner = (0, 0)
    ) -> Tensor:
        """Interpolate whole slices, continued by half-sample reflection, and refine them.

        To make whole cells of the alignment, the interpolated slices are continued by repetition.
        """
        x = blended(coarse, whole_axis_taps("cubic", coarse.shape[2], factor, phase))
        nz, nx = x.shape[2:]
        more = (0, -nx % self.alignment, 0, -nz % self.alignment)
        whole = functional.pad(x, more, mode="replicate")
        refined = self.refine(whole, factor, phase, (corner[0], 0, corner[1]))
        return refined[..., :nz, :nx]

    def needs(self, want: Box, factor: Fraction, phase: Phase) -> Box:
        """Return the source voxels needed for the xz slices of ``want``."""
        rows, columns = self._region(want)
        taps = axis_taps("cubic", rows, factor, 0, phase).index
        return Box(
            (int(taps.min()), want.lo[1], columns[0]), (int(taps.max()) + 1, want.hi[1], columns[1])
        )

    def restore(self, tile: Placed, want: Box, factor: Fraction, phase: Phase) -> Tensor:
        """Restore the xz slices of ``want``; see :class:`AxialNetwork`."""
        rows, columns = self._region(want)
        taps = axis_taps("cubic", rows, factor, tile.origin[0], phase)
        # Whole cells: what lies farther out than the halo is seen by no wanted pixel.
        rim = -self.halo % self.alignment
        z, x = (
            slice(want.lo[a] - span[0] + rim, want.hi[a] - span[0] + rim)
            for a, span in ((0, rows), (2, columns))
        )
        refined, y = [], want.lo[1]
        for part in few_at_a_time(slices(tile.data), int(factor) + 1):
            whole = functional.pad(blended(part, taps), (rim,) * 4)
            origin = triple((rows[0] - rim, y, columns[0] - rim))
            refined.append(self.refine(whole, factor, phase, origin)[..., z, x])
            y += len(part)
        return volume(torch.cat(refined))

    def _region(self, want: Box) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the target pixels along z and x that are computed with: [first, past the last)."""
        cell = self.alignment
        z, x = (
            (want.lo[a] // cell * cell - self.halo, ceil_div(want.hi[a], cell) * cell + self.halo)
            for a in (0, 2)
        )
        return z, x
