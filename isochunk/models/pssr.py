"""PSSR: four times finer in y and x, from one section or from its neighbours too.

Fang et al. 2021 (Nature Methods 18:406; bioRxiv 740548). The coarse image is upsampled first; a
U-Net whose encoder is a ResNet34 sharpens it. Layers are those of the authors' code, which builds
them with fastai's ``unet_learner``; the encoder is He et al. 2016 (CVPR), 34 layers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from isochunk.core.geometry import Box, Triple, ceil_div
from isochunk.core.spec import ModelSpec, Phase
from isochunk.errors import ModelError, UsageError
from isochunk.models.axial import few_at_a_time
from isochunk.models.counting import Cost
from isochunk.models.network import Corner, Geometry, Network, NetworkConfig
from isochunk.models.placed import Placed
from isochunk.models.probe import Probe, Reach, measured_cost
from isochunk.models.tiling import Engine
from isochunk.models.torch_interpolation import on_device_of

FACTOR = 4
"""Target pixels per source pixel, along y and x."""

CELL = 32
"""Target pixels of a cell of the coarsest map."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics with which a single section, as three equal channels, is normalised."""


@dataclass(frozen=True, slots=True)
class PSSRConfig(NetworkConfig):
    """Hyperparameters; defaults are the paper's single-frame network, without its attention."""

    RECIPE_ONLY = ("sections",)  # on the command line, that is arch pssr-mf

    sections: int = 0
    """Neighbouring sections used on each side; 2 for the multi-frame network."""
    width: int = 64
    """Feature maps of the first layer."""
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Residual blocks of the encoder's stages, as 3,4,6,3."""
    attention: bool = False
    """True for self-attention over the whole stride-8 map, as in the paper; tiles then differ from
    the whole."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ModelError: a number is too small.
        """
        if self.sections < 0 or self.width < 1 or len(self.depths) != 4 or min(self.depths) < 1:  # noqa: PLR2004
            raise ModelError(
                f"pssr needs sections >= 0, width >= 1 and four depths of at least 1; got {self}"
            )

    @property
    def own_factor(self) -> Fraction | None:
        """Factor along y and x."""
        return Fraction(FACTOR)

    @property
    def lateral(self) -> bool:
        """It makes y and x of whole sections finer."""
        return True

    @property
    def planar(self) -> bool:
        """Its slices are xy."""
        return False

    @property
    def resnet_encoder(self) -> bool:
        """Its encoder is a ResNet34's."""
        return True

    def require_patch(self, patch: Triple, factors: tuple[Fraction, ...]) -> None:
        """Refuse crops that are not its frames, or no whole cells of the coarsest map.

        Raises:
            UsageError: as said.
        """
        frames = 2 * self.sections + 1
        if patch[0] != frames or any(n % CELL or n < 2 * CELL for n in patch[1:]):
            raise UsageError(
                f"patch {patch} does not fit pssr, which needs {frames} along z and multiples "
                f"of {CELL} from {2 * CELL} along y and x; choose e.g. {(frames, 256, 256)}"
            )


class PSSR(Network):
    """The network of a :class:`PSSRConfig`.

    Maps float (1, 1, z + 2 sections, y, x) to (1, 1, z, 4 y, 4 x).
    """

    config_type = PSSRConfig
    factor: Triple = (1, FACTOR, FACTOR)
    alignment: Triple = (1, CELL // FACTOR, CELL // FACTOR)

    passes_slices = True

    def __init__(self, config: PSSRConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.config = config
        self.inexact_because = "it attends to the whole section" if config.attention else ""
        cell = self.alignment[1]
        reach = ceil_div(_reach(config), cell) * cell  # whole cells, so that tiles fit the maps
        self.halo: Triple = (config.sections, reach, reach)
        w = config.width
        maps = (w, 2 * w, 4 * w, 8 * w)
        seen = 3 if config.sections == 0 else 2 * config.sections + 1
        self.stem = nn.Sequential(
            nn.Conv2d(seen, w, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(w), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    ResidualBlock(
                        (w, *maps)[stage] if i == 0 else maps[stage],
                        maps[stage],
                        2 if stage and i == 0 else 1,
                    )
                    for i in range(depth)
                )
            )
            for stage, depth in enumerate(config.depths)
        )
        self.middle = nn.Sequential(
            nn.BatchNorm2d(8 * w),
            nn.ReLU(),
            nn.Conv2d(8 * w, 16 * w, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16 * w, 8 * w, 3, padding=1),
            nn.ReLU(),
        )
        self.up = nn.ModuleList()
        below = 8 * w
        for place, skip in enumerate((4 * w, 2 * w, w, w)):
            width = below // 2 + skip
            out = width // 2 if place == 3 else width  # noqa: PLR2004
            self.up.append(Up(below, skip, out, attention=config.attention and place == 1))
            below = out
        self.finest = Shuffle(below, below, blur=False)
        whole = below + seen
        self.end = nn.ModuleList(nn.Conv2d(whole, whole, 3, padding=1) for _ in range(2))
        self.last = nn.Conv2d(whole, 1, 1)

    @property
    def entrance(self) -> nn.Module:
        """The first convolution."""
        return self.stem[0]

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the sections of a tile that have all their neighbours."""
        frames = x[0, 0].unfold(0, 2 * self.config.sections + 1, 1).movedim(3, 1)  # (z, f, y, x)
        parts = few_at_a_time(frames, FACTOR**2)
        return torch.cat([self.sharpen(part) for part in parts])[:, 0][None, None]

    def sharpen(self, frames: Tensor) -> Tensor:
        """Restore middle frames: (n, 2 sections + 1, y, x) to (n, 1, 4 y, 4 x).

        Extents need be multiples of 8.
        """
        return self.clear(functional.interpolate(frames, scale_factor=FACTOR, mode="bilinear"))

    def clear(self, x: Tensor) -> Tensor:
        """Sharpen images that were interpolated, (n, 2 sections + 1, y, x) to (n, 1, y, x).

        Extents need be multiples of :data:`CELL`.
        """
        if self.config.sections == 0:
            statistics = np.array([IMAGENET_MEAN, IMAGENET_STD], np.float32)
            mean, std = on_device_of(x, statistics)[..., None, None]
            x = (x - mean) / std  # one section becomes three channels
        trunk = self.last.weight.dtype
        conv, *others = self.stem
        y = conv(x).to(trunk)
        for layer in others:
            y = layer(y)
        x = x.to(trunk)
        skips, y = [y], self.pool(y)
        for stage in self.stages:
            y = stage(y)
            skips.append(y)
        y = self.middle(skips.pop())
        for up in self.up:
            y = up(y, skips.pop())
        y = torch.cat([self.finest(y), x], 1)
        one, two = self.end
        y = y + torch.relu(two(torch.relu(one(y))))
        restored: Tensor = self.last(y)
        return restored

    def restore_crops(
        self, coarse: Tensor, factor: Fraction, phase: Phase, corner: Corner = (0, 0)
    ) -> Tensor:
        """Restore the middle sections of crops: (b, 1, frames, y, x) to (b, 1, 1, 4 y, 4 x)."""
        return self.sharpen(coarse[:, 0])[:, :, None]

    def geometry(self) -> Geometry:
        """Return how it lies on the grids of sections."""
        _, y, x = map(Fraction, self.factor)
        sections, exact = self.config.sections, not self.inexact_because
        return Geometry(
            (Fraction(1), y, x), self.halo, self.alignment, "xy", sections=sections, exact=exact
        )

    def engine(self, spec: ModelSpec) -> Engine:
        """Return what crops the halo away."""
        return LateralEngine(self, spec)

    def cost(self) -> Cost:
        """Count multiply-adds and peak memory on a small input."""
        hollow, sections = copy.deepcopy(self).to("meta").eval(), self.config.sections
        rims = (0, 0, 0, 0, sections, sections)
        probe = Probe(lambda x: hollow(functional.pad(x.to("meta"), rims)), self.factor)
        return measured_cost(probe, Reach(self.halo, self.alignment))

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """Return three groups, as fastai splits a ResNet: stem and first stages, last, all else."""
        first = [self.stem, *self.stages[:2]]
        second = list(self.stages[2:])
        encoder = [[p for module in part for p in module.parameters()] for part in (first, second)]
        held = {id(p) for part in encoder for p in part}
        return [*encoder, [p for p in self.parameters() if id(p) not in held]]


@dataclass(frozen=True, slots=True)
class LateralEngine:
    """PSSR on tiles: sections in, finer sections out; the halo is cropped away."""

    module: PSSR
    """The network."""
    spec: ModelSpec
    """Its spec with its factor resolved."""
    largest: Triple | None = None
    """Any tile will do."""

    def needs(self, want: Box) -> Box:
        """Return the aligned source voxels under ``want`` and the halo."""
        return self.spec.read_box(want)

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Predict ``want``."""
        z, y, x = self.needs(want).lo
        _, fy, fx = self.module.factor
        origin = (z + self.spec.sections, y * fy, x * fx)
        return Placed(self.module(tile), origin).crop(want).data


class ResidualBlock(nn.Module):
    """A basic block of ResNet34."""

    def __init__(self, before: int, maps: int, stride: int) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, maps, 3, stride, 1, bias=False),
            nn.BatchNorm2d(maps),
            nn.ReLU(),
            nn.Conv2d(maps, maps, 3, 1, 1, bias=False),
            nn.BatchNorm2d(maps),
        )
        self.short = (
            nn.Identity()
            if stride == 1 and before == maps
            else nn.Sequential(nn.Conv2d(before, maps, 1, stride, bias=False), nn.BatchNorm2d(maps))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return torch.relu(self.body(x) + self.short(x))


class Shuffle(nn.Module):
    """Twice as many pixels along y and x, out of feature maps."""

    def __init__(self, before: int, maps: int, *, blur: bool) -> None:
        """Build the layers; weights start as nearest-neighbour upsampling (ICNR)."""
        super().__init__()
        self.blur = blur
        self.widen = nn.Conv2d(before, 4 * maps, 1)
        start = nn.init.kaiming_normal_(torch.empty(maps, before, 1, 1))
        with torch.no_grad():
            self.widen.weight.copy_(start.repeat_interleave(4, 0))

    def forward(self, x: Tensor) -> Tensor:
        """Apply; blurred by 2 x 2 against checkerboards, continued by repetition."""
        x = torch.relu(functional.pixel_shuffle(self.widen(x), 2))
        if self.blur:
            x = functional.avg_pool2d(functional.pad(x, (1, 0, 1, 0), mode="replicate"), 2, 1)
        return x


class Up(nn.Module):
    """One level of the decoder."""

    def __init__(self, below: int, skip: int, maps: int, *, attention: bool) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        width = below // 2 + skip
        self.shuffle = Shuffle(below, below // 2, blur=True)
        self.norm = nn.BatchNorm2d(skip)
        self.one = nn.Conv2d(width, maps, 3, padding=1)
        self.two = nn.Conv2d(maps, maps, 3, padding=1)
        self.attention = SelfAttention(maps) if attention else nn.Identity()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join what comes from below with what the encoder saw."""
        y = torch.relu(torch.cat([self.shuffle(x), self.norm(skip)], 1))
        joined: Tensor = self.attention(torch.relu(self.two(torch.relu(self.one(y)))))
        return joined


class SelfAttention(nn.Module):
    """Every pixel of a map attends to every other (Zhang et al. 2019, SAGAN)."""

    def __init__(self, maps: int) -> None:
        """Build the layers; at first attention adds nothing."""
        super().__init__()
        self.query = nn.Conv2d(maps, maps // 8, 1, bias=False)
        self.key = nn.Conv2d(maps, maps // 8, 1, bias=False)
        self.value = nn.Conv2d(maps, maps, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        q, k, v = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        weight = torch.softmax(q.transpose(1, 2) @ k, 1)  # (n, from, to)
        seen: Tensor = self.gamma * (v @ weight).view_as(x)
        return x + seen


def _reach(config: PSSRConfig) -> int:
    """Return how many source pixels a cell of target pixels looks beyond itself, on either side."""
    # Back from the finest map: two 3 x 3 convolutions; then as many below, level by level.
    pixels = (-2, CELL + 1)
    level = _before_up(pixels, blur=False)  # stride 2
    skips = []
    for _ in range(4):
        level = (level[0] - 2, level[1] + 2)
        skips.append(level)
        level = _before_up(level, blur=True)
    level = (level[0] - 2, level[1] + 2)  # the middle, at stride 32
    for stage in reversed(range(4)):
        stride = 2 if stage else 1
        for block in reversed(range(config.depths[stage])):
            level = _before_conv(_before_conv(level, 3, 1), 3, stride if block == 0 else 1)
        if stage:  # what comes out of the stage before is also a skip
            level = _both(level, skips[stage])
    level = _both(_before_conv(level, 3, 2), skips[0])
    level = _both(_before_conv(level, 7, 2), pixels)
    # Bilinear: target pixel t lies between source pixels (t + 0.5) / 4 - 0.5, rounded down and up.
    lo, hi = (2 * t + 1 - FACTOR for t in level)
    return max(-(lo // (2 * FACTOR)), ceil_div(hi, 2 * FACTOR) - CELL // FACTOR + 1)


def _before_conv(pixels: tuple[int, int], kernel: int, stride: int) -> tuple[int, int]:
    """Go back through a convolution with "same" padding."""
    before = kernel // 2
    return pixels[0] * stride - before, pixels[1] * stride + kernel - 1 - before


def _before_up(pixels: tuple[int, int], *, blur: bool) -> tuple[int, int]:
    """Go back through a shuffle, and the blur after it, which looks one pixel back."""
    return (pixels[0] - blur) // 2, pixels[1] // 2


def _both(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return min(a[0], b[0]), max(a[1], b[1])
