"""PSSR's network on interpolated slices: a baseline of A2I-3DEM, which makes z finer.

Fang et al. 2021 (Nature Methods 18:406) make y and x four times finer: a section is upsampled
first and sharpened then. Khateri et al. 2023 (arXiv 2309.10646) compare A2I-3DEM with PSSR along z.
They do not say how; here slices are interpolated along z, by any ratio, and sharpened by the same
layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from isochunk.core.geometry import Triple
from isochunk.core.spec import Phase
from isochunk.models.network import NetworkConfig
from isochunk.models.pssr import CELL, FACTOR, PSSR, PSSRConfig
from isochunk.models.refining import RefiningNetwork
from isochunk.models.tiled_layers import zero_for_residual


@dataclass(frozen=True, slots=True)
class PSSRZConfig(NetworkConfig):
    """Hyperparameters; width and depths are the paper's by default."""

    width: int = 64
    """Feature maps of the first layer."""
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Residual blocks of the encoder's stages, as 3,4,6,3."""
    residual: bool = False
    """True adds the interpolation to the answer; not in the paper."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ModelError: a number is too small.
        """
        self.layers()

    def layers(self) -> PSSRConfig:
        """Return the hyperparameters of the network that sharpens."""
        return PSSRConfig(width=self.width, depths=self.depths)


class PSSRZ(RefiningNetwork):
    """The network of a :class:`PSSRZConfig`."""

    config_type = PSSRZConfig
    alignment = CELL
    # As pssr's. With channels last, oneDNN's backward of few maps corrupts memory (torch 2.13).
    memory_format = torch.preserve_format

    def __init__(self, config: PSSRZConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.config = config
        self.layers = PSSR(config.layers())
        self.halo = FACTOR * self.layers.halo[1]
        if config.residual:
            zero_for_residual(self.layers.last)

    @property
    def entrance(self) -> nn.Module:
        """The first convolution."""
        return self.layers.entrance

    def refine(
        self, x: Tensor, _factor: Fraction, _phase: Phase, _origin: Triple = (0, 0, 0)
    ) -> Tensor:
        """Refine interpolated slices; see :class:`RefiningNetwork`."""
        refined = self.layers.clear(x)
        return x + refined if self.config.residual else refined
