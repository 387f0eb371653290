"""A diffusion model of what interpolated slices lack: the baseline that niiv compares with.

Denoising diffusion (Ho et al. 2020, arXiv 2006.11239) with the deterministic sampler DDIM (Song et
al. 2021, arXiv 2010.02502), on the cosine schedule (Nichol and Dhariwal 2021, arXiv 2102.09672),
conditioned on the interpolated slice, as Lee et al. 2023 (arXiv 2308.01594) restore isotropic
volumes. The network is ours and small: residual blocks that predict the clean difference.

The noise that sampling begins with is a function of where a pixel lies, so tiles that bring the
halo of all steps together get the noise of their neighbours, and equal the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional

from isochunk.core.geometry import Triple
from isochunk.core.spec import Phase
from isochunk.errors import ModelError
from isochunk.models.interpolation import whole_axis_taps
from isochunk.models.network import Corner, NetworkConfig
from isochunk.models.refining import RefiningNetwork
from isochunk.models.torch_interpolation import blended

TOLD = 8
"""Numbers that say how noisy the difference is."""


@dataclass(frozen=True, slots=True)
class DiffusionConfig(NetworkConfig):
    """Hyperparameters."""

    width: int = 32
    """Feature maps."""
    blocks: int = 4
    """Residual blocks of two 3x3 convolutions."""
    rounds: int = 10
    """Steps of DDIM; the halo grows with each."""
    scale: float = 0.3
    """Deviation of differences from the interpolation, in the model's values, which becomes 1."""
    residual: bool = True
    """The difference from the interpolation is what is sampled; it cannot be otherwise."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ModelError: a number that is too small, or no residual.
        """
        if min(self.width, self.blocks, self.rounds) < 1 or self.scale <= 0 or not self.residual:
            raise ModelError(
                f"diffusion needs numbers of at least 1, a positive scale and residual; got {self}"
            )


class Block(nn.Module):
    """A residual block that is told how noisy its input is."""

    def __init__(self, width: int) -> None:
        """Build it with fresh weights."""
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.told = nn.Linear(TOLD, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """Add what two convolutions make of features."""
        y = self.first(functional.silu(x)) + self.told(told).to(x.dtype)[:, :, None, None]
        changed: Tensor = self.second(functional.silu(y))
        return x + changed


class Diffusion(RefiningNetwork):
    """The network of a :class:`DiffusionConfig`, and its sampler."""

    config_type = DiffusionConfig
    alignment = 1

    def __init__(self, config: DiffusionConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.config = config
        self.halo = config.rounds * (2 + 2 * config.blocks)
        self.first = nn.Conv2d(2, config.width, 3, padding=1)
        self.body = nn.ModuleList(Block(config.width) for _ in range(config.blocks))
        self.last = nn.Conv2d(config.width, 1, 3, padding=1)

    @property
    def entrance(self) -> nn.Module:
        """The first convolution, and what is told how noisy the input is."""
        told = [block.told for block in self.body if isinstance(block, Block)]
        return nn.ModuleList([self.first, *told])

    def clean(self, noisy: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """Predict the clean difference.

        Args:
            noisy: the difference with noise, (n, 1, z, x).
            x: the interpolated slices.
            time: how much noise, 0 to 1, (n,).
        """
        turn = time[:, None] * math.pi * torch.arange(1, TOLD // 2 + 1, device=time.device) / 2
        told = torch.cat([turn.sin(), turn.cos()], 1)
        y = self.first(torch.cat([noisy, x], 1)).to(self.last.weight.dtype)
        for block in self.body:
            y = block(y, told)
        answer: Tensor = self.last(functional.silu(y))
        return answer.to(noisy.dtype)

    def refine(
        self, x: Tensor, _factor: Fraction, _phase: Phase, origin: Triple = (0, 0, 0)
    ) -> Tensor:
        """Sample from the noise of a place; see :class:`RefiningNetwork`."""
        noisy = noise_at(origin, x)
        clean = torch.zeros_like(noisy)
        for step in range(self.config.rounds, 0, -1):
            signal, noise = shares(step / self.config.rounds)
            clean = self.clean(noisy, x, x.new_full((len(x),), step / self.config.rounds))
            left = (noisy - signal * clean) / noise
            signal, noise = shares((step - 1) / self.config.rounds)
            noisy = signal * clean + noise * left
        answer: Tensor = x + self.config.scale * clean
        return answer

    def learn_crops(
        self, coarse: Tensor, target: Tensor, factor: Fraction, phase: Phase, corner: Corner
    ) -> Tensor:
        """Answer crops of which the target, with noise, is seen; see :class:`Network`."""
        x, wanted = (v.movedim(3, 1).flatten(0, 1) for v in (coarse, target))
        x = blended(x, whole_axis_taps("cubic", x.shape[2], factor, phase))
        noise = noise_at((corner[0], 0, corner[1]), x)
        time = uniform_at((corner[0], corner[1], 1), x[:, :, :1, :1]).flatten()
        turn = time.view(-1, 1, 1, 1) * math.pi / 2
        noisy = turn.cos() * (wanted - x) / self.config.scale + turn.sin() * noise
        answer: Tensor = x + self.config.scale * self.clean(noisy, x, time)
        b, _, _, y, _ = coarse.shape
        return answer.reshape(b, y, *answer.shape[1:]).movedim(1, 3)


def shares(time: float) -> tuple[float, float]:
    """Return how much of a noisy difference is the clean one, and how much is noise."""
    return math.cos(time * math.pi / 2), math.sin(time * math.pi / 2)


def noise_at(origin: Triple, like: Tensor) -> Tensor:
    """Return standard normal noise that is a function of the place alone (Box and Muller 1958).

    Args:
        origin: z, y, x of the first pixel of the first slice; slices follow along y.
        like: slices (n, 1, z, x) of the shape that is wanted.
    """
    radius = (-2 * uniform_at(origin, like).log()).sqrt()
    angle = 2 * math.pi * uniform_at(origin, like, salt=1)
    noise: Tensor = radius * angle.cos()
    return noise


def uniform_at(origin: Triple, like: Tensor, salt: int = 0) -> Tensor:
    """Return numbers in (0, 1) that are a function of the place alone; see :func:`noise_at`."""
    n, _, nz, nx = like.shape
    z, y, x = (
        torch.arange(first, first + count, device=like.device)
        for first, count in zip(origin, (nz, n, nx), strict=True)
    )
    place = (z[:, None] * 0x1F1F1F1F1F + x) * 0x9E3779B1 + y[:, None, None] * 0x85EBCA77
    mixed = place + salt * 0x27D4EB2F + 0x165667B1
    for shift, factor in ((33, 0x2545F4914F6CDD1D), (29, 0x1B873593CC9E2D51), (32, 1)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
    bits = (mixed & 0xFFFFFF).to(like.dtype)
    return ((bits + 0.5) / (1 << 24))[:, None]
