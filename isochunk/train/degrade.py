"""How an isotropic volume is made anisotropic for training, and how crops are varied.

``avg``: section i is the mean of target voxels ``i*r .. i*r + r - 1``, as a physical section
averages over its thickness (Heinrich et al. 2017). ``skip``: section i *is* target voxel ``i*r``.
They are different problems; a network taught on one is not a network for the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool3d

from isochunk.errors import UsageError

Degradation: TypeAlias = Literal["avg", "skip"]
Patch: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far crops are varied; zeros switch a variation off. Units are the model's values."""

    contrast: float = 0.0
    """Values are multiplied by exp(u), u uniform in [-contrast, contrast]."""
    brightness: float = 0.0
    """A constant, uniform in [-brightness, brightness], is added."""
    noise: float = 0.0
    """Input sections get Gaussian noise of a deviation uniform in [0, noise]."""


def degrade(isotropic: Tensor, factor: int, degradation: Degradation) -> Tensor:
    """Make every ``factor`` target voxels along z one section.

    Args:
        isotropic: (b, c, z, y, x), float; z must be a multiple of ``factor``.
        factor: target voxels per section.
        degradation: ``avg`` or ``skip``.

    Returns:
        (b, c, z // factor, y, x).

    Raises:
        UsageError: z is no multiple of the factor, or the degradation is unknown.
    """
    depth = isotropic.shape[2]
    if depth % factor:
        raise UsageError(
            f"{depth} voxels along z cannot be made whole sections of {factor}; "
            f"choose a multiple, e.g. {max(1, depth // factor) * factor}"
        )
    if degradation == "avg":
        return avg_pool3d(isotropic, (factor, 1, 1))
    if degradation == "skip":
        return isotropic[:, :, ::factor]
    raise UsageError(f"degradation {degradation!r} is unknown; choose {get_args(Degradation)}")


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
