"""What the rest of isochunk asks of a model: a target box from source voxels."""

from __future__ import annotations

from typing import Protocol

from isochunk.core.geometry import Box
from isochunk.core.spec import ModelSpec
from isochunk.core.voxels import Voxels


class Predictor(Protocol):
    """A model ready to run: a spec and a function from array to array."""

    @property
    def spec(self) -> ModelSpec:
        """The model's spec with its factor resolved."""
        ...

    @property
    def halvings(self) -> int:
        """How often a tile was halved because memory ran out."""
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
