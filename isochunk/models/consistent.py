"""A network whose answer is made consistent with its input, before anything is rounded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from isochunk.core.consistency import add_back, whole_sections
from isochunk.core.geometry import Box, Triple
from isochunk.models.placed import Placed
from isochunk.models.tiling import Engine


@dataclass(frozen=True, slots=True)
class ConsistentEngine:
    """Computes whole sections and adds back what their means lack of the input.

    That is done voxel by voxel along z, so tiles equal the whole as those of the network itself do.
    A tile that cuts sections is computed to their ends and cropped; it needs no other source voxels
    for that, since these are whole sections already.
    """

    engine: Engine
    """The network, of a whole factor along z and none along y and x."""
    factor: int
    """Target voxels per section."""

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        return self.engine.module

    @property
    def largest(self) -> Triple | None:
        """Largest tile, which holds whole sections."""
        return self.engine.largest

    def needs(self, want: Box) -> Box:
        """Return the source voxels needed for the sections that ``want`` touches."""
        return self.engine.needs(whole_sections(want, self.factor)[0])

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Predict ``want``, (1, 1, z, y, x)."""
        whole, under = whole_sections(want, self.factor)
        sections = Placed(tile, self.engine.needs(whole).lo).crop(under).data[0, 0]
        answer = self.engine(tile, whole)[0, 0].float()
        made = add_back(answer, sections, self.factor)[None, None]
        return Placed(made, whole.lo).crop(want).data
