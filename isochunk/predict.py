"""The Predictor protocol, and the interpolations that need no training."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from isochunk.geometry import Box
from isochunk.spec import ModelSpec

Voxels: TypeAlias = NDArray[Any]
"""A z, y, x array of uint8 or uint16."""


class Predictor(Protocol):
    """A model ready to run: a spec and a function from array to array."""

    @property
    def spec(self) -> ModelSpec:
        """The model's spec with its factor resolved."""
        ...

    def __call__(self, source: Voxels, read: Box, write: Box) -> Voxels:
        """Predict the target box ``write``.

        Args:
            source: voxels of ``read``, real neighbours or reflection included.
            read: global source box of ``source``; at least ``spec.read_box(write)``.
            write: global target box wanted.

        Returns:
            Array of ``write.shape`` and the dtype of ``source``, rounded to nearest and clipped.

        Raises:
            PredictionError: the model answered with NaN.
        """
        ...


def quantise(values: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> Voxels:
    """Round to nearest and clip to the range of an integer dtype."""
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
