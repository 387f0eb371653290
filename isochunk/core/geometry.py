"""Boxes, spacings and rational factors: where every voxel lies, exactly.

Axes are z, y, x. Voxel ``i`` of an axis covers ``[i*s, (i+1)*s)`` nanometres of its grid.
A target grid with factor ``r`` starts at the same corner, so target voxel ``j`` has its
centre at source coordinate ``(j + 1/2)/r - 1/2``. Both grids are global: no function here
knows about tiles. Factors are fractions, never floats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, product
from typing import SupportsInt, TypeAlias

import numpy as np
from numpy.typing import NDArray

from isochunk.errors import GeometryError

Triple: TypeAlias = tuple[int, int, int]
Factor: TypeAlias = tuple[Fraction, Fraction, Fraction]

AXES = ("z", "y", "x")


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A half-open box of voxels ``[lo, hi)`` on a global z, y, x grid."""

    lo: Triple
    """First voxel of each axis."""
    hi: Triple
    """One past the last voxel of each axis."""

    @classmethod
    def from_shape(cls, shape: Triple, origin: Triple = (0, 0, 0)) -> Box:
        """Return the box of ``shape`` voxels whose first voxel is ``origin``."""
        return cls(origin, triple(o + n for o, n in zip(origin, shape, strict=True)))

    @classmethod
    def parse(cls, text: str) -> Box:
        """Read ``z0:z1,y0:y1,x0:x1``.

        Raises:
            GeometryError: the text is not three ``start:stop`` pairs of integers.
        """
        try:
            pairs = [tuple(int(v) for v in part.split(":")) for part in text.split(",")]
            (z0, z1), (y0, y1), (x0, x1) = pairs
        except ValueError:
            raise GeometryError(
                f"box {text!r} cannot be read; write z0:z1,y0:y1,x0:x1 in source voxels"
            ) from None
        return cls((z0, y0, x0), (z1, y1, x1))

    @property
    def shape(self) -> Triple:
        """Extent of each axis; zero where the box is empty or inverted."""
        return triple(max(0, b - a) for a, b in zip(self.lo, self.hi, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    def __and__(self, other: Box) -> Box:
        """Return the intersection; test ``size`` for emptiness."""
        return Box(
            triple(map(max, self.lo, other.lo)),
            triple(map(min, self.hi, other.hi)),
        )

    def slabs(self, count: int, cell: int = 1) -> list[Box]:
        """Cut along z into at most ``count`` boxes that meet at multiples of ``cell``."""
        (start, *lo), (end, *hi) = self.lo, self.hi
        thick = ceil_div(ceil_div(end - start, count), cell) * cell
        cuts = [start, *range(start // cell * cell + thick, end, thick), end]
        return [Box(triple((a, *lo)), triple((b, *hi))) for a, b in pairwise(cuts)]

    def __contains__(self, other: Box) -> bool:
        """Tell whether ``other`` lies wholly inside."""
        return all(a <= b for a, b in zip(self.lo, other.lo, strict=True)) and all(
            a >= b for a, b in zip(self.hi, other.hi, strict=True)
        )

    def shift(self, by: Triple) -> Box:
        """Move by whole voxels."""
        return Box(add(self.lo, by), add(self.hi, by))

    def grow(self, margin: Triple) -> Box:
        """Extend by ``margin`` voxels on both sides of each axis."""
        return Box(sub(self.lo, margin), add(self.hi, margin))

    def slices(self, origin: Triple) -> tuple[slice, slice, slice]:
        """Return the index of this box in an array whose first voxel is ``origin``."""
        z, y, x = (slice(a - o, b - o) for a, b, o in zip(self.lo, self.hi, origin, strict=True))
        return z, y, x

    def __str__(self) -> str:
        """Write ``z0:z1,y0:y1,x0:x1``, as :meth:`parse` reads it."""
        return ",".join(f"{a}:{b}" for a, b in zip(self.lo, self.hi, strict=True))


@dataclass(frozen=True, slots=True)
class Spacing:
    """Voxel size in nanometres, exact."""

    z: Fraction
    """Section thickness."""
    y: Fraction
    """Lateral voxel size along y."""
    x: Fraction
    """Lateral voxel size along x."""

    @classmethod
    def parse(cls, text: str) -> Spacing:
        """Read ``Z,Y,X`` in nanometres as decimal text.

        Raises:
            GeometryError: not three positive decimal numbers.
        """
        parts = text.split(",")
        if len(parts) != len(AXES):
            raise GeometryError(f"spacing {text!r} has {len(parts)} numbers; write Z,Y,X in nm")
        return cls(*(exact_nm(part) for part in parts))

    def __iter__(self) -> Iterator[Fraction]:
        """Iterate z, y, x."""
        return iter((self.z, self.y, self.x))

    def __str__(self) -> str:
        """Write the sizes as z,y,x."""
        return ",".join(format_nm(s) for s in self)


def triple(values: Iterable[SupportsInt]) -> Triple:
    """Return three whole numbers as a tuple of integers."""
    z, y, x = values
    return (int(z), int(y), int(x))


def add(a: Triple, b: Triple) -> Triple:
    """Add per axis."""
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def sub(a: Triple, b: Triple) -> Triple:
    """Subtract per axis."""
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def exact_nm(value: str | float) -> Fraction:
    """Make an exact length from decimal text, or from the shortest decimal of a JSON number.

    Raises:
        GeometryError: not a positive finite number.
    """
    try:
        length = Fraction(value if isinstance(value, str) else repr(value))
    except ValueError:
        raise GeometryError(f"{value!r} is not a length; write nanometres as 46 or 4.6") from None
    if length <= 0:
        raise GeometryError(f"voxel size {value!r} nm must be greater than zero")
    return length


def format_nm(length: Fraction) -> str:
    """Write a length as the shortest decimal, or as a fraction where no decimal is exact."""
    text = f"{float(length):.12g}"
    return text if Fraction(text) == length else f"{length.numerator}/{length.denominator}"


def factor_between(source: Spacing, target: Spacing) -> Factor:
    """Return target voxels per source voxel and axis; 46 to 4.6 nm gives exactly 10."""
    return (source.z / target.z, source.y / target.y, source.x / target.x)


def ceil_div(value: int, by: int) -> int:
    """Divide, rounding up."""
    return -(-value // by)


def target_box(source: Box, factor: Factor, volume: Box | None = None) -> Box:
    """Return the target voxels of a source box: same first corner, ``floor(n * r)`` voxels.

    Args:
        source: source voxels.
        factor: target voxels per source voxel.
        volume: all source voxels there are; None for no end.

    Raises:
        GeometryError: the corner is no whole target voxel, or no voxel is left.
            The message names a box that works.
    """
    lo, hi, usable = [], [], []
    for axis, (a, b, r) in enumerate(zip(source.lo, source.hi, factor, strict=True)):
        lo.append(a * r)
        hi.append(math.floor(a * r) + math.floor((b - a) * r))
        below = a // r.denominator * r.denominator
        outside = volume is not None and below < volume.lo[axis]
        usable.append(below + r.denominator if outside else below)
    if any(start.denominator != 1 for start in lo):
        offsets = ", ".join(f"{axis} {start}" for axis, start in zip(AXES, lo, strict=True))
        inside = Box(triple(usable), source.hi)
        raise GeometryError(
            f"source box {source} starts at target voxel {offsets} with factor "
            f"{format_factor(factor)}; the target's offset must be whole; "
            + (f"--box {inside} works" if inside.size else "choose another --spacing")
        )
    box = Box(triple(lo), triple(hi))
    if box.size == 0:
        raise GeometryError(
            f"source box {source} holds no target voxel with factor {format_factor(factor)}; "
            "choose a larger --box"
        )
    return box


def source_box(target: Box, factor: Factor) -> Box:
    """Return the source voxels that a target box overlaps, without any halo."""
    return Box(
        triple(math.floor(a / r) for a, r in zip(target.lo, factor, strict=True)),
        triple(math.ceil(b / r) for b, r in zip(target.hi, factor, strict=True)),
    )


def format_factor(factor: Factor) -> str:
    """Write a factor as ``z x y x x``, for messages."""
    return " x ".join(str(r) for r in factor)


def reflected(lo: int, hi: int, start: int, stop: int) -> NDArray[np.intp]:
    """Map coordinates ``lo..hi`` into ``start..stop``, continued by half-sample reflection.

    The continuation is numpy's ``symmetric``: ``d c b a | a b c d | d c b a``, of any length.

    Args:
        lo: first coordinate wanted; may lie outside.
        hi: one past the last coordinate wanted.
        start: first coordinate that exists.
        stop: one past the last coordinate that exists.

    Returns:
        ``hi - lo`` coordinates inside ``[start, stop)``.
    """
    n = stop - start
    folded = (np.arange(lo, hi) - start) % (2 * n)
    return np.where(folded < n, folded, 2 * n - 1 - folded) + start


def grid_shape(shape: Triple, cell: Triple) -> Triple:
    """Return how many cells of shape ``cell`` cover ``shape``."""
    return triple(map(ceil_div, shape, cell))


def cells(box: Box, cell: Triple) -> Iterator[Box]:
    """Cut ``box`` into cells counted from its own first voxel, x fastest; the last are clipped."""
    for index in product(*(range(n) for n in grid_shape(box.shape, cell))):
        lo = triple(a + i * c for a, i, c in zip(box.lo, index, cell, strict=True))
        yield Box.from_shape(cell, lo) & box


def spread(count: int) -> Iterator[int]:
    """Yield the numbers below a count, far from one another, by a stride that is prime to it."""
    stride = next(s for s in (7919, 104729, 1299709) if count % s)
    return (i * stride % count for i in range(count))
