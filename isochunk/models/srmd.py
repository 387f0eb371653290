"""SRMD: a plain network that is told how its input was degraded, on interpolated slices.

Zhang, Zuo and Zhang 2018, CVPR (arXiv 1712.06116): the blur kernel, projected on its principal
components, and the level of noise are stretched to maps of the size of the image, and are the
network's input beside it. One of the baselines of A2I-3DEM (Khateri et al. 2023).

Ours: the paper's network sees the coarse image and shuffles sub-pixels, for a whole factor; here it
sees the interpolated slice, so that any ratio will do. What is known of the blur is that sections
are means over their thickness, or samples, so kernels are boxes along z, of any ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isochunk.core.geometry import Triple
from isochunk.core.spec import Phase
from isochunk.errors import ModelError
from isochunk.models.network import NetworkConfig
from isochunk.models.refining import RefiningNetwork
from isochunk.models.tiled_layers import zero_for_residual

EXTENT = 21
"""Pixels of a blur kernel."""
SMALL = 0.05
"""What is no large pixel of a component."""
THICKEST = 10
"""Boxes up to this ratio are what components are of."""


@dataclass(frozen=True, slots=True)
class SRMDConfig(NetworkConfig):
    """Hyperparameters; width and layers are the paper's by default."""

    width: int = 128
    """Feature maps."""
    layers: int = 12
    """Convolutions of 3 x 3."""
    components: int = 6
    """Principal components that tell of the blur; boxes have no more than these."""
    noise: float = 0.05
    """Level of noise of the input that the network is told, in the model's values."""
    residual: bool = False
    """True adds the interpolation to the answer; not in the paper."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ModelError: a number that is too small, or more components than kernels have pixels.
        """
        if min(self.width, self.components) < 1 or self.layers < 3 or self.noise < 0:  # noqa: PLR2004
            raise ModelError(
                "srmd needs a width and components of at least 1, 3 layers and noise of at least "
                f"0; got {self}"
            )
        if self.components > EXTENT:
            raise ModelError(f"kernels of {EXTENT} pixels have no {self.components} components")


class SRMD(RefiningNetwork):
    """The network of an :class:`SRMDConfig`."""

    config_type = SRMDConfig
    alignment = 1

    def __init__(self, config: SRMDConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.config = config
        self.halo = config.layers
        inputs = 1 + config.components + 1
        maps = config.width
        self.first = nn.Conv2d(inputs, maps, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(maps, maps, 3, padding=1), nn.BatchNorm2d(maps))
            for _ in range(config.layers - 2)
        )
        self.last = nn.Conv2d(maps, 1, 3, padding=1)
        if config.residual:
            zero_for_residual(self.last)

    @property
    def entrance(self) -> nn.Module:
        """The first convolution."""
        return self.first

    def refine(
        self, x: Tensor, factor: Fraction, phase: Phase, _origin: Triple = (0, 0, 0)
    ) -> Tensor:
        """Refine interpolated slices; see :class:`RefiningNetwork`."""
        told = x.new_tensor([*blur(factor, phase, self.config.components), self.config.noise])
        maps = told.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:])
        y = self.first(torch.cat([x, maps], 1)).relu().to(self.last.weight.dtype)
        for layer in self.body:
            y = layer(y).relu()
        refined: Tensor = self.last(y)
        return x + refined if self.config.residual else refined


def blur(factor: Fraction, phase: Phase, components: int) -> tuple[float, ...]:
    """Return what principal components say of the blur of sections."""
    kernel = box_kernel(float(factor) if phase == "mean" else 0.0)
    return tuple(float(v) for v in basis(components) @ kernel)


def box_kernel(width: float) -> NDArray[np.float64]:
    """Return the mean over a width, at most a pixel for samples, as pixels' shares; (EXTENT,)."""
    edges = np.arange(EXTENT + 1) - EXTENT / 2
    half = max(width, 1.0) / 2
    shares: NDArray[np.float64] = np.diff(np.clip(edges, -half, half)) / (2 * half)
    return shares


@lru_cache
def basis(components: int) -> NDArray[np.float64]:
    """Return the principal components of boxes of all ratios, (components, EXTENT)."""
    kernels = np.stack([box_kernel(w) for w in np.linspace(1, THICKEST, 64)])
    found = np.linalg.svd(kernels, full_matrices=True)[2][:components]
    # A component and its negative are the same; that whose first large pixel is positive is taken.
    signs = [math.copysign(1, row[np.argmax(abs(row) > SMALL)]) for row in found]
    signed: NDArray[np.float64] = found * np.array(signs)[:, None]
    signed.flags.writeable = False  # it is kept
    return signed
