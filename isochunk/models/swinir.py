"""SwinIR: residual groups of shifted window attention, on interpolated slices.

Liang et al. 2021, ICCV Workshops (arXiv 2108.10257), in its form for images of the same size, which
adds the answer to the input. One of the baselines of A2I-3DEM (Khateri et al. 2023). The authors
roll an image and mask what came round; here windows lie on the absolute grid of the target, every
second layer's half a window further, and tiles bring real neighbours, so they equal the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor, nn
from torch.nn import functional

from isochunk.core.geometry import Triple
from isochunk.core.spec import Phase
from isochunk.errors import ModelError
from isochunk.models.network import NetworkConfig
from isochunk.models.refining import RefiningNetwork
from isochunk.models.tiled_layers import zero_for_residual
from isochunk.models.windows import PixelRange, WindowAttention, whole_windows


@dataclass(frozen=True, slots=True)
class SwinIRConfig(NetworkConfig):
    """Hyperparameters; the defaults are those of the paper's lightweight form."""

    width: int = 60
    """Feature maps."""
    groups: int = 4
    """Residual groups, each with a convolution at its end."""
    depth: int = 6
    """Layers of attention in a group; every second one's windows are shifted."""
    heads: int = 6
    """Attention heads."""
    window: int = 8
    """Side of an attention window."""
    expansion: int = 2
    """Maps inside the two linear layers, relative to those outside."""
    residual: bool = True
    """Whether the answer is added to the interpolation, as in the paper's form for this."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ModelError: a number below 1, an odd window, or heads that do not divide the maps.
        """
        numbers = (self.width, self.groups, self.depth, self.heads, self.window, self.expansion)
        if min(numbers) < 1 or self.window % 2 or self.width % self.heads:
            raise ModelError(
                "swinir needs numbers of at least 1, an even window, and heads that divide the "
                f"width; got {self}"
            )


class SwinIR(RefiningNetwork):
    """The network of a :class:`SwinIRConfig`."""

    config_type = SwinIRConfig

    def __init__(self, config: SwinIRConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.config = config
        self.alignment = config.window
        self.halo = _reach(config)
        self.first = nn.Conv2d(1, config.width, 3, padding=1)
        self.body = nn.ModuleList(Group(config) for _ in range(config.groups))
        self.norm = nn.LayerNorm(config.width)
        self.joint = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.last = nn.Conv2d(config.width, 1, 3, padding=1)
        if config.residual:
            zero_for_residual(self.last)

    @property
    def entrance(self) -> nn.Module:
        """The first convolution."""
        return self.first

    def refine(
        self, x: Tensor, _factor: Fraction, _phase: Phase, _origin: Triple = (0, 0, 0)
    ) -> Tensor:
        """Refine interpolated slices; see :class:`RefiningNetwork`."""
        features = y = self.first(x).to(self.last.weight.dtype)
        for group in self.body:
            y = group(y)
        y = self.norm(y.movedim(1, -1)).movedim(-1, 1)
        refined: Tensor = self.last(features + self.joint(y))
        return x + refined if self.config.residual else refined


class Group(nn.Module):
    """Layers of attention and a convolution, added to what they were given; (n, c, z, x)."""

    def __init__(self, config: SwinIRConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, shift) for shift in _shifts(config))
        self.joint = nn.Conv2d(config.width, config.width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to whole windows."""
        y = x.movedim(1, -1)
        for layer in self.layers:
            y = layer(y)
        joined: Tensor = self.joint(y.movedim(-1, 1))
        return x + joined


class Layer(nn.Module):
    """Attention within windows that may be shifted, then two linear layers; (n, z, x, c)."""

    def __init__(self, config: SwinIRConfig, shift: int) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        maps, inner = config.width, config.expansion * config.width
        self.shift = shift
        self.before_attention = nn.LayerNorm(maps)
        self.attention = WindowAttention(maps, config.heads, config.window)
        self.before_linear = nn.LayerNorm(maps)
        self.linear = nn.Sequential(nn.Linear(maps, inner), nn.GELU(), nn.Linear(inner, maps))

    def forward(self, x: Tensor) -> Tensor:
        """Apply; windows that reach beyond the slice hold zeros there."""
        y, s = self.before_attention(x), self.shift
        if s:
            y = self.attention(functional.pad(y, (0, 0, s, s, s, s)))[:, s:-s, s:-s]
        else:
            y = self.attention(y)
        x = x + y
        further: Tensor = self.linear(self.before_linear(x))
        return x + further


def _shifts(config: SwinIRConfig) -> tuple[int, ...]:
    """Return where the windows of each layer of a group begin."""
    return tuple(layer % 2 * (config.window // 2) for layer in range(config.depth))


def _reach(config: SwinIRConfig) -> int:
    """Return how far beyond a window its pixels look, followed back layer by layer."""
    pixels: PixelRange = (-2, config.window + 1)  # the last convolution and the joint one
    for _ in range(config.groups):
        pixels = (pixels[0] - 1, pixels[1] + 1)
        for shift in reversed(_shifts(config)):
            pixels = whole_windows(pixels, config.window, shift)
    lo, hi = pixels[0] - 1, pixels[1] + 1  # the first convolution
    return max(-lo, hi + 1 - config.window)
