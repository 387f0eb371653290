"""Networks written once for training and for exact tiles, in the layers of ``tiled_layers``.

Their halo is derived: the valid forward is run on ``meta`` tensors, which hold no data, and says
which outputs are known.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from inspect import signature
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from isochunk.core.geometry import Box, Triple, ceil_div, triple
from isochunk.core.limits import COST_TILE, WORKSPACE
from isochunk.core.spec import ModelSpec, Phase, Plane
from isochunk.errors import ModelError, UsageError
from isochunk.models.counting import Cost, Recorder
from isochunk.models.network import Corner, Geometry, Network, NetworkConfig
from isochunk.models.placed import Placed
from isochunk.models.tiled_layers import SAME, VALID, Padding
from isochunk.models.tiling import Engine, PlanesEngine


class TiledConfig(NetworkConfig):
    """Base of hyperparameters of networks with one whole factor along z and kernels in 3D."""

    __slots__ = ()

    VARIANTS = ("paper", "compact", "planar")
    KERNELS: ClassVar[tuple[str, ...]]
    """Fields that hold kernels (z, y, x), or tuples of them."""

    factor: int
    """Target voxels per section."""
    phase: Phase
    """Where sections lie."""
    paper: ClassVar[Callable[..., Any]]
    """Makes the paper's kernels."""
    compact: ClassVar[Callable[..., Any]]
    """Makes small kernels."""

    @property
    def own_factor(self) -> Fraction | None:
        """Factor that the network is built for."""
        return Fraction(self.factor)

    @property
    def own_phase(self) -> Phase | None:
        """Where sections lie that the network is built for."""
        return self.phase

    @property
    def planar(self) -> bool:
        """Whether xz slices stay apart: no kernel reaches along y."""
        kernels = [getattr(self, name) for name in self.KERNELS]
        return all(_flat(kernel) == kernel for kernel in kernels)

    def as_planar(self) -> Self:
        """Return the variant that keeps xz slices apart: kernels of extent 1 along y."""
        return replace(self, **{name: _flat(getattr(self, name)) for name in self.KERNELS})  # type: ignore[type-var]

    @classmethod
    def training_defaults(cls, patch: Triple, phase: Phase) -> Mapping[str, Any]:
        """Let the residual's interpolation put sections where they lie."""
        return {"phase": phase}

    @classmethod
    def from_table(
        cls, values: Mapping[str, Any], variant: str | None, factors: tuple[Fraction, ...]
    ) -> Self:
        """Make a variant, the paper's by default; kernels among the values replace its own."""
        values = dict(values)
        for factor in factors:
            own = values.setdefault("factor", factor)
            if len(factors) > 1 or factor.denominator != 1 or own != factor:
                raise UsageError(
                    f"srunet and fsrcnn have one whole factor; got {', '.join(map(str, factors))}"
                    f"{f' and network.factor {own}' if own != factor else ''}; choose anyz, a2i "
                    "or niiv for any ratio"
                )
        if "factor" in values:
            values["factor"] = int(values["factor"])
        make = cls.compact if variant in ("compact", "planar") else cls.paper
        sizes = {name: values.pop(name) for name in signature(make).parameters if name in values}
        made: Self = make(**sizes)
        return replace(made.as_planar() if variant == "planar" else made, **values)  # type: ignore[type-var]


class TiledNetwork(Network):
    """A network written once for both paddings."""

    factor: Triple
    """Target voxels per source voxel (z, y, x)."""
    alignment: Triple
    """Source grid on which the network's pooling cells start."""
    memory_format = torch.channels_last_3d  # twice as fast as the default on a CPU

    @abstractmethod
    def run(self, x: Placed, padding: Padding, want: Box | None = None) -> Placed:
        """Apply the network to (b, 1, z, y, x) source voxels.

        Args:
            x: source voxels.
            padding: what to do at the rim.
            want: target box beyond which nothing need be computed.

        Returns:
            Target voxels, at least those of ``want`` that are known.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Apply with zero padding: (b, 1, z, y, x) to (b, 1, fz*z, fy*y, fx*x).

        Raises:
            ModelError: an extent is no multiple of ``alignment``.
        """
        shape = triple(x.shape[2:])
        if any(n % g for n, g in zip(shape, self.alignment, strict=True)):
            raise ModelError(
                f"patch of {shape} source voxels does not fit the pooling grid; "
                f"choose multiples of {self.alignment} (z, y, x)"
            )
        return self.run(Placed(x, (0, 0, 0)), SAME).data

    def predict(self, tile: Placed, want: Box | None = None) -> Placed:
        """Apply to real voxels without padding; returns the target voxels that are exact."""
        return self.run(tile, VALID, want)

    def restore_crops(
        self, coarse: Tensor, factor: Fraction, phase: Phase, corner: Corner = (0, 0)
    ) -> Tensor:
        """Restore crops with zero padding; factor and phase are the network's own."""
        answer: Tensor = self(coarse)
        return answer

    @property
    def crop_multiple(self) -> Triple:  # type: ignore[override]
        """Whole cells of the pooling grid."""
        return triple(f * a for f, a in zip(self.factor, self.alignment, strict=True))

    def geometry(self) -> Geometry:
        """Return how it lies on the grids, its halo derived."""
        z, y, x = map(Fraction, self.factor)
        plane: Plane = "xz" if self.config.planar else "3d"
        return Geometry((z, y, x), derived_halo(self), self.alignment, plane)

    def engine(self, spec: ModelSpec) -> Engine:
        """Return valid convolutions; on slices, where kernels keep them apart."""
        self.in_fastest_layout()
        if spec.plane == "3d":
            return ValidEngine(self, spec.halo)
        return PlanesEngine(ValidEngine(self, spec.on_plane("xz").halo), spec.plane)

    def cost(self) -> Cost:
        """Count multiply-adds and peak memory on ``meta`` tensors."""
        hollow = copy.deepcopy(self).to("meta").eval()
        core = triple(math.ceil(n / g) * g for n, g in zip(COST_TILE, self.alignment, strict=True))
        voxels = math.prod(core) * math.prod(self.factor)
        tile = Box.from_shape(core).grow(derived_halo(self))
        want = Box.from_shape(triple(n * f for n, f in zip(core, self.factor, strict=True)))
        with torch.no_grad():
            with Recorder() as large:  # so that rims do not count
                hollow(torch.empty(1, 1, *(16 * n for n in core), device="meta"))
            with Recorder() as live:
                hollow.predict(Placed(torch.empty(1, 1, *tile.shape, device="meta"), tile.lo), want)
        macs = large.macs / (16**3 * voxels)
        return Cost(macs, WORKSPACE * live.peak / voxels)


@dataclass(frozen=True, slots=True)
class ValidEngine:
    """One of our networks, by valid convolutions: least work, exact at any position."""

    module: TiledNetwork
    """The network."""
    halo: Triple
    """Source voxels needed on each side."""
    largest: Triple | None = None
    """Any tile will do."""

    def needs(self, want: Box) -> Box:
        """Return the source voxels under ``want`` and the halo."""
        z, y, x = self.module.factor
        lo = triple(a // f for a, f in zip(want.lo, (z, y, x), strict=True))
        hi = triple(map(ceil_div, want.hi, (z, y, x)))
        return Box(lo, hi).grow(self.halo)

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Predict ``want``."""
        return self.module.predict(Placed(tile, self.needs(want).lo), want).crop(want).data


def derived_halo(network: TiledNetwork) -> Triple:
    """Return the farthest any output looks beyond its own source voxel, on either side."""
    hollow = copy.deepcopy(network).to("meta")
    z, y, x = (_derived_reach(hollow, axis) for axis in range(3))
    return (z, y, x)


def _derived_reach(hollow: TiledNetwork, axis: int) -> int:
    alignment, factor = hollow.alignment[axis], hollow.factor[axis]
    extent = 4096 * alignment
    known = []  # known outputs of an input that starts at each phase of the pooling grid
    for phase in range(alignment):
        origin = [0, 0, 0]
        origin[axis] = phase
        empty = torch.empty(1, 1, extent, extent, extent, device="meta")
        box = hollow.predict(Placed(empty, triple(origin))).box
        known.append((phase, box.lo[axis], box.hi[axis]))
    period = alignment * factor
    reach = 0
    for output in range(period):
        # The last start, and the first end, of an input from which the output is known.
        start = max(p + (output - lo) // period * alignment for p, lo, _ in known)
        end = min(p + extent + ((output - hi) // period + 1) * alignment for p, _, hi in known)
        reach = max(reach, output // factor - start, end - output // factor - 1)
    return reach


def _flat(kernels: Any) -> Any:
    """Return a kernel, or each of several, with extent 1 along y."""
    if isinstance(kernels[0], int):
        return (kernels[0], 1, kernels[2])
    return tuple(map(_flat, kernels))
