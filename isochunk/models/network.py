"""What every network and its hyperparameters answer when others ask.

A new network is a file with a subclass of each, an entry in ``registry``, and a recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Self, TypeAlias

import torch
from torch import Tensor, nn

from isochunk.core.geometry import Triple
from isochunk.core.spec import Grid, ModelSpec, Phase, Plane
from isochunk.errors import UsageError
from isochunk.models.counting import Cost
from isochunk.models.tiling import Engine

Corner: TypeAlias = tuple[int, int]
"""Target coordinates z, x of the first pixel of a slice."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a network lies on the grids; see :class:`isochunk.core.spec.ModelSpec`."""

    factor: tuple[Fraction | None, Fraction | None, Fraction | None]
    """Target voxels per source voxel; None for any."""
    halo: Triple
    """Voxels needed beyond an aligned block."""
    alignment: Triple
    """Grid on which tiles must start."""
    plane: Plane = "3d"
    """Slices it runs on."""
    grid: Grid = "source"
    """Grid of halo and alignment."""
    sections: int = 0
    """Neighbouring sections used on each side."""
    exact: bool = True
    """Whether tiles equal the whole."""


class NetworkConfig:
    """Base of the frozen dataclasses of hyperparameters.

    Answers are those of a network on xz slices that takes any factor; others override them. The
    docstring under a field is its help text on the command line.
    """

    __slots__ = ()

    VARIANTS: ClassVar[tuple[str, ...]] = ()
    """What ``variant`` in a recipe can be."""
    RECIPE_ONLY: ClassVar[tuple[str, ...]] = ()
    """Fields that are no options of the command line."""

    @property
    def own_factor(self) -> Fraction | None:
        """Factor that the network is built for; None where it takes any."""
        return None

    @property
    def own_phase(self) -> Phase | None:
        """Where sections lie that the network is built for; None where it takes either."""
        return None

    @property
    def told_phase(self) -> bool:
        """Whether it is told where sections lie, and so can learn both kinds."""
        return False

    @property
    def lateral(self) -> bool:
        """Whether it makes y and x of whole sections finer, not z."""
        return False

    @property
    def planar(self) -> bool:
        """Whether xz slices stay apart: no kernel reaches along y."""
        return True

    @property
    def resnet_encoder(self) -> bool:
        """Whether its encoder can start from weights of a ResNet34."""
        return False

    @classmethod
    def training_defaults(cls, patch: Triple, phase: Phase) -> Mapping[str, Any]:
        """Return hyperparameters that follow from a training, where the user gives none.

        Args:
            patch: target voxels of a crop.
            phase: where sections lie.
        """
        return {}

    @classmethod
    def from_table(
        cls, values: Mapping[str, Any], variant: str | None, factors: tuple[Fraction, ...]
    ) -> Self:
        """Make the hyperparameters that a recipe asks for.

        Args:
            values: fields, lists already turned to tuples.
            variant: one of ``VARIANTS``, or None.
            factors: those to train for; none where the recipe names none.

        Raises:
            UsageError: values do not fit the variant, or factors the network.
            TypeError: a value is of the wrong kind.
        """
        return cls(**values)

    def require_patch(self, patch: Triple, factors: tuple[Fraction, ...]) -> None:
        """Refuse crops that the network cannot be shown.

        Args:
            patch: target voxels of a crop (z, y, x).
            factors: target voxels per section.

        Raises:
            UsageError: they hold no whole sections, or too few.
        """
        own = self.own_factor
        if own is not None and patch[0] % own:
            raise UsageError(
                f"patch of {patch[0]} voxels along z is no multiple of the network's factor "
                f"{own}; choose e.g. {own * 16}"
            )
        if any(patch[0] < 2 * factor for factor in factors):
            raise UsageError(
                f"patch of {patch[0]} voxels along z holds fewer than two sections of "
                f"{max(factors)}; choose a larger patch"
            )

    def require_training_patch(self, patch: Triple) -> None:
        """Refuse crops from which the network cannot learn all that it must know.

        Raises:
            UsageError: they are too small.
        """
        del patch  # any will do, unless a network says otherwise


class Network(nn.Module, ABC):
    """A network: how it is trained, and what makes its tiles equal the whole."""

    config_type: ClassVar[type[NetworkConfig]]
    """Its frozen dataclass of hyperparameters."""
    config: Any
    """The hyperparameters it is made of."""
    crop_multiple: Triple = (1, 1, 1)
    """Target voxels that a training crop holds whole multiples of."""
    memory_format: ClassVar[torch.memory_format] = torch.preserve_format
    """Layout of weights in memory with which it is fastest."""
    passes_slices: ClassVar[bool] = False
    """Whether tiles pass through it in a few slices at a time."""
    inexact_because: str = ""
    """Why it cannot be tiled exactly; empty where it can."""

    @abstractmethod
    def geometry(self) -> Geometry:
        """Return how it lies on the grids."""

    @abstractmethod
    def cost(self) -> Cost:
        """Count what one target voxel costs; at a factor of 4 where it takes any."""

    @abstractmethod
    def engine(self, spec: ModelSpec) -> Engine:
        """Return what runs it on tiles.

        Args:
            spec: its spec with factor and plane fixed.
        """

    @abstractmethod
    def restore_crops(
        self, coarse: Tensor, factor: Fraction, phase: Phase, corner: Corner = (0, 0)
    ) -> Tensor:
        """Restore whole training crops, padded as the network likes.

        Args:
            coarse: (b, 1, z, y, x), in the network's own axes.
            factor: target voxels per section.
            phase: where a section lies.
            corner: where a network that minds positions is to take crops to lie.

        Returns:
            (b, 1, z, y, x) of the target.
        """

    def learn_crops(
        self, coarse: Tensor, target: Tensor, factor: Fraction, phase: Phase, corner: Corner
    ) -> Tensor:
        """Answer training crops while learning; one that takes noise off the target may see it.

        Args:
            coarse: as :meth:`restore_crops`.
            target: what the answer is compared with.
            factor: target voxels per section.
            phase: where a section lies.
            corner: drawn anew in each step.
        """
        del target
        return self.restore_crops(coarse, factor, phase, corner)

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """Return parameters by how far they are from the input, where rates differ by that."""
        return [list(self.parameters())]

    @property
    @abstractmethod
    def entrance(self) -> nn.Module:
        """The layer that sees the voxels."""

    def in_format(self, dtype: torch.dtype) -> Self:
        """Keep weights in a number format, but those of the first layer in float32.

        Stored voxels are no numbers of half precision once they are normalised: rounding them
        costs as many grey levels as all layers together. Returns the network itself.
        """
        entrance = [p.detach().clone() for p in self.entrance.parameters()]
        self.to(dtype)
        self.entrance.float()
        for rounded, exact in zip(self.entrance.parameters(), entrance, strict=True):
            rounded.data.copy_(exact)
        return self

    def in_fastest_layout(self) -> Self:
        """Lay weights out in memory as is fastest; returns the network itself."""
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        return self


def in_format(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Keep the weights of any module in a number format; see :meth:`Network.in_format`."""
    return module.in_format(dtype) if isinstance(module, Network) else module.to(dtype)
