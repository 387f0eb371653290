"""Voxels of boxes, and the arithmetic on them that every format and model shares. Pure."""

from __future__ import annotations

import zlib
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from isochunk.core.geometry import Triple, ceil_div, triple

Voxels: TypeAlias = NDArray[Any]
"""A z, y, x array of uint8 or uint16; or of float32, where sections were mended: grey levels as
stored ones are, not rounded."""

POOLED_VOXELS = 1 << 20
"""Voxels pooled at a time: wide sums of so many stay in cache, and memory does not grow."""


def quantise(values: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> Voxels:
    """Round to nearest and clip to the range of an integer dtype."""
    limits = np.iinfo(dtype)
    clipped: Voxels = np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    return clipped


def stored_dtype(voxels: Voxels, dtype: str) -> np.dtype[Any]:
    """Return the integer dtype in which what is made of voxels is stored.

    Args:
        voxels: stored ones, which tell by themselves, or mended ones.
        dtype: of the volume.
    """
    return voxels.dtype if voxels.dtype.kind == "u" else np.dtype(dtype)


def checksum(voxels: Voxels) -> int:
    """CRC-32 of voxels in z, y, x order, little-endian."""
    little = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False)
    return zlib.crc32(np.ascontiguousarray(little).data)


def convert(voxels: Voxels, dtype: str) -> Voxels:
    """Map the full range of one unsigned dtype to another's, rounding to nearest."""
    if voxels.dtype == dtype:
        return voxels
    if dtype == "uint8":
        return ((voxels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return voxels.astype(np.uint16) * np.uint16(257)


def pool(voxels: Voxels, by: Triple) -> Voxels:
    """Average windows of ``by`` voxels, rounding half up; windows cut by the end average the rest.

    Args:
        voxels: (z, y, x), starting on the windows' grid.
        by: window extents, 1 or 2.

    Returns:
        Array of ``ceil(n / by)`` voxels of the same dtype.
    """
    shape = triple(ceil_div(n, p) for n, p in zip(voxels.shape, by, strict=True))
    pooled: Voxels = np.empty(shape, voxels.dtype)
    rows = max(1, POOLED_VOXELS // max(1, by[0] * voxels.shape[1] * voxels.shape[2]))
    for first in range(0, shape[0], rows):
        last = first + rows
        pooled[first:last] = _pool_slab(voxels[first * by[0] : last * by[0]], by)
    return pooled


def _pool_slab(voxels: Voxels, by: Triple) -> Voxels:
    """Pool whole windows along z."""
    # Repeating the last plane of an odd axis weighs the voxels that exist equally.
    odd = [(0, n % p) for n, p in zip(voxels.shape, by, strict=True)]
    even = np.pad(voxels, odd, mode="edge") if any(extra for _, extra in odd) else voxels
    wide = np.uint32 if voxels.dtype == np.uint16 else np.uint16
    total: NDArray[Any] = even.astype(wide)
    for axis, p in enumerate(by):
        if p > 1:
            first = [slice(None)] * 3
            second = [slice(None)] * 3
            first[axis], second[axis] = slice(0, None, p), slice(1, None, p)
            total = total[tuple(first)] + total[tuple(second)]
    count = by[0] * by[1] * by[2]
    return ((total + count // 2) // count).astype(voxels.dtype)
