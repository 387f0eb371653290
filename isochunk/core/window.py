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

WINDOWED = ("int8", "uint8", "int16", "uint16", "float32")
"""Voxel types of which float32 holds every value, so that a window loses none."""


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
            stored: of any shape, of a type of :data:`WINDOWED`.
            dtype: unsigned integers whose largest is white.

        Returns:
            float32 of the same shape, from 0 to the largest of ``dtype``; NaN stays NaN.
        """
        white = float(np.iinfo(dtype).max)
        values = stored.astype(np.float32)
        values -= np.float32(self.low)
        values *= np.float32(white / (self.high - self.low))
        return np.clip(values, 0, np.float32(white), out=values)

    def summary(self) -> JsonObject:
        """Return it as JSON."""
        return {"low": self.low, "high": self.high}


def not_numbers(stored: Voxels) -> NDArray[np.bool_] | None:
    """Return where values are NaN or infinite; None where none is, as in integers."""
    if stored.dtype.kind != "f":
        return None
    finite: NDArray[Any] = np.isfinite(stored)
    return None if finite.all() else ~finite
