"""A window of stored values, and the grey levels it makes of them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isochunk.core.codec import JsonObject
from isochunk.core.voxels import Voxels
from isochunk.errors import UsageError

WINDOWED = ("int8", "uint8", "int16", "uint16", "int32", "float32", "float64")
"""Voxel types that hold grey levels, and of which float64 has every value."""


MAPPED_VOXELS = 1 << 18
"""Voxels mapped at a time: in double precision they stay in cache."""

GREY = "uint8"
"""Grey levels where nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class Window:
    """The stored values that become black and white; those between are linear, unrounded."""

    low: float
    """Stored value, and all below it, that become 0."""
    high: float
    """Stored value, and all above it, that become the largest grey level."""

    def __post_init__(self) -> None:
        """Check that it has a width.

        Raises:
            UsageError: it has none, or is not finite.
        """
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(
                f"window {self.low:g},{self.high:g} must be two numbers, the lower first"
            )

    def grey(self, stored: Voxels, dtype: str) -> NDArray[np.float32]:
        """Map stored values to grey levels.

        Args:
            stored: (z, y, x) of a type of :data:`WINDOWED`.
            dtype: unsigned integers whose largest is white.

        Returns:
            float32 of the same shape, from 0 to the largest of ``dtype``; NaN stays NaN.
        """
        white = float(np.iinfo(dtype).max)
        result = np.empty(stored.shape, np.float32)
        planes = max(1, MAPPED_VOXELS // max(1, math.prod(stored.shape[1:])))
        for first in range(0, len(stored), planes):
            slab = slice(first, first + planes)
            # Networks answer to the last bits of float32, so that alone is rounded to, and once.
            values = stored[slab].astype(np.float64)
            values -= self.low
            values *= white / (self.high - self.low)
            result[slab] = np.clip(values, 0, white, out=values)
        return result

    @property
    def ends(self) -> tuple[float, float]:
        """Stored values that become black and white."""
        return self.low, self.high

    def summary(self) -> JsonObject:
        """Return it as JSON."""
        return {"low": self.low, "high": self.high}


def not_numbers(stored: Voxels) -> NDArray[np.bool_] | None:
    """Return where values are NaN or infinite; None where none is, as in integers."""
    if stored.dtype.kind != "f":
        return None
    finite: NDArray[Any] = np.isfinite(stored)
    return None if finite.all() else ~finite
