"""How far a network looks, found out rather than believed.

One plane of NaN goes into a module, and the outputs that become NaN are those that depend on it.
The halo of networks that are layers of ``tiled_layers`` is derived instead: see ``tiled_network``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from isochunk.core.geometry import AXES, Triple, triple
from isochunk.core.limits import COST_TILE, WORKSPACE
from isochunk.core.option_names import option
from isochunk.errors import ModelError
from isochunk.models.counting import Cost, Recorder

Forward: TypeAlias = Callable[[Tensor], Tensor]
"""float32 (1, 1, z, y, x) to (1, 1, fz*z, fy*y, fx*x)."""

CAP: Triple = (512, 1024, 1024)
"""Largest extent probed along each axis; an answer that still reaches its rim has no halo."""

ALIGNMENTS = (1, 2, 4, 8, 16)
"""Origin alignments tried where a module declares none."""

WHOLE_TILE = (
    nn.GroupNorm,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
"""Layers that always take in the whole tile."""


class UnboundedError(ModelError):
    """The answer depends on the whole input: no halo makes tiles equal the whole."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What tiling must know of a network."""

    halo: Triple
    """Source voxels needed beyond the voxel that holds an output, on each side."""
    alignment: Triple
    """Source grid on which tiles must start."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A same-size network under examination, on the CPU and in eval mode."""

    forward: Forward
    """The network."""
    factor: Triple
    """Target voxels per source voxel."""
    shape: Triple | None = None
    """The only input shape it takes; None for any multiple of its alignment."""

    def reach(self, alignment: Triple | None = None) -> Reach:
        """Measure halo and alignment.

        Args:
            alignment: grid on which pooling starts, where it is declared; else it is found.

        Raises:
            ModelError: the answer depends on the whole input, or on the input's position in a
                way that no grid explains.
        """
        grid = alignment
        if grid is None:
            grid = triple(self._grid(axis) for axis in range(3))
        return Reach(triple(self._halo(axis, grid, grid[axis]) for axis in range(3)), grid)

    def _halo(self, axis: int, grid: Triple, phases: int) -> int:
        """Return the reach along one axis, over some phases of the grid."""
        extent = self.shape[axis] if self.shape else math.lcm(64, grid[axis])
        while extent <= CAP[axis]:
            shape = list(self.shape or (math.lcm(g, 16) for g in grid))  # slender otherwise
            shape[axis] = extent
            reach = self._halo_within(axis, triple(shape), grid[axis], phases)
            if reach is not None:
                return reach
            if self.shape is not None:
                raise ModelError(
                    f"the model's halo along {AXES[axis]} does not fit the only input shape it "
                    f"takes, {self.shape}; export it with a larger example or dynamic shapes"
                )
            extent *= 2
        raise UnboundedError(
            f"the model's answer depends on the whole extent of {AXES[axis]} (probed up to "
            f"{CAP[axis]} voxels), so no halo makes tiles equal the whole; normalise with "
            "constants or batch statistics instead, or accept seams with "
            f"{option('allow_inexact')}"
        )

    def _halo_within(self, axis: int, shape: Triple, grid: int, phases: int) -> int | None:
        """Return the reach, or None where it meets the rim of ``shape``."""
        extent, factor = shape[axis], self.factor[axis]
        middle = extent // 2 // grid * grid
        reach = 0
        for at in range(middle, middle + phases):
            probe = torch.zeros(1, 1, *shape)
            probe.select(axis + 2, at).fill_(math.nan)
            answer = self.forward(probe)
            wanted = (1, 1, *(n * f for n, f in zip(shape, self.factor, strict=True)))
            if tuple(answer.shape) != wanted:
                raise ModelError(
                    f"the model answers {tuple(answer.shape)} to {tuple(probe.shape)}; with "
                    f"factor {self.factor} it must answer {wanted}"
                )
            touched = _touched(answer, axis)
            if not touched:
                raise ModelError(
                    f"a NaN in the input left no NaN in the model's answer along {AXES[axis]}, so "
                    "its halo cannot be measured; let NaN pass through, or use another model"
                )
            lo, hi = touched[0] // factor, touched[-1] // factor
            if lo == 0 or hi >= extent - 1:
                return None
            reach = max(reach, at - lo, hi - at)
        return reach

    def _grid(self, axis: int) -> int:
        """Return the smallest shift of the input after which the answer is only shifted."""
        coarsest, only = ALIGNMENTS[-1], self.shape
        # One phase tells the halo to within one cell of any grid that is tried.
        halo = self._halo(axis, (1, 1, 1) if only else (coarsest,) * 3, 1)
        shape = list(only or (coarsest,) * 3)
        if only is None:
            shape[axis] = math.ceil((2 * halo + 4 * coarsest) / coarsest) * coarsest
        n, f, dim = shape[axis], self.factor[axis], axis + 2
        shape[axis] += coarsest
        noise = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
        whole = self.forward(noise.narrow(dim, 0, n))
        for shift in ALIGNMENTS:
            rim = halo + (shift if only else coarsest)
            inner = n - shift - 2 * rim
            if inner < 1:
                raise ModelError(
                    f"the model takes inputs of {only} only, too small to measure its alignment "
                    f"along {AXES[axis]}; declare alignment, or export it with a larger example or "
                    "dynamic shapes"
                )
            shifted = self.forward(noise.narrow(dim, shift, n))
            a = whole.narrow(dim, (shift + rim) * f, inner * f)
            b = shifted.narrow(dim, rim * f, inner * f)
            if torch.allclose(a, b, rtol=1e-4, atol=1e-5):
                return shift
        raise ModelError(
            f"the model's answer is tied to its position along {AXES[axis]} and repeats on no "
            f"grid up to {coarsest} voxels; declare its alignment"
        )


def _touched(answer: Tensor, axis: int) -> list[int]:
    """Return where along an axis any NaN lies."""
    hit = torch.isnan(answer).movedim(axis + 2, 0).flatten(1).any(1)
    return [int(i) for i in hit.nonzero().flatten()]


def untileable_layers(module: nn.Module) -> list[str]:
    """Name the layers whose answer depends on how a volume is cut, found by their type."""
    return [
        f"{name or 'itself'}: {type(layer).__name__}"
        for name, layer in module.named_modules()
        if _normalises_tile(layer)
    ]


def _normalises_tile(layer: nn.Module) -> bool:
    match layer:
        case nn.InstanceNorm1d() | nn.InstanceNorm2d() | nn.InstanceNorm3d():
            return layer.training or not layer.track_running_stats
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            return layer.training or layer.running_mean is None
        case nn.LayerNorm():
            return len(layer.normalized_shape) > 1
    return isinstance(layer, WHOLE_TILE)


def measured_cost(probe: Probe, reach: Reach) -> Cost:
    """Count multiply-adds and peak memory of any network on a small input."""
    shape = probe.shape or triple(math.lcm(16, g) for g in reach.alignment)
    voxels = math.prod(shape) * math.prod(probe.factor)
    with torch.no_grad(), Recorder() as seen:
        probe.forward(torch.zeros(1, 1, *shape))
    grown = math.prod(1 + 2 * h / n for h, n in zip(reach.halo, COST_TILE, strict=True))
    return Cost(seen.macs / voxels, WORKSPACE * seen.peak * grown / voxels)
