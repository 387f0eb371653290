"""A tensor that knows where it lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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

    def to(self, dtype: torch.dtype) -> Placed:
        """Return it in another number format."""
        return Placed(self.data.to(dtype), self.origin)

    def kept(self, box: Box) -> Placed:
        """Return the part inside ``box`` in memory of its own, so that the rest can go."""
        part = self.crop(box)
        return self if part.box == self.box else Placed(part.data.clone(), part.origin)

    def widened(self, maps: int) -> Placed:
        """Return it with room for ``maps`` more channels, which :meth:`filled` fills."""
        b, c, *shape = self.data.shape
        innermost = self.data.stride(1) == 1
        data = torch.empty(
            (b, c + maps, *shape),
            dtype=self.data.dtype,
            device=self.data.device,
            memory_format=torch.channels_last_3d if innermost else torch.contiguous_format,
        )
        data[:, :c] = self.data
        return Placed(data, self.origin)

    def filled(self, last: Placed) -> Placed:
        """Write the last channels, and return what both cover."""
        common = self.box & last.box
        data = self.crop(common).data
        data[:, -last.data.shape[1] :] = last.crop(common).data
        return Placed(data, common.lo)
