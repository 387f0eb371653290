"""Which boxes of a source are judged: one that was named, or some of bounded size, drawn by seed.

A volume may be larger than anyone can read, and most of it may be black padding, so boxes are drawn
until enough hold tissue, and no more than a fixed number.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from isochunk.core.geometry import Box, Triple, ceil_div, triple
from isochunk.core.section_images import tissue_of
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import UsageError
from isochunk.evaluation.ground_truth import ArrayVolume
from isochunk.storage.volume import Volume

log = logging.getLogger(__name__)

SAMPLE_SHAPE: Triple = (32, 128, 128)
"""Source voxels of a box that is drawn: 512 KiB of uint8."""

MAX_DRAWN = 64
"""Boxes read at most, in search of tissue: 32 MiB of uint8."""

LEAST_TISSUE = 0.25
"""Share of tissue below which a box is background, and passed over."""

MAX_TARGET_VOXELS = 2**27
"""Target voxels of a box: each model's are held in memory until all have been compared."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Boxes of a source and what they hold."""

    boxes: tuple[Box, ...]
    """Source voxels; all of one shape."""
    voxels: tuple[Voxels, ...]
    """(z, y, x) of each."""
    bytes_read: int
    """Bytes of voxels read, background included."""
    passed_over: int
    """Boxes that were read and held background."""


def draw_sample(volume: Volume, count: int, seed: int) -> Sample:
    """Draw boxes that hold tissue; a volume that is no larger than they are is read whole.

    Args:
        volume: what they are drawn of.
        count: how many; fewer where there are fewer.
        seed: of the draw.

    Raises:
        UsageError: all boxes are background, or none is asked for.
        StorageError: a box cannot be read.
    """
    if count < 1:
        raise UsageError(f"{count} boxes are no sample; ask for at least 1")
    if volume.spec.box.size <= count * math.prod(SAMPLE_SHAPE):
        return _read_one(volume, volume.spec.box)
    boxes: list[Box] = []
    held: list[Voxels] = []
    size = drawn = 0
    for box in spread_boxes(volume.spec.box, seed):
        voxels = volume.read(box)
        size, drawn = size + voxels.nbytes, drawn + 1
        if float(np.mean(tissue_of(voxels))) >= LEAST_TISSUE:
            boxes.append(box)
            held.append(voxels)
        if len(boxes) == count:
            break
    if not boxes:
        raise UsageError(
            f"none of {drawn} boxes of {volume.spec.url} holds tissue: they are black or of one "
            "grey level; choose a --box that does"
        )
    log.info("judging %d boxes of %s: read %d bytes", len(boxes), volume.spec.url, size)
    return Sample(tuple(boxes), tuple(held), size, drawn - len(boxes))


def read_sample(volume: Volume, box: Box, factor: Fraction) -> Sample:
    """Read the one box that was named.

    Args:
        volume: where it lies.
        box: source voxels.
        factor: target voxels per section.

    Raises:
        UsageError: it reaches beyond the volume, is too large, or is all background.
        StorageError: it cannot be read.
    """
    spec = volume.spec
    if box not in spec.box:
        raise UsageError(f"box {box} reaches beyond {spec.url}, which has {spec.box}")
    if box.size * factor > MAX_TARGET_VOXELS:
        raise UsageError(
            f"box {box} has {box.size} voxels and {math.ceil(box.size * factor)} when restored, "
            f"which are held in memory for every model; choose one of at most "
            f"{math.floor(MAX_TARGET_VOXELS / factor)}, or leave --box out to have some drawn"
        )
    return _read_one(volume, box)


def spread_boxes(bounds: Box, seed: int) -> Iterator[Box]:
    """Yield boxes of :data:`SAMPLE_SHAPE`, or as large as there is, in an order drawn by seed.

    They lie evenly from end to end, overlapping where they do not fit; each comes once.
    """
    shape = triple(map(min, SAMPLE_SHAPE, bounds.shape))
    counts = triple(map(ceil_div, bounds.shape, shape))
    n = math.prod(counts)
    for flat in random.Random(seed).sample(range(n), min(n, MAX_DRAWN)):
        z, rest = divmod(flat, counts[1] * counts[2])
        lo = triple(
            a + (extent - edge) * i // max(1, count - 1)
            for a, extent, edge, i, count in zip(
                bounds.lo,
                bounds.shape,
                shape,
                (z, *divmod(rest, counts[2])),
                counts,
                strict=True,
            )
        )
        yield Box.from_shape(shape, lo)


def _read_one(volume: Volume, box: Box) -> Sample:
    """Read one box, whatever its shape.

    Raises:
        UsageError: it is all background.
    """
    voxels = volume.read(box)
    if not tissue_of(voxels).any():
        raise UsageError(
            f"box {box} of {volume.spec.url} holds no tissue: it is black or of one grey level; "
            "choose another --box"
        )
    log.info("judging box %s of %s: read %d bytes", box, volume.spec.url, voxels.nbytes)
    return Sample((box,), (voxels,), voxels.nbytes, 0)


def in_memory(voxels: Voxels, spec: VolumeSpec) -> ArrayVolume:
    """Return voxels as a volume whose grid starts at zero.

    Args:
        voxels: (z, y, x).
        spec: of the volume that they are of.
    """
    shape = triple(voxels.shape)
    level = replace(spec.levels[0], key="", box=Box.from_shape(shape), chunk=shape, shard=None)
    return ArrayVolume(replace(spec, encoding="raw", levels=(level,)), voxels)
