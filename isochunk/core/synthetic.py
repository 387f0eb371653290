"""A made-up volume that looks like electron microscopy of neuropil, for demos and tests.

Every voxel is a function of its global position and the seed alone, so any box of the one endless
volume can be made by itself, and two boxes agree to the bit where they overlap. It has what makes
super-resolution hard or easy: thin membranes at all angles, vesicles smaller than a section,
mitochondria with cristae, slow shading and noise. It is no substitute for real data in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from isochunk.core.geometry import Box, Spacing, Triple
from isochunk.errors import UsageError

Field: TypeAlias = NDArray[np.floating[Any]]
"""A z, y, x array."""

ISOTROPIC = Spacing.parse("8,8,8")
SLAB = 16
"""Sections made at a time, which bounds memory."""

CYTOPLASM, MEMBRANE, MATRIX, VESICLE = 168.0, -95.0, -48.0, -70.0
"""Grey level between the structures, and what structures add to it."""
NEURITE_NM = (310.0, 430.0)
"""Mean distance of the bends of the two sheets of membranes."""
MEMBRANE_NM = 9.0
"""Half the thickness of a membrane."""
VESICLE_CELL_NM, VESICLE_NM = 70.0, 24.0
"""Distance and radius of vesicles."""
MITOCHONDRION_CELL_NM, MITOCHONDRION_NM = 1100.0, (170.0, 360.0)
"""Distance of mitochondria, and their radii across and along."""
CRISTA_NM = 62.0
"""Distance of cristae."""
NOISE = 7.0
"""Standard deviation of the noise of a voxel."""


def synthetic_em(
    shape: Triple, seed: int = 0, spacing: Spacing = ISOTROPIC, origin: Triple = (0, 0, 0)
) -> NDArray[np.uint8]:
    """Make a box of the endless synthetic volume, sampled at voxel centres.

    Args:
        shape: z, y, x voxels.
        seed: which of the endless volumes.
        spacing: voxel size in nm; structures keep their size in nm.
        origin: global voxel at which the box starts.

    Returns:
        uint8 of ``shape``; never 0, which is the value of missing chunks.

    Raises:
        UsageError: an axis is empty.
    """
    box = Box.from_shape(shape, origin)
    if box.size == 0:
        raise UsageError(f"shape {shape} holds no voxels; every axis needs at least one")
    sizes = np.array([float(s) for s in spacing])
    out = np.empty(shape, np.uint8)
    for z in range(box.lo[0], box.hi[0], SLAB):
        slab = box & Box((z, *box.lo[1:]), (z + SLAB, *box.hi[1:]))
        out[slab.slices(box.lo)] = np.clip(np.rint(_grey(slab, sizes, seed)), 1, 255)
    return out


def synthetic_pair(
    shape: Triple, factor: int, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make an isotropic volume and the anisotropic one that a thick section would record.

    Args:
        shape: z, y, x voxels of the anisotropic volume.
        factor: isotropic voxels per section.
        seed: which of the endless volumes.

    Returns:
        The anisotropic volume (z, y, x), each section the rounded mean of ``factor`` isotropic
        ones, and the isotropic volume (factor * z, y, x).

    Raises:
        UsageError: the factor is less than 1, or an axis is empty.
    """
    if factor < 1:
        raise UsageError(f"factor {factor} makes no sections; choose a whole number from 1")
    z, y, x = shape
    truth = synthetic_em((z * factor, y, x), seed)
    means = truth.reshape(z, factor, y, x).mean(axis=1, dtype=np.float32)
    return np.rint(means).astype(np.uint8), truth


def _grey(box: Box, sizes: NDArray[np.float64], seed: int) -> Field:
    """Put the structures together."""
    axes = [
        (np.arange(a, b) + 0.5) * size for a, b, size in zip(box.lo, box.hi, sizes, strict=True)
    ]
    membrane = np.maximum(*(_sheet(axes, bend, seed * 8 + i) for i, bend in enumerate(NEURITE_NM)))
    grey = CYTOPLASM + 14 * _smooth(axes, 900.0, seed * 8 + 2) + MEMBRANE * membrane
    grey += 9 * _smooth(axes, 34.0, seed * 8 + 3)
    crowd = _smooth(axes, 650.0, seed * 8 + 4) > 0.35  # noqa: PLR2004
    grey += VESICLE * _vesicles(axes, seed * 8 + 5) * crowd * (1 - membrane)
    _add_mitochondria(grey, box, sizes, seed * 8 + 6)
    return grey + NOISE * _noise(box, seed * 8 + 7)


def _sheet(axes: list[NDArray[np.float64]], bend_nm: float, seed: int) -> Field:
    """Return 1 on a membrane, 0 off it: where a smooth field is 0, at an even thickness."""
    field, *slopes = (_smooth(axes, bend_nm, seed, along) for along in (None, 0, 1, 2))
    steepness = np.sqrt(slopes[0] ** 2 + slopes[1] ** 2 + slopes[2] ** 2) / np.float32(bend_nm)
    # Distance to the sheet to first order; where the field is flat there is no sheet.
    distance = np.abs(field) / np.maximum(steepness, np.float32(0.15 / bend_nm))
    return _ramp((np.float32(2 * MEMBRANE_NM) - distance) / np.float32(MEMBRANE_NM))


def _ramp(x: Field) -> Field:
    """Rise smoothly from 0 at 0 to 1 at 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _smooth(
    axes: list[NDArray[np.float64]], period_nm: float, seed: int, along: int | None = None
) -> Field:
    """Return a random field of mean 0 and deviation near 1, or its slope per period along an axis.

    Values on a lattice of ``period_nm``, joined by cubic B-splines. Taps are added one by one, so
    that a voxel's value does not depend on the box it is made with.
    """
    starts = [int(np.floor(a[0] / period_nm)) - 1 for a in axes]
    counts = [int(np.floor(a[-1] / period_nm)) + 3 - s for a, s in zip(axes, starts, strict=True)]
    field = _gaussian(_hash(*np.ogrid[tuple(map(slice, starts, np.add(starts, counts)))], seed))
    for axis, (positions, start) in enumerate(zip(axes, starts, strict=True)):
        cell = np.floor(positions / period_nm)
        taps = _slopes if axis == along else _weights
        weights = taps((positions / period_nm - cell).astype(np.float32))
        first = cell.astype(np.intp) - 1 - start
        shape = [-1 if i == axis else 1 for i in range(len(axes))]
        field = sum(
            np.take(field, first + tap, axis) * weight.reshape(shape)
            for tap, weight in enumerate(weights)
        )  # type: ignore[assignment]
    return field * np.float32(2.1)  # splines smooth: brings the deviation back to about 1


def _weights(t: Field) -> list[Field]:
    """Return the uniform cubic B-spline's four weights at 0 <= t < 1."""
    s = 1 - t
    inner = [(u * u * (3 * u - 6) + 4) / 6 for u in (t, s)]
    return [s * s * s / 6, *inner, t * t * t / 6]


def _slopes(t: Field) -> list[Field]:
    """Return the derivatives of the weights."""
    s = 1 - t
    return [-s * s / 2, t * (3 * t - 4) / 2, s * (4 - 3 * s) / 2, t * t / 2]


def _vesicles(axes: list[NDArray[np.float64]], seed: int) -> Field:
    """Return the darkness, 0 to 1, of round vesicles with a pale lumen.

    There is at most one in a lattice cell, wholly inside, so a voxel looks at its own cell only.
    """
    cells = [np.floor(axis / VESICLE_CELL_NM).astype(int) for axis in axes]
    starts = [int(cell[0]) for cell in cells]
    lattice = np.ogrid[tuple(slice(cell[0], cell[-1] + 1) for cell in cells)]
    voxel = np.ix_(*(cell - start for cell, start in zip(cells, starts, strict=True)))
    play = np.float32(VESICLE_CELL_NM / 2 - VESICLE_NM)
    squares = np.zeros((), np.float32)
    for number, (axis, cell) in enumerate(zip(axes, cells, strict=True)):
        draw = _uniform(_hash(*lattice, number, seed))
        shape = [-1 if i == number else 1 for i in range(len(axes))]
        within = (axis - (cell + 0.5) * VESICLE_CELL_NM).astype(np.float32).reshape(shape)
        squares = squares + (within - (play * (2 * draw - 1))[voxel]) ** 2
    wall = np.abs(np.sqrt(squares) - np.float32(0.6 * VESICLE_NM))
    return _ramp(np.float32(1.5) - wall / np.float32(6))


def _add_mitochondria(grey: Field, box: Box, sizes: NDArray[np.float64], seed: int) -> None:
    """Draw ellipsoids with a dark wall, a grey matrix and cristae over what is there."""
    across, along = MITOCHONDRION_NM
    for centre, direction in _scattered(box, sizes, seed):
        near = _around(box, sizes, centre, along)
        z, y, x = _offsets(near, sizes, centre)
        axial = z * direction[0] + y * direction[1] + x * direction[2]
        radial = z * z + y * y + x * x - axial * axial
        depth = 1 - np.sqrt(np.maximum(radial, 0) / across**2 + (axial / along) ** 2)
        inside = _ramp(depth * np.float32(across / 8))
        wall = _ramp(1.5 - np.abs(depth * across - np.float32(10)) / np.float32(8))
        wave = np.abs((axial / np.float32(CRISTA_NM)) % 1 - np.float32(0.5))
        crista = _ramp(np.float32(1.3) - wave * np.float32(9)) * _ramp(depth * across / 30 - 1)
        body = CYTOPLASM + MATRIX + MEMBRANE * np.maximum(0.7 * wall, 0.5 * crista)
        part = grey[near.slices(box.lo)]
        part += (body - part) * inside


def _scattered(
    box: Box, sizes: NDArray[np.float64], seed: int
) -> Iterator[tuple[NDArray[np.float64], Field]]:
    """Yield centre (nm) and direction of the mitochondria that can touch the box.

    One per lattice cell, wholly inside, so that none overlap.
    """
    cell, reach = MITOCHONDRION_CELL_NM, MITOCHONDRION_NM[1]
    lo = np.floor(np.array(box.lo) * sizes / cell).astype(int)
    hi = np.ceil(np.array(box.hi) * sizes / cell).astype(int)
    for index in product(*(range(a, b) for a, b in zip(lo, hi, strict=True))):
        draws = 2 * _uniform(_hash(*index, np.arange(6), seed)) - 1
        centre = (np.array(index) + 0.5) * cell + draws[:3] * (cell / 2 - reach)
        yield centre, draws[3:] / np.sqrt(np.sum(draws[3:] ** 2))


def _around(box: Box, sizes: NDArray[np.float64], centre: NDArray[np.float64], nm: float) -> Box:
    """Return the voxels of the box that lie within a distance of a point, as a cuboid."""
    z0, y0, x0 = (int(v) for v in np.floor((centre - nm) / sizes))
    z1, y1, x1 = (int(v) for v in np.ceil((centre + nm) / sizes))
    clipped = box & Box((z0, y0, x0), (z1, y1, x1))
    return clipped if clipped.size else Box(box.lo, box.lo)


def _offsets(box: Box, sizes: NDArray[np.float64], centre: NDArray[np.float64]) -> list[Field]:
    """Return z, y, x distances in nm from a point to voxel centres, each along its own axis."""
    return [
        ((axis + 0.5) * size - c).astype(np.float32)
        for axis, size, c in zip(np.ogrid[box.slices((0, 0, 0))], sizes, centre, strict=True)
    ]


def _noise(box: Box, seed: int) -> Field:
    return _gaussian(_hash(*np.ogrid[box.slices((0, 0, 0))], seed))


def _hash(*keys: NDArray[np.int64] | int) -> NDArray[np.uint32]:
    """Mix integers, of either sign and any broadcastable shapes, into 32 even bits."""
    mixed = np.zeros(1, np.uint32)
    for key in keys:
        word = np.atleast_1d(np.asarray(key, np.int64)).astype(np.uint32) * np.uint32(0x9E3779B1)
        mixed = (mixed ^ word) * np.uint32(0x85EBCA6B)
        mixed = mixed ^ (mixed >> np.uint32(15))
    mixed = mixed * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))


def _uniform(bits: NDArray[np.uint32]) -> Field:
    """Return numbers in [0, 1)."""
    return (bits >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _gaussian(bits: NDArray[np.uint32]) -> Field:
    """Return numbers of mean 0 and deviation 1, near normal: the sum of four even bytes."""
    total = sum((bits >> np.uint32(8 * i)) & np.uint32(255) for i in range(4))
    return (np.asarray(total, np.float32) - np.float32(510)) / np.float32(147.8)
