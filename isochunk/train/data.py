"""Seeded crops straight from a volume's storage: nothing is copied to disk.

A crop is a function of (seed, step, place in the batch) alone. So a resumed training sees what
an undisturbed one would have seen, whatever was being read ahead when it was stopped, and several
processes share a batch without talking.

Crops have the network's own axes (z', y', x'): z' is the one that is coarse in its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, pairwise, permutations
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from isochunk.core.geometry import AXES, Box, Triple, sub, triple
from isochunk.core.mending import Mending
from isochunk.core.spec import Intensity, Phase
from isochunk.errors import UsageError
from isochunk.models.network import Corner
from isochunk.storage.volume import Volume
from isochunk.train.augment import Augmentation, Patch, rotate, turn, vary_intensity
from isochunk.train.crappify import crappify
from isochunk.train.defects import defects
from isochunk.train.pairs import Pairing

TRAINED_SHARE, VALIDATED_SHARE = 70, 85
"""Percent of the split axis where training ends, and where validation ends (Heinrich et al.)."""

IN_PLACE: tuple[Triple, ...] = ((0, 1, 2),)
"""Crops have the volume's axes, and y and x are exchanged at random."""
LATERAL: tuple[Triple, ...] = ((1, 0, 2), (2, 0, 1))
"""y or x of the volume becomes the crop's coarse axis, and z its second."""
ANY: tuple[Triple, ...] = tuple(map(triple, permutations(range(3))))
"""Any axis becomes the coarse one, and the others follow in either order."""
ACROSS: tuple[Triple, ...] = tuple(order for order in ANY if order[0] != 0)
"""y or x becomes the coarse one, and the others follow in either order."""
UPRIGHT: tuple[Triple, ...] = ((0, 1, 2), (0, 2, 1))
"""xz or yz slices: z is the coarse axis."""

FARTHEST = 1 << 20
"""Positions are drawn below it; they matter to a network modulo its tile."""

PLACES = 100
"""Places tried before one with lost sections is taken."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shades:
    """The model's values of black and of white."""

    black: float
    """Value of the least stored one."""
    white: float
    """Value of the largest that the dtype holds."""

    @property
    def range(self) -> float:
        """Difference between the two."""
        return self.white - self.black

    def to_unit(self, values: Tensor) -> Tensor:
        """Map black to 0 and white to 1."""
        return (values - self.black) / self.range


@dataclass(frozen=True, slots=True)
class Source:
    """A volume to take crops from, and how its values become the model's values."""

    volume: Volume
    """What is read."""
    intensity: Intensity
    """Its global intensity map."""
    mending: Mending | None = None
    """How its sections are used that are not used as they are stored."""

    @property
    def shades(self) -> Shades:
        """What black and white are to the model."""
        full = Intensity.full_range(self.volume.spec.dtype).scale
        offset, scale = self.intensity.offset, self.intensity.scale
        return Shades((0 - offset) / scale, (full - offset) / scale)


@dataclass(frozen=True, slots=True)
class CropLayout:
    """How a crop lies in a volume."""

    patch: Triple
    """Extent in target voxels (z', y', x')."""
    average: Triple
    """Stored voxels averaged into one target voxel, in the volume's axes."""
    order: Triple
    """Axes of the volume that become (z', y', x')."""

    @property
    def shape(self) -> Triple:
        """Extent in target voxels, in the volume's axes."""
        return triple(self.patch[self.order.index(axis)] for axis in range(3))

    @property
    def stored_shape(self) -> Triple:
        """Extent in stored voxels, in the volume's axes."""
        return triple(n * a for n, a in zip(self.shape, self.average, strict=True))


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a sequence of crops depends on besides the sources."""

    patch: Triple
    """Extent of a crop in target voxels (z', y', x')."""
    batch: int
    """Crops per step, over all processes."""
    factors: tuple[Fraction, ...]
    """Target voxels per section; each step draws one."""
    averages: tuple[Triple, ...]
    """Blocks of stored voxels averaged into one target voxel; each crop draws one of them."""
    augmentation: Augmentation
    """How crops are varied."""
    seed: int
    """Seed of the whole sequence."""
    pairings: tuple[Pairing, ...]
    """How input and target are made of a crop; each step draws one."""
    orders: tuple[Triple, ...] = IN_PLACE
    """Axes of the volume that become (z', y', x'); each crop draws one of them."""
    balance: float = 1.0
    """Sources are drawn in proportion to the size of their parts to this power."""
    hardest_of: int = 1
    """Places drawn for each crop, of which the hardest is taken."""
    rank: int = 0
    """Which of the processes this is."""
    ranks: int = 1
    """Processes that share a batch."""

    @property
    def grown(self) -> Triple:
        """Extent of a crop with the margin of its augmentation."""
        z, y, x = self.patch
        margin = 2 * self.augmentation.margin
        return (z, y + margin, x + margin)

    @property
    def read(self) -> Triple:
        """Extent of what is read for a crop: wider where crops are turned."""
        z, y, x = self.grown
        spread = self.augmentation.spread
        return (z, math.ceil(y * spread), math.ceil(x * spread))


@dataclass(frozen=True, slots=True)
class Batch:
    """What one training step needs."""

    coarse: Tensor
    """What the network sees, float32 (b, 1, z', y', x')."""
    target: Tensor
    """What it is to answer, float32 (b, 1, z', y', x')."""
    factor: Fraction
    """Target voxels per section."""
    phase: Phase = "mean"
    """Where sections lie."""
    corner: Corner = (0, 0)
    """Where networks that mind positions are to take crops to lie: z', x' in target voxels."""


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
        shape: extent of the crop after averaging, in the volume's axes.
        average: stored voxels per voxel of the crop.

    Returns:
        float32 of ``shape``.
    """
    stored = triple(n * a for n, a in zip(shape, average, strict=True))
    voxels = source.volume.read(Box.from_shape(stored, lo)).astype(np.float32)
    if average != (1, 1, 1):  # numpy's mean over blocks takes five times as long
        voxels = avg_pool3d(torch.from_numpy(voxels)[None], average)[0].numpy()
    scale = np.float32(1.0 / source.intensity.scale)
    return (voxels - np.float32(source.intensity.offset)) * scale


def in_room(sampling: Sampling, parts: Iterable[Box]) -> Sampling:
    """Leave out the orders whose coarse axis is z where any axis may be, and sections are too few.

    Args:
        sampling: how crops are drawn.
        parts: the box of each source that may be read.
    """
    averages = sampling.averages
    z = min(part.shape[0] // average[0] for part in parts for average in averages)
    if sampling.orders != ANY or z >= sampling.read[0]:
        return sampling
    return replace(sampling, orders=ACROSS)


class Crops:
    """The infinite, seeded sequence of training batches of one part of some volumes."""

    def __init__(
        self, sources: tuple[Source, ...], parts: tuple[Box, ...], sampling: Sampling
    ) -> None:
        """Check that every part holds a crop at every averaging and in every order.

        Args:
            sources: where crops come from.
            parts: the box of each source that may be read.
            sampling: how crops are drawn.

        Raises:
            UsageError: a part is smaller than a crop.
        """
        sampling = in_room(sampling, parts)
        require_rooms(_urls(sources), parts, sampling, "training")
        self.sources = sources
        self.parts = parts
        self.sampling = sampling
        sizes = np.array([part.size for part in parts], np.float64) ** sampling.balance
        self._shares = sizes / sizes.sum()

    def batch(self, step: int) -> Batch:
        """Return this process's part of the batch of one step: a pure function of the step."""
        sampling = self.sampling
        rng = np.random.default_rng([sampling.seed, step])
        factor = sampling.factors[int(rng.integers(len(sampling.factors)))]
        corner = (int(rng.integers(FARTHEST)), int(rng.integers(FARTHEST)))
        pairing = sampling.pairings[int(rng.integers(len(sampling.pairings)))]
        places = range(sampling.rank, sampling.batch, sampling.ranks)
        pairs = [self._pair(step, place, factor, pairing) for place in places]
        return replace(_batch(pairs, factor, pairing.phase), corner=corner)

    def _pair(
        self, step: int, place: int, factor: Fraction, pairing: Pairing
    ) -> tuple[Patch, Patch]:
        sampling = self.sampling
        rng = np.random.default_rng([sampling.seed, step, place])
        chosen = int(rng.choice(len(self.sources), p=self._shares))
        average = sampling.averages[int(rng.integers(len(sampling.averages)))]
        order = sampling.orders[int(rng.integers(len(sampling.orders)))]
        layout = CropLayout(sampling.read, average, order)
        source, part = self.sources[chosen], self.parts[chosen]
        patch, *others = [_read(source, part, layout, rng) for _ in range(sampling.hardest_of)]
        if others:
            patch = max(patch, *others, key=lambda patch: lost_detail(patch, factor))
        if sampling.augmentation.rotation or sampling.augmentation.zoom:
            patch = rotate(patch, sampling.grown[2], sampling.augmentation, rng)
        # Where orders are drawn, they have exchanged y and x already, or those are not alike.
        patch = turn(patch, rng) if sampling.orders == IN_PLACE else flip(patch, rng)
        varied = vary_intensity(patch, sampling.augmentation, rng)
        pair = pairing(varied, factor, rng)
        return _damaged(pair, sampling.augmentation, source.shades, rng)


def _damaged(
    pair: tuple[Patch, Patch],
    augmentation: Augmentation,
    shades: Shades,
    rng: np.random.Generator,
) -> tuple[Patch, Patch]:
    """Let defects happen to the input of a pair with its margin, and cut both."""
    coarse, target = pair
    coarse = crappify(coarse, defects(augmentation, shades.black), rng)
    margin = augmentation.margin
    kept = np.s_[:, margin : coarse.shape[1] - margin, margin : coarse.shape[2] - margin]
    return (coarse[kept], target[kept]) if margin else (coarse, target)


def validation_crops(
    sources: tuple[Source, ...], parts: tuple[Box, ...], sampling: Sampling, count: int
) -> list[Batch]:
    """Read the fixed crops by which snapshots are compared: first averaging only.

    Nothing of the augmentation happens to them but its defects.

    Returns:
        Batches of one crop; factors, orders and pairings take turns.

    Raises:
        UsageError: a part is smaller than a crop.
    """
    average = sampling.averages[0]
    sampling = in_room(replace(sampling, averages=(average,)), parts)
    require_rooms(_urls(sources), parts, sampling, "validation")
    rng = np.random.default_rng([sampling.seed, 1])
    crops = []
    for i in range(count):
        source, part = sources[i % len(sources)], parts[i % len(parts)]
        order = sampling.orders[i % len(sampling.orders)]
        turn, at = divmod(i, len(sampling.factors))
        factor, pairing = sampling.factors[at], sampling.pairings[turn % len(sampling.pairings)]
        patch = _read(source, part, CropLayout(sampling.grown, average, order), rng)
        own = np.random.default_rng([sampling.seed, 1, i])
        pair = pairing(patch, factor, own)
        damaged = _damaged(pair, sampling.augmentation, source.shades, own)
        crops.append(_batch([damaged], factor, pairing.phase))
    return crops


def lost_detail(patch: Patch, factor: Fraction) -> float:
    """Return the variance along z within what becomes one section: what is hard to restore."""
    thick = min(math.ceil(factor), len(patch))
    sections = patch[: len(patch) // thick * thick].reshape(-1, thick, *patch.shape[1:])
    return float(sections.var(1).mean())


def flip(patch: Patch, rng: np.random.Generator) -> Patch:
    """Flip each axis with probability 1/2."""
    steps = np.where(rng.random(patch.ndim) < 0.5, -1, 1)  # noqa: PLR2004
    return patch[tuple(slice(None, None, step) for step in steps)]


def _batch(pairs: list[tuple[Patch, Patch]], factor: Fraction, phase: Phase) -> Batch:
    coarse, target = (
        torch.from_numpy(np.stack(patches)[:, None]) for patches in zip(*pairs, strict=True)
    )
    return Batch(coarse, target, factor, phase)


def _read(source: Source, part: Box, layout: CropLayout, rng: np.random.Generator) -> Patch:
    """Read a crop of a part, uniformly over all places where it fits and no section is lost."""
    room = sub(part.shape, layout.stored_shape)
    for _ in range(PLACES):
        lo = triple(lo + int(rng.integers(r + 1)) for lo, r in zip(part.lo, room, strict=True))
        if source.mending is None or source.mending.good(lo[0], lo[0] + layout.stored_shape[0]):
            break
    return read_crop(source, lo, layout.shape, layout.average).transpose(layout.order)


def _urls(sources: tuple[Source, ...]) -> list[str]:
    return [source.volume.spec.url for source in sources]


def require_rooms(urls: Iterable[str], parts: Iterable[Box], sampling: Sampling, role: str) -> None:
    """Refuse volumes that hold no crop at some averaging or in some order.

    Args:
        urls: of the volumes.
        parts: the box of each that may be read.
        sampling: how crops are drawn.
        role: what the parts are for.

    Raises:
        UsageError: a part is smaller than a crop.
    """
    for url, part in zip(urls, parts, strict=True):
        for average in sampling.averages:
            for order in sampling.orders:
                require_room(
                    part, CropLayout(sampling.read, average, order).stored_shape, url, role
                )


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
