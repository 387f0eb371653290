"""What a predictor needs: exact answers for a target box from the voxels under it.

Engines of one kind of network are beside it, in ``tiled_network``, ``axial`` and ``pssr``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from isochunk.core.geometry import Box, Triple, add, sub, triple
from isochunk.core.spec import ModelSpec, Plane
from isochunk.errors import PredictionError
from isochunk.models.placed import Placed


class Engine(Protocol):
    """A network that answers exactly inside a tile."""

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        ...

    @property
    def largest(self) -> Triple | None:
        """Largest tile in target voxels; None for any."""
        ...

    def needs(self, want: Box) -> Box:
        """Return the source voxels needed for the target box ``want``."""
        ...

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Predict ``want`` from the source voxels ``needs(want)``, both (1, 1, z, y, x).

        Voxels are float32 whatever the network's number format; so is what is added to its answer.
        """
        ...


def number_format(module: nn.Module) -> torch.dtype:
    """Return in what a network computes: the format of its first weights."""
    weights = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(weights, torch.float32)


@dataclass(frozen=True, slots=True)
class SameSizeEngine:
    """Any module that maps a tile to ``factor`` times its size; the halo is cropped away."""

    module: nn.Module
    """Maps (1, 1, z, y, x) to (1, 1, fz*z, fy*y, fx*x)."""
    spec: ModelSpec
    """Its factor, its halo (whole cells of its alignment) and its alignment."""
    shape: Triple | None = None
    """The only input shape it takes; None for any multiple of its alignment."""

    @property
    def largest(self) -> Triple | None:
        """Largest tile that fits the only input shape."""
        if self.shape is None:
            return None
        inner = sub(self.shape, add(self.spec.halo, self.spec.halo))
        z, y, x = (
            int(n // g * g * f)
            for n, g, f in zip(inner, self.spec.alignment, self.spec.resolved_factor, strict=True)
        )
        return (z, y, x)

    def needs(self, want: Box) -> Box:
        """Return the aligned source voxels under ``want`` and the halo."""
        return self.spec.read_box(want)

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Predict ``want``; a tile smaller than the only input shape is padded and cropped."""
        read, got = self.needs(want), tile.shape[2:]
        if self.shape is not None:
            rims = [n for a, b in zip(self.shape, got, strict=True) for n in (a - b, 0)]
            tile = functional.pad(tile, rims[::-1])
        answer = self.module(tile.to(number_format(self.module)))
        factor = triple(self.spec.resolved_factor)
        wanted = (1, 1, *(n * f for n, f in zip(tile.shape[2:], factor, strict=True)))
        if not isinstance(answer, Tensor) or tuple(answer.shape) != wanted:
            shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise PredictionError(
                f"model {self.spec.name!r} answered {shape} to an input of {tuple(tile.shape)}; "
                f"with factor {factor} it must answer {wanted}"
            )
        z, y, x = (lo * f for lo, f in zip(read.lo, factor, strict=True))
        return Placed(answer, (z, y, x)).crop(want).data


@dataclass(frozen=True, slots=True)
class PlanesEngine:
    """A network for slices on xz slices, yz slices or both: then the mean of the answers."""

    engine: Engine
    """What restores xz slices."""
    plane: Plane
    """xz, yz or xz+yz."""
    largest: None = None
    """Any tile will do."""

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        return self.engine.module

    def needs(self, want: Box) -> Box:
        """Return the source voxels under ``want`` and the halo."""
        boxes = [self._needs(want, plane) for plane in self._planes()]
        return Box(
            triple(map(min, zip(*(box.lo for box in boxes), strict=True))),
            triple(map(max, zip(*(box.hi for box in boxes), strict=True))),
        )

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Predict ``want``, (1, 1, z, y, x)."""
        placed = Placed(tile, self.needs(want).lo)
        answers = [self._restore(placed, want, plane) for plane in self._planes()]
        return answers[0] if len(answers) == 1 else (answers[0] + answers[1]) / 2

    def _needs(self, want: Box, plane: str) -> Box:
        return _turned(self.engine.needs(_turned(want, plane)), plane)

    def _restore(self, tile: Placed, want: Box, plane: str) -> Tensor:
        part = tile.crop(self._needs(want, plane)).data
        if plane == "xz":
            return self.engine(part, want)
        return self.engine(part.transpose(3, 4), _turned(want, plane)).transpose(3, 4)

    def _planes(self) -> list[str]:
        return self.plane.split("+")


def _turned(box: Box, plane: str) -> Box:
    """Exchange y and x for yz slices."""
    if plane == "xz":
        return box
    (z0, y0, x0), (z1, y1, x1) = box.lo, box.hi
    return Box((z0, x0, y0), (z1, x1, y1))
