"""How an isotropic volume is made anisotropic for training, and how crops are varied.

A section is r target voxels thick; r is any rational number of at least 1. ``avg``: section i is
the mean over ``[i r, (i + 1) r)``, as a physical section averages over its thickness (Heinrich et
al. 2017). ``skip``: section i *is* target voxel ``i r``. ``psf``: a Gaussian of full width r at
half maximum, centred on the section, as a microscope's axial point spread function.
They are different problems; a network trained on one is not a network for the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from isochunk.core.codec import LATER
from isochunk.errors import UsageError

Patch: TypeAlias = NDArray[np.float32]


MOST_DEGREES = 45.0
"""Largest rotation: by more, crops are flipped and transposed."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far crops are varied; zeros switch a variation off. Units are the model's values.

    From ``jitter`` on they are defects: they happen to the sections a network sees, and never to
    its target. ``isochunk.train.defects`` has them in the order in which they happen.
    """

    contrast: float = 0.0
    """Values are multiplied by exp(u), u uniform in [-contrast, contrast]."""
    brightness: float = 0.0
    """A constant, uniform in [-brightness, brightness], is added."""
    noise: float = 0.0
    """Input sections get Gaussian noise of a deviation uniform in [0, noise]."""
    rotation: float = 0.0
    """Crops are turned in y, x by an angle uniform in [-rotation, rotation], in degrees."""
    zoom: float = 0.0
    """Crops are magnified in y, x by a factor uniform in [1, 1 + zoom]."""
    jitter: float = 0.0
    """Input sections are shifted, each by itself; standard deviation in pixels."""
    missing: float = 0.0
    """Chance of an input section to be lost: it is 0 then, in the model's values."""
    gain: float = field(default=0.0, metadata=LATER)
    """A random share of input sections is multiplied, each by itself, by exp(u); u is normal, of a
    deviation uniform in [0, gain] for each crop."""
    offset: float = field(default=0.0, metadata=LATER)
    """To each of these sections a constant of its own is added; it is normal, of a deviation
    uniform in [0, offset] for each crop."""
    section_noise: float = field(default=0.0, metadata=LATER)
    """A random share of input sections gets Gaussian noise, each of a deviation of its own, uniform
    in [0, section_noise]."""
    blur: float = field(default=0.0, metadata=LATER)
    """A random share of input sections is blurred in y, x, each by a Gaussian of its own; deviation
    uniform in [0, blur] pixels."""
    filled: float = field(default=0.0, metadata=LATER)
    """Chance of an input section to be lost and filled from those around it, linearly along z."""
    blank: float = field(default=0.0, metadata=LATER)
    """Chance of an input section to be lost and black: it holds what a stored 0 is to the model."""
    chance: float = field(default=1.0, metadata=LATER)
    """Chance of each kind of defect to happen to a crop at all; gain and offset are one kind."""
    margin: int = field(default=0, metadata=LATER)
    """Pixels read around crops along y and x, and cut off after defects: shifts and blurs then
    bring in what lies there."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: a number that varies nothing.
        """
        numbers = (
            *(self.contrast, self.brightness, self.noise, self.zoom, self.jitter),
            *(self.gain, self.offset, self.section_noise, self.blur, self.margin),
        )
        chances = (self.missing, self.filled, self.blank, self.chance)
        if (
            min(*numbers, *chances) < 0
            or max(chances) > 1
            or not 0 <= self.rotation <= MOST_DEGREES
        ):
            raise UsageError(
                "augmentation needs numbers of at least 0, missing, filled, blank and chance of at "
                f"most 1 and rotation of at most {MOST_DEGREES} degrees; got {self}"
            )

    @property
    def spread(self) -> float:
        """How much wider crops must be read so that turned ones have no empty corners."""
        angle = math.radians(self.rotation)
        return math.cos(angle) + math.sin(angle)

    @property
    def damages(self) -> bool:
        """Whether sections get defects."""
        shares = self.missing + self.filled + self.blank
        return shares + self.jitter + self.gain + self.offset + self.section_noise + self.blur > 0

    @property
    def defects_alone(self) -> Augmentation:
        """The same defects, and nothing else varied."""
        return replace(self, contrast=0.0, brightness=0.0, noise=0.0, rotation=0.0, zoom=0.0)


def turn(patch: Patch, rng: np.random.Generator) -> Patch:
    """Flip each axis and transpose y and x with probability 1/2 each.

    The optics see x and y alike and neither direction of any axis is special, but z is not
    exchanged with them: it is the axis that is degraded.

    Args:
        patch: z, y, x; y and x of equal extent.
        rng: consumed by exactly four draws.
    """
    flip_z, flip_y, flip_x, transpose = rng.random(4) < 0.5  # noqa: PLR2004
    if flip_z:
        patch = patch[::-1]
    if flip_y:
        patch = patch[:, ::-1]
    if flip_x:
        patch = patch[:, :, ::-1]
    return patch.transpose(0, 2, 1) if transpose else patch


def rotate(patch: Patch, side: int, augmentation: Augmentation, rng: np.random.Generator) -> Patch:
    """Turn and magnify sections about their middle, all alike, by linear interpolation.

    Args:
        patch: z, y, x; wider than the crop by ``augmentation.spread``.
        side: extent of the crop along y and x.
        augmentation: how far.
        rng: consumed by exactly two draws.

    Returns:
        (z, side, side).
    """
    angle = math.radians(augmentation.rotation * rng.uniform(-1, 1))
    scale = 1 / (1 + augmentation.zoom * rng.random())
    matrix = scale * np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    middle = (np.array(patch.shape[1:]) - 1) / 2
    offset = middle - matrix @ np.full(2, (side - 1) / 2)
    made: list[Patch] = [
        ndimage.affine_transform(section, matrix, offset, (side, side), order=1, mode="nearest")
        for section in patch
    ]
    return np.stack(made)


def vary_intensity(patch: Patch, augmentation: Augmentation, rng: np.random.Generator) -> Patch:
    """Change contrast and brightness of a crop; input and target change together.

    Args:
        patch: z, y, x in the model's values.
        augmentation: how far.
        rng: consumed by exactly two draws.
    """
    gain, offset = rng.uniform(-1.0, 1.0, 2)
    scale = np.float32(np.exp(augmentation.contrast * gain))
    return patch * scale + np.float32(augmentation.brightness * offset)


def input_noise(
    shape: tuple[int, ...], augmentation: Augmentation, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw the noise added to the sections a network sees; the target stays as recorded.

    Args:
        shape: shape of the sections.
        augmentation: how much.
        rng: consumed by one draw and ``prod(shape)`` normal draws, also where ``noise`` is 0.
    """
    sigma = np.float32(augmentation.noise * rng.random())
    noise: NDArray[Any] = rng.standard_normal(shape, dtype=np.float32)
    return sigma * noise
