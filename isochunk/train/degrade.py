"""How an isotropic volume is made anisotropic for training, and how crops are varied.

A section is r target voxels thick; r is any rational number of at least 1. ``avg``: section i is
the mean over ``[i r, (i + 1) r)``, as a physical section averages over its thickness (Heinrich et
al. 2017). ``skip``: section i *is* target voxel ``i r``. ``psf``: a Gaussian of full width r at
half maximum, centred on the section, as a microscope's axial point spread function.
They are different problems; a network taught on one is not a network for the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool3d

from isochunk.errors import UsageError
from isochunk.spec import Phase

Degradation: TypeAlias = Literal["avg", "skip", "psf"]
Patch: TypeAlias = NDArray[np.float32]

PHASES: Mapping[str, Phase] = {"avg": "mean", "skip": "sample", "psf": "mean"}
"""Where the sections of a degradation lie."""

FWHM_SIGMAS = 2 * math.sqrt(2 * math.log(2))
"""Full width of a Gaussian at half maximum, in standard deviations."""

MOST_DEGREES = 45.0
"""Largest rotation: by more, crops are flipped and transposed."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far crops are varied; zeros switch a variation off. Units are the model's values."""

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

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UsageError: a number that varies nothing.
        """
        numbers = (self.contrast, self.brightness, self.noise, self.zoom, self.jitter)
        if min(numbers) < 0 or not (0 <= self.missing <= 1 and 0 <= self.rotation <= MOST_DEGREES):
            raise UsageError(
                "augmentation needs numbers of at least 0, missing of at most 1 and rotation of "
                f"at most {MOST_DEGREES} degrees; got {self}"
            )

    @property
    def spread(self) -> float:
        """How much wider crops must be read so that turned ones have no empty corners."""
        angle = math.radians(self.rotation)
        return math.cos(angle) + math.sin(angle)


def phase_of(degradation: str) -> Phase:
    """Return where sections lie; those of a crappifier, which makes y and x coarse, are means."""
    return PHASES.get(degradation, "mean")


def degrade(isotropic: Tensor, factor: Fraction | int, degradation: Degradation) -> Tensor:
    """Make every ``factor`` target voxels along z one section.

    Args:
        isotropic: (b, c, z, y, x), float; z must be a multiple of an integer ``factor``. What a
            rational one leaves over at the end is in no section.
        factor: target voxels per section.
        degradation: ``avg``, ``skip`` or ``psf``.

    Returns:
        (b, c, floor(z / factor), y, x).

    Raises:
        UsageError: the factor is below 1, z makes no whole sections, or the degradation is
            unknown.
    """
    b, c, depth, y, x = isotropic.shape
    ratio = Fraction(factor)
    if ratio.denominator == 1 and degradation != "psf":
        _whole_sections(depth, ratio)
        if degradation == "avg":
            return avg_pool3d(isotropic, (ratio.numerator, 1, 1))
        if degradation == "skip":
            return isotropic[:, :, :: ratio.numerator]
    weights = section_weights(depth, ratio, degradation, isotropic.device).to(isotropic.dtype)
    return (weights @ isotropic.reshape(b, c, depth, y * x)).view(b, c, -1, y, x)


def section_weights(
    depth: int, factor: Fraction | int, degradation: Degradation, device: torch.device | None = None
) -> Tensor:
    """Return how much each target voxel counts in each section; every row sums to 1.

    ``avg`` weighs by the length of the overlap. ``skip`` interpolates linearly between the two
    voxels around ``i * factor``. ``psf`` leaves the Gaussian's tails beyond the volume out.

    Args:
        depth: target voxels along z, a multiple of an integer ``factor``.
        factor: target voxels per section.
        degradation: ``avg``, ``skip`` or ``psf``.
        device: where the weights are computed; nothing is copied to it.

    Returns:
        float32 (floor(depth / factor), depth).

    Raises:
        UsageError: as :func:`degrade` says.
    """
    ratio = Fraction(factor)
    sections = _whole_sections(depth, ratio)
    p, q = ratio.numerator, ratio.denominator
    # In units of 1 / q voxel all edges are integers, so nothing is rounded before the division.
    first = torch.arange(sections, device=device)[:, None] * p
    voxel = torch.arange(depth, device=device) * q
    if degradation == "avg":
        overlap = torch.minimum(first + p, voxel + q) - torch.maximum(first, voxel)
        return overlap.clamp(min=0) / p
    if degradation == "skip":
        return (q - (voxel - first).abs()).clamp(min=0) / q
    if degradation == "psf":
        distance = ((voxel - first) * 2 + q - p) / (2 * p)  # between centres, in sections
        gauss = torch.exp(-0.5 * (distance * FWHM_SIGMAS).square())
        return gauss / gauss.sum(1, keepdim=True)
    raise UsageError(f"degradation {degradation!r} is unknown; choose {get_args(Degradation)}")


def _whole_sections(depth: int, ratio: Fraction) -> int:
    if ratio < 1:
        raise UsageError(f"factor {ratio} must be at least 1 target voxel per section")
    sections, left_over = divmod(depth, ratio)
    if sections < 1 or (left_over and ratio.denominator == 1):
        raise UsageError(
            f"{depth} voxels along z cannot be made whole sections of {ratio}; "
            f"choose a multiple, e.g. {math.ceil(max(1, sections) * ratio)}"
        )
    return sections


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
