"""3D-SRU-Net: a U-Net that takes coarse sections in and gives isotropic voxels out.

Heinrich, Bogovic and Saalfeld 2017, "Deep learning for isotropic super-resolution from
non-isotropic 3D electron microscopy" (MICCAI; arXiv 1706.03142).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from isochunk.core.geometry import Box, Triple
from isochunk.core.spec import Phase
from isochunk.errors import ModelError
from isochunk.models.placed import Placed
from isochunk.models.tiled_layers import (
    Padding,
    ResidualKernel,
    along_z,
    concatenate,
    conv_inputs,
    conv_slabs,
    require_kernel,
    transposed_inputs,
    with_residual,
    zero_for_residual,
)
from isochunk.models.tiled_network import TiledConfig, TiledNetwork

CUBE: Triple = (3, 3, 3)

ENCODED_SLABS, DECODED_SLABS = 2, 4
"""Parts along z in which a tile passes through the finest level, where tensors are largest: by then
all else needs as much memory. Each cut costs the rims of a few layers."""


@dataclass(frozen=True, slots=True)
class SRUNetConfig(TiledConfig):
    """Hyperparameters; kernels are z, y, x, one per level, finest first."""

    KERNELS = ("encoder", "decoder", "skip", "up")
    RECIPE_ONLY = (*KERNELS, "factor", "phase")

    width: int
    """Feature maps at the finest level; each level doubles them."""
    levels: int
    """Resolution levels including the bottom, at least 2."""
    convs: int
    """Convolutions per level on either side."""
    encoder: tuple[Triple, ...]
    """Kernels of the contracting levels and the bottom; ``levels`` of them."""
    decoder: tuple[Triple, ...]
    """Kernels of the expanding levels; ``levels - 1`` of them."""
    skip: tuple[Triple, ...]
    """Transposed kernels that make skips isotropic; unused where z is as fine as xy."""
    up: tuple[Triple, ...]
    """Transposed kernels from the level below; ``levels - 1`` of them."""
    factor: int = 4
    """Target voxels per section."""
    residual: ResidualKernel = "none"
    """Interpolation along z added to the answer: none, linear or cubic; none in the paper."""
    phase: Phase = "mean"
    """Where sections lie that are interpolated."""

    def __post_init__(self) -> None:
        """Check counts and kernels.

        Raises:
            ModelError: fewer than two levels, or a kernel missing or too small.
        """
        if min(self.width, self.convs, self.factor) < 1 or self.levels < 2:  # noqa: PLR2004
            raise ModelError(
                f"srunet needs width, convs, factor >= 1 and levels >= 2; got {self.width}, "
                f"{self.convs}, {self.factor} and {self.levels}"
            )
        wanted = (self.levels, *(self.levels - 1,) * 3)
        got = tuple(map(len, (self.encoder, self.decoder, self.skip, self.up)))
        if got != wanted:
            raise ModelError(
                f"srunet of {self.levels} levels takes {wanted} encoder, decoder, skip and up "
                f"kernels; got {got}"
            )
        for level in range(self.levels - 1):
            require_kernel(self.skip[level], self.skip_stride(level), f"srunet skip {level}")
            require_kernel(self.up[level], self.up_stride(level), f"srunet up {level}")

    @classmethod
    def paper(cls, width: int, levels: int, convs: int, factor: int = 4) -> SRUNetConfig:
        """Return 3D-SRU-Net(w, h, d) with the kernels that give the paper's Table 2.

        The table's counts fix the encoder and decoder kernels; the two skip kernels and the
        up-convolution from an anisotropic bottom are inferred. Other factors follow our rule.
        """
        lateral = (9, 6, *(3,) * levels)[:levels]
        ratios = _ratios(factor, levels)
        skip = [
            (max(least, 2 * ratio + 1), k, k)
            for least, ratio, k in zip((9, 7, *CUBE * levels), ratios[:-1], lateral, strict=False)
        ]
        up = [CUBE] * (levels - 2) + [CUBE if ratios[-1] == 1 else (4 * ratios[-1], 6, 6)]
        return cls(
            width,
            levels,
            convs,
            encoder=tuple((3, k, k) for k in lateral),
            decoder=(CUBE,) * (levels - 1),
            skip=tuple(skip),
            up=tuple(up),
            factor=factor,
        )

    @classmethod
    def compact(
        cls, width: int, levels: int, convs: int, factor: int = 4, residual: ResidualKernel = "none"
    ) -> SRUNetConfig:
        """Return the variant with 3x3x3 convolutions, a fraction of the paper's cost and halo."""
        ratios = _ratios(factor, levels)
        bottom = (2 * ratios[-1], 2, 2) if ratios[-1] > 1 else CUBE
        return cls(
            width,
            levels,
            convs,
            encoder=(CUBE,) * levels,
            decoder=(CUBE,) * (levels - 1),
            skip=tuple((max(ratio, 1), 3, 3) for ratio in ratios[:-1]),
            up=(*(CUBE,) * (levels - 2), bottom),
            factor=factor,
            residual=residual,
        )

    def pool_stride(self, level: int) -> Triple:
        """Return the pooling after ``level``: xy only while z is coarser and stays whole."""
        z = 1 if _ratios(self.factor, self.levels)[level] % 2 == 0 else 2
        return (z, self.lateral_stride, 2)

    def skip_stride(self, level: int) -> Triple:
        """Return the upsampling that makes ``level`` isotropic."""
        return (_ratios(self.factor, self.levels)[level], 1, 1)

    def up_stride(self, level: int) -> Triple:
        """Return the upsampling into ``level``; from the bottom it makes z isotropic too."""
        ratios = _ratios(self.factor, self.levels)
        z = 2 * ratios[-1] if level == self.levels - 2 else 2
        return (z, self.lateral_stride, 2)

    @property
    def lateral_stride(self) -> int:
        """Pooling along y."""
        return 1 if self.planar else 2


def _ratios(factor: int, levels: int) -> tuple[int, ...]:
    """Return, for each contracting level, how much coarser z is than xy."""
    ratios = [factor]
    while len(ratios) < levels:
        ratios.append(ratios[-1] // 2 if ratios[-1] % 2 == 0 else ratios[-1])
    return tuple(ratios)


class SRUNet(TiledNetwork):
    """The network of an :class:`SRUNetConfig`; ReLU after every 3D convolution but the last.

    Maps float (b, 1, z, y, x) to (b, 1, factor * z, y, x).
    """

    config_type = SRUNetConfig

    def __init__(self, config: SRUNetConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.config = config
        self.factor = (config.factor, 1, 1)
        top = config.levels - 1
        z = 1
        for level in range(top):
            z *= config.pool_stride(level)[0]
        self.alignment = (z, config.lateral_stride**top, 2**top)
        maps = [config.width * 2**level for level in range(config.levels)]
        self.encoder = nn.ModuleList(
            _convs(maps[level - 1] if level else 1, maps[level], config.encoder[level], config)
            for level in range(config.levels)
        )
        self.skip = nn.ModuleDict(
            {
                str(level): nn.ConvTranspose3d(
                    maps[level], maps[level], config.skip[level], config.skip_stride(level)
                )
                for level in range(top)
                if config.skip_stride(level) != (1, 1, 1)
            }
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(
                maps[level + 1], maps[level], config.up[level], config.up_stride(level)
            )
            for level in range(top)
        )
        self.decoder = nn.ModuleList(
            _convs(2 * maps[level], maps[level], config.decoder[level], config)
            for level in range(top)
        )
        self.last = nn.Conv3d(config.width, 1, 1)
        if config.residual != "none":
            zero_for_residual(self.last)

    @property
    def entrance(self) -> nn.Module:
        """The first convolution."""
        return next(_conv_layers(self.encoder[0]))

    def run(self, x: Placed, padding: Padding, want: Box | None = None) -> Placed:
        """Apply to (b, 1, z, y, x) source voxels; returns (b, 1, z, y, x) target voxels."""
        source, wanted = x, self._wanted(want)
        x, skip = self._encoded(x, padding, wanted[0])
        skips = [skip]
        for level in range(1, self.config.levels - 1):
            for layer in _conv_layers(self.encoder[level]):
                x = _activated(x, layer, padding)
            skips.append(x)
            x = padding.pool(x, self.config.pool_stride(level))
            skips[level] = self._needed(skips[level], level, wanted[level])
        for layer in _conv_layers(self.encoder[-1]):
            x = _activated(x, layer, padding)
        for level in reversed(range(1, self.config.levels - 1)):
            x = self._decoded(level, x, skips.pop(), padding, wanted[level])
        del skips
        parts = []
        for slab in [None] if want is None else want.slabs(DECODED_SLABS):
            y = self._decoded(0, x, skip, padding, self._wanted(slab)[0])
            y = with_residual(padding.conv(y, self.last), source, self.config, padding)
            parts.append(y if slab is None else y.crop(slab))
        return along_z(parts)

    def _encoded(self, x: Placed, padding: Padding, wanted: Box | None) -> tuple[Placed, Placed]:
        """Return the level below the finest, and what the decoder will need of the finest."""
        layers = list(_conv_layers(self.encoder[0]))
        stride = self.config.pool_stride(0)
        pooled, skips = [], []
        for part in [x] if wanted is None else conv_slabs(x, layers, ENCODED_SLABS, stride[0]):
            y = part
            for layer in layers:
                y = _activated(y, layer, padding).to(self.last.weight.dtype)
            pooled.append(padding.pool(y, stride))
            skips.append(self._needed(y, 0, wanted))
        below = along_z(pooled)
        del pooled
        return below, along_z(skips)

    def _decoded(
        self, level: int, x: Placed, skip: Placed, padding: Padding, wanted: Box | None
    ) -> Placed:
        """Return the voxels of a level, of those below it and its skip."""
        layer = self._skip_layer(level)
        x = padding.transposed(x, _transposed(self.up[level]), wanted)
        box = x.box

        def isotropic() -> Placed:
            return skip if layer is None else padding.transposed(skip, layer, box)

        if wanted is None:
            x = concatenate(x, isotropic())
        else:
            x = x.widened(skip.data.shape[1])  # its channels alone go before those of the skip come
            x = x.filled(isotropic())
        for conv in _conv_layers(self.decoder[level]):
            x = _activated(x, conv, padding)
        return x

    def _needed(self, skip: Placed, level: int, wanted: Box | None) -> Placed:
        """Return of a level's voxels what its decoder needs: they wait for it for long."""
        if wanted is None:
            return skip
        layer = self._skip_layer(level)
        return skip.kept(wanted if layer is None else transposed_inputs(wanted, layer))

    def _skip_layer(self, level: int) -> nn.ConvTranspose3d | None:
        """Return what makes a skip isotropic; None where z is as fine as xy."""
        return _transposed(self.skip[str(level)]) if str(level) in self.skip else None

    def _wanted(self, want: Box | None) -> list[Box | None]:
        """Return, per level, the decoder's input voxels that ``want`` needs."""
        boxes: list[Box | None] = []
        for level in range(self.config.levels - 1):
            if want is not None:
                for layer in _conv_layers(self.decoder[level]):
                    want = conv_inputs(want, layer)
            boxes.append(want)
            if want is not None:
                want = transposed_inputs(want, _transposed(self.up[level]))
        return boxes


def _convs(first: int, maps: int, kernel: Triple, config: SRUNetConfig) -> nn.ModuleList:
    layers = nn.ModuleList(
        nn.Conv3d(maps if i else first, maps, kernel) for i in range(config.convs)
    )
    for layer in _conv_layers(layers):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(_bias(layer))
    return layers


def _activated(x: Placed, layer: nn.Conv3d, padding: Padding) -> Placed:
    """Convolve; one layer a call, so that no caller still holds what the one before took."""
    y = padding.conv(x, layer)
    return Placed(torch.relu_(y.data), y.origin)


def _conv_layers(layers: nn.Module) -> Iterator[nn.Conv3d]:
    return (layer for layer in layers.children() if isinstance(layer, nn.Conv3d))


def _transposed(layer: nn.Module) -> nn.ConvTranspose3d:
    assert isinstance(layer, nn.ConvTranspose3d)
    return layer


def _bias(layer: nn.Conv3d) -> nn.Parameter:
    assert isinstance(layer.bias, nn.Parameter)
    return layer.bias
