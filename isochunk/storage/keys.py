"""Which stored object holds which voxels, and what it is called. Pure.

Objects are the cells of :attr:`LevelSpec.object_shape`, counted from the level's first voxel.
Sharded precomputed follows neuroglancer's ``uint64_sharded`` description: a chunk's number is
the compressed Morton code of its grid position, and a shard holds a run of ``2**n`` numbers.
A run is a box only for some ``n`` and some proportions of the grid; other shapes are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from isochunk.core.geometry import AXES, Box, Spacing, Triple, grid_shape, triple
from isochunk.core.spec import Format, LevelSpec, VolumeSpec
from isochunk.errors import GeometryError, UsageError

MAX_PRESHIFT_BITS = 9
"""Chunks of one minishard: 512, an index of 12 kB, which a viewer fetches in one request."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """Parameters of neuroglancer's sharded format for one level."""

    preshift_bits: int
    """Low bits of a chunk's number that stay within a minishard."""
    minishard_bits: int
    """Bits that choose the minishard."""
    shard_bits: int
    """Bits that choose the shard file."""

    @property
    def bits(self) -> int:
        """Bits of a chunk's number that stay within one shard."""
        return self.preshift_bits + self.minishard_bits

    def as_json(self) -> dict[str, object]:
        """Return the ``sharding`` member of a scale."""
        return {
            "@type": "neuroglancer_uint64_sharded_v1",
            "hash": "identity",
            "preshift_bits": self.preshift_bits,
            "minishard_bits": self.minishard_bits,
            "shard_bits": self.shard_bits,
            "minishard_index_encoding": "raw",
            "data_encoding": "raw",
        }


def level_key(format_: Format, level: int, spacing: Spacing) -> str:
    """Return the usual key of a level: ``8_8_8`` (x, y, z nm) for precomputed, ``s0`` else."""
    if format_ == "precomputed":
        return "_".join(f"{float(s):.12g}" for s in (spacing.x, spacing.y, spacing.z))
    return f"s{level}"


def morton_axes(grid: Triple) -> tuple[int, ...]:
    """Return the axis (0 z, 1 y, 2 x) of each bit of the compressed Morton code, lowest first.

    Axes take turns x, y, z; an axis drops out when its grid needs no further bit.
    """
    bits = [(n - 1).bit_length() for n in grid]
    return tuple(axis for bit in range(max(bits)) for axis in (2, 1, 0) if bit < bits[axis])


def morton_code(index: Triple, grid: Triple) -> int:
    """Return the compressed Morton code of a chunk's grid position (z, y, x)."""
    code, used = 0, [0, 0, 0]
    for bit, axis in enumerate(morton_axes(grid)):
        code |= (index[axis] >> used[axis] & 1) << bit
        used[axis] += 1
    return code


def precomputed_shard_shapes(level: LevelSpec) -> tuple[Triple, ...]:
    """Return every shard shape (z, y, x) that precomputed can have here, smallest first."""
    shape = list(level.chunk)
    shapes = [triple(shape)]
    for axis in morton_axes(grid_shape(level.box.shape, level.chunk)):
        shape[axis] *= 2
        shapes.append(triple(shape))
    return tuple(shapes)


def nearest_shard_shape(level: LevelSpec, wanted: Triple) -> Triple:
    """Return the possible precomputed shard shape that differs least from ``wanted``."""
    extent = triple(
        n * c for n, c in zip(grid_shape(level.box.shape, level.chunk), level.chunk, strict=True)
    )

    def distance(shape: Triple) -> float:
        pairs = zip(shape, wanted, extent, strict=True)
        return sum(abs(math.log2(min(a, n) / min(b, n))) for a, b, n in pairs)

    return min(precomputed_shard_shapes(level), key=distance)


def precomputed_sharding(level: LevelSpec) -> Sharding:
    """Return the sharding parameters that make :attr:`LevelSpec.shard` the box of one file.

    Raises:
        GeometryError: no parameters do; the message names the nearest shape that works.
    """
    if level.shard is None:
        raise GeometryError(f"level {level.key!r} has no shard shape; give one to shard it")
    grid = grid_shape(level.box.shape, level.chunk)
    order = morton_axes(grid)
    wanted = [0, 0, 0]
    for axis, (shard, chunk, n) in enumerate(zip(level.shard, level.chunk, grid, strict=True)):
        count, rest = divmod(shard, chunk)
        whole = count >= n
        if rest or count < 1 or (not whole and count & (count - 1)):
            raise _impossible(level)
        wanted[axis] = (n - 1).bit_length() if whole else count.bit_length() - 1
    bits = sum(wanted)
    if any(order[:bits].count(axis) != wanted[axis] for axis in range(len(AXES))):
        raise _impossible(level)
    preshift = min(bits, MAX_PRESHIFT_BITS)
    return Sharding(preshift, bits - preshift, len(order) - bits)


def _impossible(level: LevelSpec) -> GeometryError:
    nearest = nearest_shard_shape(level, level.shard or level.chunk)
    return GeometryError(
        f"precomputed cannot hold shards of {level.shard} (z, y, x) with chunks of {level.chunk} "
        f"in a volume of {level.box.shape}: a shard must be a run of the compressed Morton code; "
        f"the nearest shape that works is --shard {','.join(map(str, nearest))}"
    )


def shard_shape(level: LevelSpec, bits: int) -> Triple:
    """Return the voxels of a shard that holds ``2**bits`` chunk numbers of a level."""
    shapes = precomputed_shard_shapes(level)
    return shapes[min(bits, len(shapes) - 1)]


def object_boxes(level: LevelSpec, box: Box) -> Iterator[Box]:
    """Cut out the stored objects that overlap ``box``, x fastest; clipped to the level's box."""
    box = box & level.box
    if box.size == 0:
        return
    shape = level.object_shape
    first, last = object_index(level, box.lo), object_index(level, triple(b - 1 for b in box.hi))
    for z in range(first[0], last[0] + 1):
        for y in range(first[1], last[1] + 1):
            for x in range(first[2], last[2] + 1):
                index = (z, y, x)
                lo = triple(o + i * n for o, i, n in zip(level.box.lo, index, shape, strict=True))
                yield Box.from_shape(shape, lo) & level.box


def object_index(level: LevelSpec, voxel: Triple) -> Triple:
    """Return the grid position (z, y, x) of the object that holds a voxel."""
    cells = zip(voxel, level.box.lo, level.object_shape, strict=True)
    return triple((v - o) // n for v, o, n in cells)


def check_whole_objects(level: LevelSpec, box: Box) -> None:
    """Check that ``box`` covers whole stored objects, so that no two writers share one.

    Raises:
        GeometryError: the box is empty, leaves the level or cuts an object.
    """
    if box.size == 0 or box not in level.box:
        raise GeometryError(f"box {box} is empty or outside level {level.key!r}, {level.box}")
    noun = "shard" if level.shard else "chunk"
    for axis, lo, hi, o, end, n in zip(
        AXES, box.lo, box.hi, level.box.lo, level.box.hi, level.object_shape, strict=True
    ):
        if (lo - o) % n or ((hi - o) % n and hi != end):
            raise GeometryError(
                f"box {box} cuts {noun} {level.object_shape} along {axis}; write whole {noun}s: "
                f"start and stop at {o} plus a multiple of {n}, or stop at {end}"
            )


def object_key(spec: VolumeSpec, level: int, box: Box, separator: str = "/") -> str:
    """Return the key, below the volume's URL, of the stored object that holds ``box``'s corner.

    Args:
        spec: the volume; ``cloudvolume`` sources have no keys of their own.
        level: index into ``spec.levels``.
        box: an object of the level, as :func:`object_boxes` gives it.
        separator: between the chunk numbers of zarr v2; isochunk writes ``/``.

    Raises:
        UsageError: the format has no keys known here.
    """
    scale = spec.levels[level]
    index = object_index(scale, box.lo)
    match spec.format:
        case "precomputed" if scale.shard is None:
            ranges = zip(reversed(box.lo), reversed(box.hi), strict=True)
            name = "_".join(f"{lo}-{hi}" for lo, hi in ranges)
        case "precomputed":
            name = _shard_name(scale, box.lo)
        case "zarr2":
            name = separator.join(map(str, index))
        case "zarr3":
            name = "/".join(("c", *map(str, index)))
        case "n5":
            name = "/".join(map(str, reversed(index)))
        case _:
            raise UsageError(f"objects of {spec.format} volumes have no keys; {spec.url}")
    return f"{scale.key}/{name}" if scale.key else name


def _shard_name(level: LevelSpec, voxel: Triple) -> str:
    sharding = precomputed_sharding(level)
    cells = zip(voxel, level.box.lo, level.chunk, strict=True)
    chunk = triple((v - o) // n for v, o, n in cells)
    number = morton_code(chunk, grid_shape(level.box.shape, level.chunk)) >> sharding.bits
    return f"{number:0{-(-sharding.shard_bits // 4)}x}.shard"


def object_keys(spec: VolumeSpec, level: int, box: Box) -> Iterator[str]:
    """Return the keys of the stored objects that overlap ``box``, in order of their boxes."""
    return (object_key(spec, level, cell) for cell in object_boxes(spec.levels[level], box))
