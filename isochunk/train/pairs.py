"""How a crop becomes what a network sees and what it is to answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch

from isochunk.core.degradation import Degradation, degradations_of, phase_of
from isochunk.core.spec import Phase
from isochunk.models.degrade import degrade
from isochunk.train.augment import Augmentation, Patch, input_noise
from isochunk.train.crappify import CRAPPIFIERS, Step, crappify


class Pairing(Protocol):
    """How a crop becomes what a network sees and what it is to answer."""

    @property
    def phase(self) -> Phase:
        """Where sections lie."""
        ...

    def __call__(
        self, patch: Patch, factor: Fraction, rng: np.random.Generator
    ) -> tuple[Patch, Patch]:
        """Return the coarse input and the target, both (z', y', x').

        Args:
            patch: a crop in the model's values.
            factor: target voxels per section.
            rng: the only source of chance.
        """
        ...


@dataclass(frozen=True, slots=True)
class Sectioned:
    """Coarse along z': whole sections; the target is the part of the crop that they cover."""

    degradation: Degradation
    """How sections are made."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Its noise is added to the sections."""

    @property
    def phase(self) -> Phase:
        """Where sections lie."""
        return phase_of(self.degradation)

    def __call__(
        self, patch: Patch, factor: Fraction, rng: np.random.Generator
    ) -> tuple[Patch, Patch]:
        """Make sections; see :class:`Pairing`."""
        sections = len(patch) // factor
        used = np.ascontiguousarray(patch[: math.ceil(sections * factor)])
        coarse = degrade(torch.from_numpy(used)[None, None], factor, self.degradation)[0, 0].numpy()
        coarse = coarse + input_noise(coarse.shape, self.augmentation, rng)
        return coarse, used[: int(sections * factor)]


@dataclass(frozen=True, slots=True)
class Crappified:
    """Coarse along y' and x', and noisy; the target is the middle section alone."""

    steps: tuple[Step, ...]
    """What happens to the sections; values are in 0..1."""
    phase: Phase = "mean"
    """Where sections lie."""

    def __call__(
        self, patch: Patch, factor: Fraction, rng: np.random.Generator
    ) -> tuple[Patch, Patch]:
        """Spoil them; see :class:`Pairing`."""
        middle = len(patch) // 2
        return crappify(patch, self.steps, rng), patch[middle : middle + 1]


def pairings_of(degradations: str, augmentation: Augmentation) -> tuple[Pairing, ...]:
    """Return how degradations, by their names joined by ``+``, make pairs."""
    known: dict[str, Degradation] = {"avg": "avg", "skip": "skip", "psf": "psf"}
    return tuple(
        Crappified(CRAPPIFIERS[name])
        if name in CRAPPIFIERS
        else Sectioned(known[name], augmentation)
        for name in degradations_of(degradations)
    )
