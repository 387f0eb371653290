"""3D-FSRCNN: cheap convolutions on the coarse grid, one transposed convolution to the fine one.

Heinrich, Bogovic and Saalfeld 2017 (MICCAI; arXiv 1706.03142), after Dong, Loy and Tang 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn import functional

from isochunk.core.geometry import Box, Triple
from isochunk.core.spec import Phase
from isochunk.errors import ModelError
from isochunk.models.placed import Placed
from isochunk.models.tiled_layers import (
    Padding,
    ResidualKernel,
    require_kernel,
    with_residual,
    zero_for_residual,
)
from isochunk.models.tiled_network import TiledConfig, TiledNetwork


@dataclass(frozen=True, slots=True)
class FSRCNNConfig(TiledConfig):
    """Hyperparameters; kernels are z, y, x."""

    KERNELS = ("feature", "mapping", "expand")
    RECIPE_ONLY = (*KERNELS, "factor", "phase")

    maps: int
    """Feature maps of the first and last layer: the paper's d."""
    shrunk: int
    """Feature maps of the mapping layers: the paper's s."""
    mappings: int
    """Number of mapping layers: the paper's m."""
    feature: Triple
    """Kernel of the first convolution."""
    mapping: Triple
    """Kernel of the mapping convolutions."""
    expand: Triple
    """Kernel of the transposed convolution."""
    factor: int = 4
    """Target voxels per section."""
    residual: ResidualKernel = "none"
    """Interpolation along z added to the answer: none, linear or cubic; none in the paper."""
    phase: Phase = "mean"
    """Where sections lie that are interpolated."""

    def __post_init__(self) -> None:
        """Check counts and the transposed kernel.

        Raises:
            ModelError: a count is below one, or the kernel is smaller than the factor.
        """
        if min(self.maps, self.shrunk, self.mappings, self.factor) < 1:
            raise ModelError(
                f"fsrcnn needs maps, shrunk, mappings and factor >= 1; got {self.maps}, "
                f"{self.shrunk}, {self.mappings} and {self.factor}"
            )
        require_kernel(self.expand, (self.factor, 1, 1), "fsrcnn expand")

    @classmethod
    def paper(cls, maps: int, shrunk: int, mappings: int, factor: int = 4) -> FSRCNNConfig:
        """Return 3D-FSRCNN(d, s, m) of the paper's Table 1; factors other than 4 are our rule."""
        expand = (max(13, 2 * factor + 1), 13, 13)
        return cls(maps, shrunk, mappings, (5, 13, 13), (3, 9, 9), expand, factor)

    @classmethod
    def compact(
        cls,
        maps: int,
        shrunk: int,
        mappings: int,
        factor: int = 4,
        residual: ResidualKernel = "none",
    ) -> FSRCNNConfig:
        """Return a variant with small kernels."""
        expand = (2 * factor, 5, 5)
        return cls(maps, shrunk, mappings, (3, 5, 5), (3, 3, 3), expand, factor, residual)


class FSRCNN(TiledNetwork):
    """The network of an :class:`FSRCNNConfig`; PReLU per channel after every layer but the last.

    Maps float (b, 1, z, y, x) to (b, 1, factor * z, y, x).
    """

    config_type = FSRCNNConfig

    def __init__(self, config: FSRCNNConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.config = config
        self.factor = (config.factor, 1, 1)
        self.alignment = (1, 1, 1)
        maps, shrunk = config.maps, config.shrunk
        layers = [nn.Conv3d(1, maps, config.feature), nn.Conv3d(maps, shrunk, 1)]
        layers += [nn.Conv3d(shrunk, shrunk, config.mapping) for _ in range(config.mappings)]
        layers += [nn.Conv3d(shrunk, maps, 1)]
        self.convs = nn.ModuleList(layers)
        self.slopes = nn.ParameterList(nn.PReLU(layer.out_channels).weight for layer in layers)
        self.expand = nn.ConvTranspose3d(maps, 1, config.expand, self.factor)
        if config.residual != "none":
            zero_for_residual(self.expand)

    @property
    def entrance(self) -> nn.Module:
        """The first convolution."""
        return self.convs[0]

    def run(self, x: Placed, padding: Padding, want: Box | None = None) -> Placed:
        """Apply to (b, 1, z, y, x) source voxels; returns (b, 1, z, y, x) target voxels."""
        source = x
        for layer, slope in zip(self.convs, self.slopes, strict=True):
            assert isinstance(layer, nn.Conv3d)
            x = padding.conv(x, layer).to(slope.dtype)
            x = Placed(functional.prelu(x.data, slope), x.origin)
        x = padding.transposed(x, self.expand, want)
        return with_residual(x, source, self.config, padding)
