"""Seeded crops straight from a volume's storage: nothing is copied to disk.

A crop is a function of (seed, step, place in the batch) alone. So a resumed training sees what
an undisturbed one would have seen, whatever was being read ahead when it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isochunk.errors import UsageError
from isochunk.geometry import AXES, Box, Triple, triple
from isochunk.spec import Intensity
from isochunk.storage.volume import Volume
from isochunk.train.degrade import Augmentation, Patch, input_noise, turn, vary_intensity

TRAINED_SHARE, VALIDATED_SHARE = 70, 85
"""Percent of the split axis where training ends, and where validation ends (Heinrich et al.)."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """A volume to take crops from, and how its values become the model's values."""

    volume: Volume
    """Isotropic volume."""
    intensity: Intensity
    """Its global intensity map."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a sequence of crops depends on besides the sources."""

    patch: Triple
    """Extent of a crop in target voxels."""
    batch: int
    """Crops per step."""
    factor: int
    """Target voxels per section."""
    averages: tuple[Triple, ...]
    """Blocks of stored voxels averaged into one target voxel; each crop draws one of them."""
    augmentation: Augmentation
    """How crops are varied."""
    seed: int
    """Seed of the whole sequence."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step needs."""

    target: Tensor
    """Isotropic crops in the model's values, float32 (b, 1, z, y, x)."""
    noise: Tensor
    """Added to the sections made from the crops, float32 (b, 1, z // factor, y, x)."""


def split(box: Box, axis: int) -> tuple[Box, Box, Box]:
    """Split a volume 70/15/15 into training, validation and test parts along one axis.

    Contiguous parts, since neighbouring voxels are no independent evidence.
    """
    lo, hi = box.lo[axis], box.hi[axis]
    cuts = [lo + (hi - lo) * share // 100 for share in (0, TRAINED_SHARE, VALIDATED_SHARE, 100)]
    parts = []
    for start, stop in pairwise(cuts):
        first, last = list(box.lo), list(box.hi)
        first[axis], last[axis] = start, stop
        parts.append(Box(triple(first), triple(last)))
    return parts[0], parts[1], parts[2]


def require_room(part: Box, needed: Triple, url: str, role: str) -> None:
    """Refuse a volume that holds no crop.

    Raises:
        UsageError: a crop of ``needed`` stored voxels does not fit in ``part`` of the volume.
    """
    for axis, have, want in zip(AXES, part.shape, needed, strict=True):
        if have < want:
            raise UsageError(
                f"the {role} part {part} of {url} has {have} voxels along {axis}, but a crop "
                f"needs {want}; choose a larger volume, a smaller patch, less averaging or "
                "another split axis"
            )


def read_crop(source: Source, lo: Triple, shape: Triple, average: Triple) -> Patch:
    """Read a crop, average blocks of it, and map it to the model's values.

    Args:
        source: volume and intensity.
        lo: first stored voxel.
        shape: extent of the crop after averaging.
        average: stored voxels per voxel of the crop.

    Returns:
        float32 of ``shape``.
    """
    stored = triple(n * a for n, a in zip(shape, average, strict=True))
    voxels = source.volume.read(Box.from_shape(stored, lo)).astype(np.float32)
    (nz, ny, nx), (az, ay, ax) = shape, average
    if average != (1, 1, 1):
        voxels = voxels.reshape(nz, az, ny, ay, nx, ax).mean((1, 3, 5))
    scale = np.float32(1.0 / source.intensity.scale)
    return (voxels - np.float32(source.intensity.offset)) * scale


class Crops:
    """The infinite, seeded sequence of training batches of one part of some volumes."""

    def __init__(
        self, sources: tuple[Source, ...], parts: tuple[Box, ...], sampling: Sampling
    ) -> None:
        """Check that every part holds a crop at every averaging.

        Args:
            sources: where crops come from, in proportion to the size of their parts.
            parts: the box of each source that may be read.
            sampling: patch, batch, averaging, augmentation and seed.

        Raises:
            UsageError: a part is smaller than a crop.
        """
        for source, part in zip(sources, parts, strict=True):
            for average in sampling.averages:
                needed = triple(p * a for p, a in zip(sampling.patch, average, strict=True))
                require_room(part, needed, source.volume.spec.url, "training")
        self.sources = sources
        self.parts = parts
        self.sampling = sampling
        sizes = np.array([part.size for part in parts], np.float64)
        self._shares = sizes / sizes.sum()

    def batch(self, step: int) -> Batch:
        """Return the batch of one step: a pure function of the seed and the step."""
        pairs = [self._crop(step, place) for place in range(self.sampling.batch)]
        target = np.stack([target for target, _ in pairs])[:, None]
        noise = np.stack([noise for _, noise in pairs])[:, None]
        return Batch(torch.from_numpy(target), torch.from_numpy(noise))

    def _crop(self, step: int, place: int) -> tuple[Patch, NDArray[np.float32]]:
        sampling = self.sampling
        rng = np.random.default_rng([sampling.seed, step, place])
        chosen = int(rng.choice(len(self.sources), p=self._shares))
        average = sampling.averages[int(rng.integers(len(sampling.averages)))]
        lo = _place(self.parts[chosen], sampling.patch, average, rng)
        patch = read_crop(self.sources[chosen], lo, sampling.patch, average)
        patch = vary_intensity(turn(patch, rng), sampling.augmentation, rng)
        depth, *lateral = sampling.patch
        noise = input_noise((depth // sampling.factor, *lateral), sampling.augmentation, rng)
        return patch, noise


def validation_crops(
    sources: tuple[Source, ...], parts: tuple[Box, ...], sampling: Sampling, count: int
) -> Tensor:
    """Read the fixed crops by which snapshots are compared: unaugmented, first averaging only.

    Returns:
        float32 (count, 1, z, y, x).

    Raises:
        UsageError: a part is smaller than a crop.
    """
    average = sampling.averages[0]
    needed = triple(p * a for p, a in zip(sampling.patch, average, strict=True))
    for source, part in zip(sources, parts, strict=True):
        require_room(part, needed, source.volume.spec.url, "validation")
    rng = np.random.default_rng([sampling.seed, 1])
    crops = []
    for i in range(count):
        source, part = sources[i % len(sources)], parts[i % len(parts)]
        lo = _place(part, sampling.patch, average, rng)
        crops.append(read_crop(source, lo, sampling.patch, average))
    return torch.from_numpy(np.stack(crops)[:, None])


def _place(part: Box, patch: Triple, average: Triple, rng: np.random.Generator) -> Triple:
    """Draw the first stored voxel of a crop, uniformly over all that fit."""
    room = [b - n * a for b, n, a in zip(part.shape, patch, average, strict=True)]
    return triple(lo + int(rng.integers(r + 1)) for lo, r in zip(part.lo, room, strict=True))


def read_ahead(make: Callable[[int], T], steps: range, depth: int) -> Generator[T, None, None]:
    """Yield ``make(step)`` in order while threads work on the next ``depth`` steps.

    Args:
        make: a function that may run in any thread.
        steps: which steps.
        depth: most results held in memory, and threads.
    """
    remaining = iter(steps)
    with ThreadPoolExecutor(depth, thread_name_prefix="read-ahead") as pool:
        waiting: list[Future[T]] = [pool.submit(make, step) for step in islice(remaining, depth)]
        try:
            while waiting:
                result = waiting.pop(0).result()
                waiting += [pool.submit(make, step) for step in islice(remaining, 1)]
                yield result
        finally:
            for future in waiting:
                future.cancel()
