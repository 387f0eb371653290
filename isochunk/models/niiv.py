"""niiv: a neural field over slice features, continuous in its output resolution.

Troidl et al. 2024 (bioRxiv 2024.09.07.611785). A convolutional encoder (EDSR without upsampling)
makes a feature map of a coarse slice. A small network then answers for any position: from the
features and the value interpolated there, and from the position itself.

The paper measures positions in parts of the slice, so answers depend on how large a slice is. The
encoding of positions has period 1, so they are measured in training tiles of the whole volume
instead: the same answers for training tiles, and one answer wherever a volume is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from isochunk.core.geometry import Box, Triple
from isochunk.core.spec import Grid, Phase
from isochunk.errors import ModelError, UsageError
from isochunk.models.axial import (
    AxialNetwork,
    few_at_a_time,
    slices,
    volume,
)
from isochunk.models.interpolation import axis_taps
from isochunk.models.network import Corner, NetworkConfig
from isochunk.models.placed import Placed
from isochunk.models.torch_interpolation import blended, on_device_of

PERIODS = (1, 2)
"""Waves of the positional encoding per training tile."""


@dataclass(frozen=True, slots=True)
class NIIVConfig(NetworkConfig):
    """Hyperparameters; defaults are the paper's."""

    blocks: int = 16
    """Residual blocks of the encoder; 6 in the tiny variant."""
    width: int = 64
    """Feature maps of the encoder."""
    hidden: int = 256
    """Width of the field's layers."""
    layers: int = 5
    """Hidden layers of the field."""
    tile: int = 128
    """Target pixels of a training tile, in which positions are measured."""
    residual: bool = False
    """True adds the interpolation to the answer; not in the paper."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ModelError: a number below 1.
        """
        if min(self.blocks, self.width, self.hidden, self.layers, self.tile) < 1:
            raise ModelError(f"niiv needs numbers of at least 1; got {self}")

    @classmethod
    def training_defaults(cls, patch: Triple, phase: Phase) -> Mapping[str, Any]:
        """Measure positions in the crops that are trained on."""
        return {"tile": min(patch[0], patch[2])}

    def require_training_patch(self, patch: Triple) -> None:
        """Refuse crops that do not hold all positions of a tile.

        Raises:
            UsageError: a tile is larger.
        """
        if self.tile > min(patch[0], patch[2]):
            raise UsageError(
                f"niiv measures positions in tiles of {self.tile} pixels, but sees only those of "
                f"patch {patch}; choose a patch or a network tile to match"
            )


class NIIV(AxialNetwork):
    """The network of a :class:`NIIVConfig`."""

    config_type = NIIVConfig
    grid: Grid = "source"
    alignment = 1

    def __init__(self, config: NIIVConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.config = config
        width = config.width
        self.halo = 2 * config.blocks + 3  # all convolutions, and the neighbour interpolated with
        self.head = nn.Conv2d(1, width, 3)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3))
            for _ in range(config.blocks)
        )
        self.tail = nn.Conv2d(width, width, 3)
        widths = [width + 1 + 4 * len(PERIODS), *(config.hidden,) * config.layers]
        self.field = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.last = nn.Linear(config.hidden, 1)
        if config.residual:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    @property
    def entrance(self) -> nn.Module:
        """The first convolution."""
        return self.head

    def encode(self, x: Tensor) -> Tensor:
        """Make features by valid convolutions: (n, 1, z, x) to (n, c, z - 2m, x - 2m)."""
        first: Tensor = self.head(x).to(self.tail.weight.dtype)
        x = first
        for block in self.body.children():
            x = x[..., 2:-2, 2:-2] + block(x)
        x = self.tail(x)
        rim = (first.shape[2] - x.shape[2]) // 2
        return x + first[..., rim:-rim, rim:-rim]

    def train_on(
        self, coarse: Tensor, factor: Fraction, phase: Phase = "mean", corner: Corner = (0, 0)
    ) -> Tensor:
        """Restore whole slices, continued at their rims by repetition."""
        nz, nx = coarse.shape[2:]
        rim = self.halo - 1
        padded = functional.pad(coarse, (rim, rim, rim + 1, rim + 1), mode="replicate")
        values = padded[..., rim:-rim, rim:-rim]  # one section more than known at either end
        asked = Query(-1, (0, int(nz * factor)), (0, nx), factor, phase, corner)
        return self.query(self.encode(padded), values, asked)

    def needs(self, want: Box, factor: Fraction, phase: Phase) -> Box:
        """Return the source voxels needed for the xz slices of ``want``."""
        rows = axis_taps("linear", (want.lo[0], want.hi[0]), factor, 0, phase).index
        rim = self.halo - 1
        (_, y0, x0), (_, y1, x1) = want.lo, want.hi
        return Box((int(rows.min()) - rim, y0, x0 - rim), (int(rows.max()) + 1 + rim, y1, x1 + rim))

    def restore(self, tile: Placed, want: Box, factor: Fraction, phase: Phase) -> Tensor:
        """Restore the xz slices of ``want``; see :class:`AxialNetwork`."""
        rim = self.halo - 1
        (z0, _, x0), (z1, _, x1) = want.lo, want.hi
        asked = Query(tile.origin[0] + rim, (z0, z1), (x0, x1), factor, phase)
        parts = few_at_a_time(slices(tile.data), int(factor) + 1)
        return volume(
            torch.cat(
                [
                    self.query(self.encode(part), part[..., rim:-rim, rim:-rim], asked)
                    for part in parts
                ]
            )
        )

    def query(self, features: Tensor, values: Tensor, asked: Query) -> Tensor:
        """Answer for a grid of positions.

        Args:
            features: of the sections from ``asked.top`` on, (n, c, z, x).
            values: the slices there, (n, 1, z, x).
            asked: which positions.

        Returns:
            (n, 1, target z, x).
        """
        taps = axis_taps("linear", asked.rows, asked.factor, asked.top, asked.phase)
        value = blended(values, taps)
        where = positions(asked, self.config.tile, features).expand(len(features), -1, -1, -1)
        known = [blended(features, taps), value.to(features), where]
        x = torch.cat(known, 1).movedim(1, -1)  # (n, z, x, c)
        for layer in self.field.children():
            x = torch.relu(layer(x))
        answer: Tensor = self.last(x).movedim(-1, 1)
        return answer + value if self.config.residual else answer


@dataclass(frozen=True, slots=True)
class Query:
    """A grid of target pixels of an xz slice, in global coordinates."""

    top: int
    """Section of the first row of features."""
    rows: tuple[int, int]
    """First target pixel along z, and one past the last."""
    columns: tuple[int, int]
    """First pixel along x, and one past the last."""
    factor: Fraction
    """Target pixels per section."""
    phase: Phase = "mean"
    """Where a section lies."""
    corner: Corner = (0, 0)
    """Where row 0 and column 0 are taken to lie, for positions alone."""


def positions(asked: Query, tile: int, like: Tensor) -> Tensor:
    """Encode the centres of target pixels, measured in training tiles.

    Args:
        asked: which pixels.
        tile: pixels of a training tile.
        like: of the device and number format that is returned.

    Returns:
        (8, z, x): sine and cosine of each period, of z and then of x.
    """
    waves = []
    for span, shift in zip((asked.rows, asked.columns), asked.corner, strict=True):
        # Whole turns are taken out in integers: far from the origin nothing is lost.
        turn = 2 * math.pi * ((2 * (np.arange(*span) + shift) + 1) % (2 * tile)) / (2 * tile)
        waves.append([wave(period * turn) for period in PERIODS for wave in (np.sin, np.cos)])
    z, x = (on_device_of(like, np.array(w, np.float32)).to(like.dtype) for w in waves)
    size = (-1, z.shape[1], x.shape[1])
    return torch.cat([z[:, :, None].expand(*size), x[:, None].expand(*size)])
