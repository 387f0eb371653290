"""A tensor that knows where it lies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from isochunk.core.geometry import Box, Triple, triple


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor and the position of its first voxel."""

    data: Tensor
    """Values, (b, c, z, y, x)."""
    origin: Triple
    """Grid coordinate of the first voxel at the tensor's own level (z, y, x)."""

    @property
    def box(self) -> Box:
        """Voxels covered, at the tensor's own level."""
        return Box.from_shape(triple(self.data.shape[2:]), self.origin)

    def crop(self, box: Box) -> Placed:
        """Return the part inside ``box``, as a view."""
        inside = self.box & box
        return Placed(self.data[(..., *inside.slices(self.origin))], inside.lo)
