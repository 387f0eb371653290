"""SIREN: a network of sines fitted to one volume alone, then asked between its sections.

Sitzmann et al. 2020 (NeurIPS 33:7462). Nothing is learned from other data: what lies between
sections is what a smooth function through them has there. It is the internal fit that niiv compares
itself with (Troidl et al. 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isochunk.core.spec import Phase
from isochunk.errors import UsageError


@dataclass(frozen=True, slots=True)
class SirenConfig:
    """Hyperparameters; width, layers, frequency and rate are the paper's for images."""

    width: int = 256
    """Sines per layer."""
    layers: int = 3
    """Hidden layers after the first."""
    omega: float = 30.0
    """Factor of every layer's argument: how fast the sines of the first layer turn."""
    lr: float = 1e-4
    """Learning rate of Adam."""
    steps: int = 2000
    """Steps of the fit."""
    batch: int = 1 << 13
    """Voxels per step, drawn anew each time; all of them where there are fewer."""


class Siren(nn.Module):
    """Maps positions (n, axes) to values (n, 1)."""

    def __init__(self, axes: int, config: SirenConfig, rng: torch.Generator) -> None:
        """Build the layers with the paper's first weights, which keep all layers' spread equal."""
        super().__init__()
        self.omega = config.omega
        widths = [axes, *(config.width,) * (config.layers + 1), 1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        with torch.no_grad():
            for place, (layer, fan) in enumerate(zip(self.layers.children(), widths, strict=False)):
                spread = 1 / fan if place == 0 else math.sqrt(6 / fan) / config.omega
                for values, limit in zip(layer.parameters(), (spread, fan**-0.5), strict=True):
                    values.uniform_(-limit, limit, generator=rng)

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        *sines, last = self.layers.children()
        for layer in sines:
            x = torch.sin(self.omega * layer(x))
        answer: Tensor = last(x)
        return answer


PAPER_CONFIG = SirenConfig()


def restore(
    coarse: NDArray[Any],
    factor: int,
    phase: Phase = "mean",
    config: SirenConfig = PAPER_CONFIG,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Fit a SIREN to a volume or a slice, and evaluate it on the grid that is finer along z.

    Values are scaled to [-1, 1] by their own range, and positions such that the longest axis of the
    fine grid is [-1, 1] and all axes have one scale.

    Args:
        coarse: (z, y, x) or (z, x), any numbers.
        factor: target voxels per section.
        phase: a section is the mean over its thickness, or a sample at its first target voxel.
        config: network and fit.
        seed: of the weights and of the order of voxels.

    Returns:
        Values in the unit of ``coarse``, (z * factor, y, x) or (z * factor, x).

    Raises:
        UsageError: the volume is empty or constant, or the factor is below 1.
    """
    if factor < 1 or coarse.size == 0 or coarse.min() == coarse.max():
        raise UsageError(
            f"a SIREN needs a factor of at least 1 and voxels that differ; got factor {factor} "
            f"and shape {coarse.shape}; choose another box"
        )
    low, high = float(coarse.min()), float(coarse.max())
    values = torch.from_numpy((coarse.astype(np.float32) - low) * (2 / (high - low)) - 1)
    fine = (coarse.shape[0] * factor, *coarse.shape[1:])
    spans = [np.arange(n, dtype=np.float64) for n in fine]
    ends = [spans[0][::factor] + ((factor - 1) / 2 if phase == "mean" else 0), *spans[1:]]
    rng = torch.Generator().manual_seed(seed)
    net = Siren(coarse.ndim, config, rng)
    _fit(net, _positions(ends, fine), values.reshape(-1, 1), config, rng)
    with torch.inference_mode():
        batches = torch.split(_positions(spans, fine), config.batch)
        answer = torch.cat([net(batch) for batch in batches]).reshape(fine).numpy()
    return (answer + 1) * np.float32((high - low) / 2) + np.float32(low)


def _fit(
    net: Siren, positions: Tensor, values: Tensor, config: SirenConfig, rng: torch.Generator
) -> None:
    """Fit by Adam on the mean squared error."""
    optimiser = torch.optim.Adam(net.parameters(), config.lr)
    for _ in range(config.steps):
        chosen = torch.arange(len(positions))
        if len(positions) > config.batch:
            chosen = torch.randint(len(positions), (config.batch,), generator=rng)
        loss = (net(positions[chosen]) - values[chosen]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _positions(spans: list[NDArray[np.float64]], fine: tuple[int, ...]) -> Tensor:
    """Return all positions of a grid, (n, axes), given those along each axis in target voxels."""
    scale = 2 / max(fine)
    axes = [(span + 0.5) * scale - n * scale / 2 for span, n in zip(spans, fine, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)
    return torch.from_numpy(grid.reshape(-1, len(axes)))
