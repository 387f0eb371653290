"""What else happens to images on their way to a network: noise, coarse pixels, bad sections.

Each step is a pure function of voxels and a random generator, so a tuple of steps is a
degradation, and the same seed makes the same voxels. :data:`CRAPPIFIERS` has those by which PSSR
makes training inputs (Fang et al. 2021, Nature Methods 18:406): noise first, coarser pixels last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from isochunk.core.degradation import Degradation
from isochunk.errors import UsageError
from isochunk.models.degrade import degrade

Image: TypeAlias = NDArray[np.float32]


class Step(Protocol):
    """One thing that happens to voxels."""

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Return changed voxels; those given stay as they are.

        Args:
            voxels: float32 (z, y, x), black 0 and white 1.
            rng: the only source of chance.
        """


def crappify(voxels: Image, steps: tuple[Step, ...], rng: np.random.Generator) -> Image:
    """Let steps happen to voxels, one after the other.

    Args:
        voxels: float32 (z, y, x), black 0 and white 1.
        steps: what happens; none changes nothing.
        rng: the only source of chance.

    Returns:
        float32 (z, y, x), coarser where a step makes it so.

    Raises:
        UsageError: a step does not fit the shape.
    """
    for step in steps:
        voxels = step(voxels, rng)
    return voxels


@dataclass(frozen=True, slots=True)
class GaussianNoise:
    """Noise of one deviation everywhere."""

    sigma: float
    """Standard deviation."""

    def __post_init__(self) -> None:
        """Check the range."""
        _require(self.sigma >= 0, f"noise of deviation {self.sigma} must have one of at least 0")

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Add it, and clip to [0, 1]."""
        return _clipped(voxels + np.float32(self.sigma) * _normal(voxels, rng))


@dataclass(frozen=True, slots=True)
class LocalGaussianNoise:
    """Noise that is stronger where sections are brighter: its variance is ``gain * G(voxels)``."""

    gain: float
    """Variance where everything around is white."""
    blur: float
    """Deviation in pixels of the Gaussian G, which blurs within sections."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(
            self.gain >= 0 and self.blur >= 0,
            f"local noise needs gain >= 0 and blur >= 0; got {self.gain} and {self.blur}",
        )

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Add it, and clip to [0, 1]."""
        around = ndimage.gaussian_filter(voxels, (0, self.blur, self.blur), mode="nearest")
        sigma = np.sqrt(np.float32(self.gain) * np.maximum(around, 0))
        return _clipped(voxels + sigma * _normal(voxels, rng))


@dataclass(frozen=True, slots=True)
class PoissonNoise:
    """Noise of counting: what is seen is Poisson with mean ``counts * voxels``."""

    counts: float = 256.0
    """Counts where it is white; PSSR's library takes 256 for 8-bit images."""

    def __post_init__(self) -> None:
        """Check the range."""
        _require(self.counts > 0, f"Poisson noise needs counts > 0; got {self.counts}")

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Count, and clip to [0, 1]."""
        counted = rng.poisson(self.counts * np.maximum(voxels, 0).astype(np.float64))
        return _clipped((counted / self.counts).astype(np.float32))


@dataclass(frozen=True, slots=True)
class SaltAndPepper:
    """Voxels that are white or black whatever lies there."""

    share: float = 0.005
    """Share of the voxels made white, and then share made black."""

    def __post_init__(self) -> None:
        """Check the range."""
        _require_share(self.share, "voxels")

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Replace them."""
        salted = np.where(rng.random(voxels.shape) < self.share, np.float32(1), voxels)
        return np.where(rng.random(voxels.shape) < self.share, np.float32(0), salted)


@dataclass(frozen=True, slots=True)
class Coarser:
    """Fewer pixels along y and x, by linear interpolation at the centres of the new ones.

    PSSR's library puts the outermost new pixels on the outermost old ones instead, which moves
    structures by up to half a new pixel against the grid that its network restores.
    """

    factor: int = 4
    """Old pixels per new one, along y and x."""

    def __post_init__(self) -> None:
        """Check the range."""
        _require(self.factor >= 1, f"factor {self.factor} must be at least 1")

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Interpolate.

        Raises:
            UsageError: y or x is no multiple of the factor.
        """
        f, (_, y, x) = self.factor, voxels.shape
        _require(
            y % f == 0 and x % f == 0,
            f"sections of {y} x {x} pixels make no whole pixels of {f} x {f}; crop to "
            f"{y // f * f} x {x // f * f}",
        )
        # A new centre is an old one, or the middle of four.
        low, high = (f - 1) // 2, f // 2
        rows = (voxels[:, low::f] + voxels[:, high::f]) * np.float32(0.5)
        return (rows[:, :, low::f] + rows[:, :, high::f]) * np.float32(0.5)


@dataclass(frozen=True, slots=True)
class Sections:
    """Fewer, thicker sections along z; see :func:`isochunk.models.degrade.degrade`."""

    factor: Fraction
    """Old sections per new one; any rational number of at least 1."""
    degradation: Degradation = "avg"
    """How sections are made."""

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Make them.

        Raises:
            UsageError: z makes no whole sections.
        """
        given = torch.from_numpy(np.ascontiguousarray(voxels))[None, None]
        made: Image = degrade(given, self.factor, self.degradation)[0, 0].numpy()
        return made


@dataclass(frozen=True, slots=True)
class MissingSections:
    """Sections that were lost, each independently of the others."""

    share: float
    """Chance of a section to be lost."""
    value: float = 0.0
    """What is stored in its place."""

    def __post_init__(self) -> None:
        """Check the range."""
        _require_share(self.share, "sections")

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Replace them."""
        lost = rng.random(len(voxels)) < self.share
        return np.where(lost[:, None, None], np.float32(self.value), voxels)


@dataclass(frozen=True, slots=True)
class JitteredSections:
    """Sections that are not quite aligned: each is shifted by itself, by parts of a pixel."""

    sigma: float
    """Standard deviation of the shift in pixels, along y and along x."""

    def __post_init__(self) -> None:
        """Check the range."""
        _require(self.sigma >= 0, f"shifts of deviation {self.sigma} must have one of at least 0")

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Shift them; cubic splines, which keep detail, continued by reflection."""
        shifts = self.sigma * rng.standard_normal((len(voxels), 2))
        moved = [
            ndimage.shift(section, shift, order=3, mode="mirror")
            for section, shift in zip(voxels, shifts, strict=True)
        ]
        return np.stack(moved)


def _normal(voxels: Image, rng: np.random.Generator) -> Image:
    drawn: Image = rng.standard_normal(voxels.shape, dtype=np.float32)
    return drawn


def _clipped(voxels: Image) -> Image:
    return np.clip(voxels, np.float32(0), np.float32(1))


def _require_share(share: float, what: str) -> None:
    _require(0 <= share <= 1, f"{share} is no share of {what}; give 0 to 1")


def _require(condition: object, message: str) -> None:
    if not condition:
        raise UsageError(message)


CRAPPIFIERS: Mapping[str, tuple[Step, ...]] = MappingProxyType(
    {
        "em": (LocalGaussianNoise(0.05, 3.0), Coarser()),
        "fluorescence": (SaltAndPepper(0.005), LocalGaussianNoise(0.5, 5.0), Coarser()),
        "gaussian": (GaussianNoise(0.15), Coarser()),
        "poisson": (PoissonNoise(), Coarser()),
        "coarse": (Coarser(),),
    }
)
"""PSSR's ways from sections to its inputs, four times coarser; deviations are its code's."""
