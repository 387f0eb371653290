"""A2I-3DEM: a U-shaped network of window attention that refines interpolated slices.

Khateri et al. 2023 (arXiv 2309.10646). The coarse axis is interpolated first, by any rational
factor; the network maps the interpolated slice to a clear one of the same size.

What the paper leaves open follows Uformer (Wang et al. 2022, CVPR): 4 levels, 32 maps, windows of
8 x 8, heads 1, 2, 4, 8, two blocks a level, 4 x 4 convolutions down and 2 x 2 transposed ones up.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from isochunk.core.geometry import Triple
from isochunk.core.spec import Phase
from isochunk.errors import ModelError
from isochunk.models.network import NetworkConfig
from isochunk.models.refining import RefiningNetwork
from isochunk.models.tiled_layers import zero_for_residual
from isochunk.models.windows import PixelRange, WindowAttention, whole_windows

Attention: TypeAlias = Literal["residual", "printed"]


@dataclass(frozen=True, slots=True)
class A2IConfig(NetworkConfig):
    """Hyperparameters."""

    width: int = 32
    """Feature maps at the finest level; each level doubles them."""
    levels: int = 4
    """Resolution levels including the bottom."""
    window: int = 8
    """Side of an attention window, at every level."""
    heads: tuple[int, ...] = (1, 2, 4, 8)
    """Attention heads of each level, finest first, as 1,2,4,8."""
    blocks: int = 2
    """Blocks per level on either side."""
    expansion: int = 2
    """Maps inside the gated layer, relative to those outside."""
    attention: Attention = "residual"
    """``residual``: attention is added to its input; ``printed``: it replaces it, as printed."""
    residual: bool = False
    """True adds the interpolation to the answer; not in the paper."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ModelError: a number below 1, or heads that do not fit.
        """
        numbers = (self.width, self.levels, self.window, self.blocks, self.expansion, *self.heads)
        if min(numbers) < 1 or self.attention not in get_args(Attention):
            raise ModelError(
                f"a2i needs numbers of at least 1 and attention of {get_args(Attention)}; "
                f"got {self}"
            )
        maps = [self.width * 2**level for level in range(self.levels)]
        if len(self.heads) != self.levels or any(
            n % h for n, h in zip(maps, self.heads, strict=False)
        ):
            raise ModelError(
                f"a2i of {self.levels} levels with {maps} maps needs as many numbers of heads, "
                f"each a divisor of its level's maps; got {self.heads}"
            )


class A2I(RefiningNetwork):
    """The network of an :class:`A2IConfig`."""

    config_type = A2IConfig

    def __init__(self, config: A2IConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.config = config
        self.alignment = _cell(config)
        self.halo = _reach(config)
        maps = [config.width * 2**level for level in range(config.levels)]
        upper = range(config.levels - 1)
        self.first = nn.Conv2d(1, config.width, 3, padding=1)
        self.encoder = nn.ModuleList(_blocks(level, config) for level in range(config.levels))
        self.down = nn.ModuleList(
            nn.Conv2d(maps[level], maps[level + 1], 4, stride=2, padding=1) for level in upper
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(maps[level + 1], maps[level], 2, stride=2) for level in upper
        )
        self.merge = nn.ModuleList(nn.Conv2d(2 * maps[level], maps[level], 1) for level in upper)
        self.decoder = nn.ModuleList(_blocks(level, config) for level in upper)
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
        # Maps last in memory, as attention wants them: a fifth faster on a CPU.
        features = y = (
            self.first(x).to(self.last.weight.dtype).contiguous(memory_format=torch.channels_last)
        )
        skips = []
        for level, down in enumerate(self.down):
            y = self.encoder[level](y)
            skips.append(y)
            y = down(y)
        y = self.encoder[-1](y)
        for level in reversed(range(len(self.up))):
            y = self.merge[level](torch.cat([self.up[level](y), skips.pop()], 1))
            y = self.decoder[level](y)
        refined: Tensor = self.last(y + features)
        return x + refined if self.config.residual else refined


class AttentionBlock(nn.Module):
    """Attention within windows, then the gated layer; (n, c, z, x), in and out."""

    def __init__(self, maps: int, heads: int, config: A2IConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.form = config.attention
        self.before_attention = nn.LayerNorm(maps)
        self.attention = WindowAttention(maps, heads, config.window)
        self.before_gate = nn.LayerNorm(maps)
        self.gate = Gate(maps, config.expansion * maps)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to whole windows."""
        x = x.movedim(1, -1)  # (n, z, x, c)
        y: Tensor = self.attention(self.before_attention(x))
        if self.form == "residual":
            y = x + y
        gated: Tensor = self.gate(self.before_gate(y))
        return (y + gated).movedim(-1, 1)


class Gate(nn.Module):
    """GLEN: two parallel linear paths with their neighbourhood, multiplied; (n, z, x, c)."""

    def __init__(self, maps: int, inner: int) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.widen = nn.Linear(maps, 2 * inner)
        self.context = nn.Conv2d(2 * inner, 2 * inner, 3, padding=1, groups=2 * inner)
        self.narrow = nn.Linear(inner, maps)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        y = self.context(self.widen(x).movedim(-1, 1))
        one, two = y.chunk(2, 1)
        narrowed: Tensor = self.narrow((one * two).movedim(1, -1))
        return narrowed


def _blocks(level: int, config: A2IConfig) -> nn.Sequential:
    maps = config.width * 2**level
    return nn.Sequential(
        *(AttentionBlock(maps, config.heads[level], config) for _ in range(config.blocks))
    )


def _cell(config: A2IConfig) -> int:
    """Return the pixels of a window of the coarsest level, along either axis."""
    return config.window << (config.levels - 1)


def _reach(config: A2IConfig) -> int:
    """Return how far beyond a cell of the alignment its pixels look.

    Followed back through the layers by whole windows; both axes are alike.
    """
    cell = _cell(config)
    lo, hi = _seen_from(0, (-1, cell), config)  # the last convolution
    return max(-lo + 1, hi + 1 - cell + 1)  # and the first


def _seen_from(level: int, pixels: PixelRange, config: A2IConfig) -> PixelRange:
    """Return the pixels, where a level begins, that its output pixels ``pixels`` depend on."""
    for _ in range(config.blocks):
        pixels = _before_block(pixels, config.window)
    if level == config.levels - 1:
        return pixels
    # Down: output o has inputs 2o - 1 .. 2o + 2. Up: output o has input o // 2.
    lo, hi = _seen_from(level + 1, (pixels[0] // 2, pixels[1] // 2), config)
    pixels = (min(pixels[0], 2 * lo - 1), max(pixels[1], 2 * hi + 2))
    for _ in range(config.blocks):
        pixels = _before_block(pixels, config.window)
    return pixels


def _before_block(pixels: PixelRange, window: int) -> PixelRange:
    """Go back through the gate's neighbourhood and the attention's windows."""
    return whole_windows((pixels[0] - 1, pixels[1] + 1), window)
