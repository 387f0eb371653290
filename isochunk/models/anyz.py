"""A 3D network for any ratio along z: features of sections, and a decoder that is asked for places.

Ours. An encoder of residual blocks works on the coarse grid, where a voxel costs a ratio-th of one
of the answer, with kernels in 3D that may be functions of the ratio and of whether sections are
means or samples of their thickness. A target voxel lies between two sections; the kernels of its
decoder are functions of these, and of where it lies. A rational ratio has finitely many such
places, so the decoder is a convolution with a kernel for each phase of a period, and the same
wherever a volume is cut. The answer is added to an interpolation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from isochunk.core.geometry import Box, Triple, triple
from isochunk.core.limits import COST_TILE, WORKSPACE
from isochunk.core.spec import ModelSpec, Phase
from isochunk.errors import ModelError
from isochunk.models.counting import Cost, Recorder
from isochunk.models.interpolation import Taps, axis_taps, whole_axis_taps
from isochunk.models.network import Corner, Geometry, Network, NetworkConfig
from isochunk.models.placed import Placed
from isochunk.models.tiled_layers import SAME, VALID, Convolution, Padding, ResidualKernel
from isochunk.models.tiling import Engine
from isochunk.models.torch_interpolation import blended, on_device_of

HEAD: Triple = (3, 5, 5)
"""Kernel of the first convolution."""
TOLD = 3
"""Numbers that say what sections are like: inverse ratio, its root, and whether they are means."""
PLACE = 4
"""Numbers that say where between two sections a target voxel lies."""
LEAK = 0.2
"""Slope of what rectifies the features of target voxels."""


@dataclass(frozen=True, slots=True)
class AnyZConfig(NetworkConfig):
    """Hyperparameters."""

    width: int = 24
    """Feature maps on the coarse grid."""
    blocks: int = 3
    """Residual blocks of two 3x3x3 convolutions."""
    decoded: int = 32
    """Feature maps of a target voxel."""
    bases: int = 8
    """Kernels of which the one of a place is a mixture."""
    hidden: int = 32
    """Width of what says how they are mixed."""
    changes: int = 0
    """Kernels that are mixed into each of the encoder's, by what sections are like; 0 for one
    encoder for all of them."""
    residual: ResidualKernel = "cubic"
    """Interpolation along z added to the answer: none, linear or cubic."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ModelError: a number below 1, or changes below 0.
        """
        numbers = (self.width, self.blocks, self.decoded, self.bases, self.hidden)
        if min(numbers) < 1 or self.changes < 0:
            raise ModelError(f"anyz needs numbers of at least 1, and changes of 0; got {self}")

    @property
    def planar(self) -> bool:
        """Whether xz slices stay apart: kernels reach along y."""
        return False

    @property
    def told_phase(self) -> bool:
        """Whether it is told where sections lie."""
        return True


class Told(NamedTuple):
    """What the encoder is told of sections."""

    numbers: Tensor
    """Inverse ratio, its root, and whether they are means."""
    mixture: Tensor | None
    """How much of each change its kernels hold; None where there are none."""


class ToldConv(nn.Conv3d):
    """A convolution whose kernel depends on what sections are like."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple, changes: int) -> None:
        """Build it with fresh weights; it begins as one kernel for all."""
        super().__init__(inputs, outputs, kernel)
        self.changes = nn.Parameter(torch.zeros(changes, *self.weight.shape)) if changes else None

    def at(self, mixture: Tensor | None) -> Convolution:
        """Return the convolution for sections, given how changes are mixed for them."""
        weight = self.weight
        if self.changes is not None and mixture is not None:
            weight = weight + torch.einsum("n,n...->...", mixture.to(weight.dtype), self.changes)
        return Convolution(weight, self.bias)


class Block(nn.Module):
    """A residual block that is told what sections are like."""

    def __init__(self, width: int, changes: int = 0) -> None:
        """Build it with fresh weights."""
        super().__init__()
        self.first = ToldConv(width, width, (3, 3, 3), changes)
        self.told = nn.Linear(TOLD, width)
        self.slope = nn.PReLU(width).weight
        self.second = ToldConv(width, width, (3, 3, 3), changes)

    def run(self, x: Placed, told: Told, padding: Padding) -> Placed:
        """Add what two convolutions make of features."""
        y = padding.conv(x, self.first.at(told.mixture))
        shift = self.told(told.numbers.to(self.slope.dtype)).to(y.data).view(1, -1, 1, 1, 1)
        y = Placed(functional.prelu(y.data + shift, self.slope), y.origin)
        y = padding.conv(y, self.second.at(told.mixture))
        return Placed(x.crop(y.box).data + y.data, y.origin)


def _mixture(config: AnyZConfig) -> nn.Sequential:
    """Build what says how changes are mixed; numbers for near ratios differ from the beginning."""
    first, last = nn.Linear(TOLD, config.hidden), nn.Linear(config.hidden, config.changes)
    nn.init.normal_(first.weight, std=2.0)
    nn.init.uniform_(first.bias, -1.5, 1.5)
    nn.init.normal_(last.weight, std=(2 / config.hidden) ** 0.5)
    return nn.Sequential(first, nn.PReLU(), last)


class Decoder(nn.Module):
    """Makes a target voxel of the features of the section below and the one above it."""

    def __init__(self, config: AnyZConfig) -> None:
        """Build it with fresh weights; it answers 0."""
        super().__init__()
        inputs = 2 * config.width + 1
        self.mixture = nn.Sequential(
            nn.Linear(PLACE + TOLD, config.hidden),
            nn.PReLU(),
            nn.Linear(config.hidden, config.bases),
        )
        self.kernels = nn.Parameter(torch.empty(config.bases, inputs, config.decoded))
        self.last = nn.Linear(config.decoded, 1)
        nn.init.normal_(self.kernels, std=(2 / inputs) ** 0.5)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor, taps: Taps, told: Tensor) -> Tensor:
        """Decode rows of target voxels.

        Args:
            features: of sections, (b, c, z, y, x).
            taps: of linear interpolation between them, for each row.
            told: what sections are like.

        Returns:
            (b, 1, rows, y, x).
        """
        kernels = self.kernels_at(on_device_of(told, taps.weight[1]), told).to(features.dtype)
        sections = features.permute(2, 0, 3, 4, 1)  # (z, b, y, x, c)
        _, b, ny, nx, c = sections.shape
        answers = []
        for (below, above), rows in alike(taps):
            x = torch.cat([sections[below], sections[above]], -1).view(-1, 2 * c)
            mixed = kernels[rows].transpose(0, 1)  # (2 c + 1, rows, decoded)
            x = torch.addmm(mixed[-1].flatten(), x, mixed[:-1].flatten(1))
            x = functional.leaky_relu(x, LEAK, inplace=True).view(len(x), -1, mixed.shape[-1])
            answers.append(self.last(x).view(b, 1, ny, nx, -1))
        return torch.cat(answers, -1).movedim(-1, 2)

    def kernels_at(self, above: Tensor, told: Tensor) -> Tensor:
        """Mix the kernel of each place, (n, 2 c + 1, decoded): for below, above and the bias."""
        turn = math.pi * above
        place = torch.stack([above, turn.sin(), turn.cos(), (2 * turn).cos()], 1)
        mixture = self.mixture(torch.cat([place, told.expand(len(place), -1)], 1))
        return torch.einsum("nb,bcd->ncd", mixture, self.kernels.to(mixture.dtype))


def alike(taps: Taps) -> Iterator[tuple[tuple[int, int], slice]]:
    """Yield the rows that lie between the same two sections, with the indices of these."""
    pairs = list(zip(*taps.index.tolist(), strict=True))
    first = 0
    for pair, rows in groupby(pairs):
        end = first + len(list(rows))
        yield pair, slice(first, end)
        first = end


class AnyZ(Network):
    """The network of an :class:`AnyZConfig`."""

    config_type = AnyZConfig
    memory_format = torch.channels_last_3d

    def __init__(self, config: AnyZConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.config = config
        self.head = ToldConv(1, config.width, HEAD, config.changes)
        self.slope = nn.PReLU(config.width).weight
        self.body = nn.ModuleList(Block(config.width, config.changes) for _ in range(config.blocks))
        self.mixture = _mixture(config) if config.changes else None
        self.decoder = Decoder(config)

    @property
    def entrance(self) -> nn.Module:
        """The first convolution, and what reads places and what sections are like."""
        mixtures = [self.decoder.mixture, *([] if self.mixture is None else [self.mixture])]
        return nn.ModuleList([self.head, *mixtures])

    @property
    def rim(self) -> Triple:
        """Source voxels that features look beyond their own, on either side."""
        return triple(k // 2 + 2 * self.config.blocks for k in HEAD)

    def geometry(self) -> Geometry:
        """Return how it lies on the grids: the decoder looks one section farther than features."""
        z, y, x = self.rim
        one = Fraction(1)
        return Geometry((None, one, one), (z + 1, y, x), (1, 1, 1))

    def told(self, factor: Fraction, phase: Phase) -> Tensor:
        """Say what sections are like."""
        share = float(1 / factor)
        return self.head.weight.new_tensor([share, share**0.5, float(phase == "mean")])

    def encode(self, x: Placed, numbers: Tensor, padding: Padding) -> Placed:
        """Make features of source voxels, (b, c, z, y, x)."""
        told = Told(numbers, None if self.mixture is None else self.mixture(numbers))
        x = padding.conv(x, self.head.at(told.mixture)).to(self.slope.dtype)
        x = Placed(functional.prelu(x.data, self.slope), x.origin)
        for block in self.body:
            assert isinstance(block, Block)
            x = block.run(x, told, padding)
        return x

    def restore_crops(
        self, coarse: Tensor, factor: Fraction, phase: Phase, corner: Corner = (0, 0)
    ) -> Tensor:
        """Restore crops with zero padding, and features beyond the last section repeated."""
        told = self.told(factor, phase)
        features = self.encode(Placed(coarse, (0, 0, 0)), told, SAME).data
        features = functional.pad(features, (0, 0, 0, 0, 1, 1), mode="replicate")
        sections = coarse.shape[2]
        taps = axis_taps("linear", (0, int(sections * factor)), factor, -1, phase)
        answer: Tensor = self.decoder(features, taps, told)
        if self.config.residual == "none":
            return answer
        base = whole_axis_taps(self.config.residual, sections, factor, phase)
        return answer + blended(coarse, base)

    def needs(self, want: Box, factor: Fraction, phase: Phase) -> Box:
        """Return the source voxels needed for the target box ``want``."""
        index = axis_taps("linear", (want.lo[0], want.hi[0]), factor, 0, phase).index
        (_, *lo), (_, *hi) = want.lo, want.hi
        under = Box(triple((int(index.min()), *lo)), triple((int(index.max()) + 1, *hi)))
        return under.grow(self.rim)

    def restore(self, tile: Placed, want: Box, factor: Fraction, phase: Phase) -> Tensor:
        """Restore ``want``, exactly wherever the tile lies.

        Args:
            tile: source voxels ``needs(want)``, (1, 1, z, y, x).
            want: target box.
            factor: target voxels per source voxel along z.
            phase: where a source section lies.
        """
        told = self.told(factor, phase)
        features = self.encode(tile, told, VALID)
        (_, *lo), (_, *hi) = want.lo, want.hi
        lateral = Box(triple((tile.origin[0], *lo)), triple((tile.box.hi[0], *hi)))
        source = tile.crop(lateral)
        rows = (want.lo[0], want.hi[0])
        taps = axis_taps("linear", rows, factor, features.origin[0], phase)
        answer: Tensor = self.decoder(features.data, taps, told)
        if self.config.residual == "none":
            return answer
        base = axis_taps(self.config.residual, rows, factor, source.origin[0], phase)
        return answer + blended(source.data, base)

    def engine(self, spec: ModelSpec) -> Engine:
        """Return what runs it at the factor of a spec."""
        self.in_fastest_layout()
        return AnyZEngine(self, spec.resolved_factor[0], spec.phase)

    def cost(self) -> Cost:
        """Count multiply-adds and peak memory on a usual tile, at a factor of 4."""
        hollow = copy.deepcopy(self).to("meta").eval()
        factor = Fraction(4)
        want = Box.from_shape(triple(n * f for n, f in zip(COST_TILE, (4, 1, 1), strict=True)))
        tile = hollow.needs(want, factor, "mean")
        many = triple(16 * n for n in COST_TILE)  # so that rims do not count
        with torch.no_grad():
            with Recorder() as large:
                hollow.restore_crops(torch.empty(1, 1, *many, device="meta"), factor, "mean")
            with Recorder() as live:
                empty = torch.empty(1, 1, *tile.shape, device="meta")
                hollow.restore(Placed(empty, tile.lo), want, factor, "mean")
        macs = large.macs / (4 * math.prod(many))
        return Cost(macs, WORKSPACE * live.peak / want.size)


@dataclass(frozen=True, slots=True)
class AnyZEngine:
    """The network by valid convolutions, exact at any position."""

    module: AnyZ
    """The network."""
    factor: Fraction
    """Target voxels per source voxel along z."""
    phase: Phase
    """Where a source section lies."""
    largest: Triple | None = None
    """Any tile will do."""

    def needs(self, want: Box) -> Box:
        """Return the source voxels under ``want`` and the halo."""
        return self.module.needs(want, self.factor, self.phase)

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Predict ``want``."""
        return self.module.restore(Placed(tile, self.needs(want).lo), want, self.factor, self.phase)
