"""What goes wrong with the sections of real volumes, done to those a network sees in training.

Defects hit single sections: a random share of them, at random strength. They happen in the order
in which they come about: in the microscope (blur, noise), in alignment (shifts), in contrast, and
last sections that are lost. Filled ones are filled from sections as they are by then, as in a run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from isochunk.train.augment import Augmentation
from isochunk.train.crappify import Image, JitteredSections, MissingSections, Step


def defects(augmentation: Augmentation, black: float) -> tuple[Step, ...]:
    """Return what goes wrong with the sections a network sees.

    Args:
        augmentation: which defects, how often and how strong; those that are 0 draw nothing.
        black: the model's value of a stored 0.
    """
    a = augmentation
    known: tuple[tuple[bool, Step], ...] = (
        (a.blur > 0, BlurredSections(a.blur)),
        (a.section_noise > 0, NoisySections(a.section_noise)),
        (a.jitter > 0, JitteredSections(a.jitter)),
        (a.gain + a.offset > 0, UnevenSections(a.gain, a.offset)),
        (a.filled > 0, FilledSections(a.filled)),
        (a.missing > 0, MissingSections(a.missing)),
        (a.blank > 0, MissingSections(a.blank, black)),
    )
    wanted = (step for there, step in known if there)
    return tuple(step if a.chance == 1 else Sometimes(step, a.chance) for step in wanted)


@dataclass(frozen=True, slots=True)
class Sometimes:
    """A step that happens to some crops."""

    step: Step
    """What happens."""
    chance: float
    """How likely it does."""

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Let it happen, or return the voxels as they are."""
        return self.step(voxels, rng) if rng.random() < self.chance else voxels


@dataclass(frozen=True, slots=True)
class UnevenSections:
    """Sections of other contrast and brightness than those around them."""

    gain: float
    """Largest deviation of the logarithm of a section's gain."""
    offset: float
    """Largest deviation of what is added to it, in the model's values."""

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Change a random share of the sections."""
        hit = _random_share(len(voxels), rng)
        gain, offset = rng.random(2) * (self.gain, self.offset)
        gains = np.exp(gain * hit * rng.standard_normal(len(voxels)))
        offsets = offset * hit * rng.standard_normal(len(voxels))
        return voxels * _by_section(gains) + _by_section(offsets)


@dataclass(frozen=True, slots=True)
class NoisySections:
    """Sections that were recorded with more noise."""

    sigma: float
    """Largest deviation of the noise, in the model's values."""

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Add noise to a random share of the sections."""
        hit = _random_share(len(voxels), rng)
        sigmas = self.sigma * hit * rng.random(len(voxels))
        noise: Image = rng.standard_normal(voxels.shape, dtype=np.float32)
        return voxels + _by_section(sigmas) * noise


@dataclass(frozen=True, slots=True)
class BlurredSections:
    """Sections that were recorded out of focus."""

    sigma: float
    """Largest deviation of the Gaussian, in pixels."""

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Blur a random share of the sections in y, x."""
        hit = _random_share(len(voxels), rng)
        sigmas = self.sigma * hit * rng.random(len(voxels))
        blurred: list[Image] = [
            ndimage.gaussian_filter(section, sigma, mode="mirror") if sigma else section
            for section, sigma in zip(voxels, sigmas, strict=True)
        ]
        return np.stack(blurred)


@dataclass(frozen=True, slots=True)
class FilledSections:
    """Sections that were lost and filled from the nearest that were not, linearly along z."""

    share: float
    """Chance of a section to be lost."""

    def __call__(self, voxels: Image, rng: np.random.Generator) -> Image:
        """Fill them; beyond the first and last good section the value stays. All lost: none is."""
        good = np.flatnonzero(rng.random(len(voxels)) >= self.share)
        if not len(good):
            return voxels
        z = np.arange(len(voxels))
        after = np.searchsorted(good, z).clip(max=len(good) - 1)
        before = np.where(good[after] > z, (after - 1).clip(min=0), after)
        low, high = good[before], good[after]
        share = (z - low).clip(min=0) / np.maximum(high - low, 1)
        filled = voxels[low] + _by_section(share) * (voxels[high] - voxels[low])
        return np.where(np.isin(z, good)[:, None, None], voxels, filled)


def _random_share(sections: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose sections, any share of them being as likely as any other."""
    return rng.random(sections) < rng.random()


def _by_section(values: NDArray[np.float64]) -> Image:
    """Lay out a number for each section, so that it meets (z, y, x)."""
    return values.astype(np.float32)[:, None, None]
