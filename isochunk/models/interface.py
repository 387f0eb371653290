"""What the rest of isochunk asks of a model: a target box from source voxels.

A block passes through a model in three steps, so that what the host does for some blocks overlaps
with computing others: it is *staged* (any thread; its voxels set out for the device), *launched*
(one thread, block after block; a GPU is only told what to do) and *fetched* (any thread, which
waits).
"""

from __future__ import annotations

from typing import Protocol

from isochunk.core.geometry import Box
from isochunk.core.spec import ModelSpec
from isochunk.core.voxels import Voxels


class Launched(Protocol):
    """A block that is being computed, or is computed."""

    def fetch(self) -> Voxels:
        """Wait for the target box.

        Returns:
            Array of the target box's shape and the volume's dtype, rounded to nearest and clipped.

        Raises:
            PredictionError: the model answered with NaN.
            DeviceError: the device is lost to this process.
        """
        ...

    def compute_s(self) -> float:
        """Return the seconds of computing; asked after it is fetched."""
        ...


class Staged(Protocol):
    """A block whose voxels are on their way."""

    def launch(self) -> Launched:
        """Compute, or tell a device to.

        Raises:
            PredictionError: a wrong shape, or too little memory for the smallest tile.
            DeviceError: the device is lost to this process.
        """
        ...


class Predictor(Protocol):
    """A model ready to run: a spec, and a function from array to array in three steps."""

    @property
    def spec(self) -> ModelSpec:
        """The model's spec with its factor resolved."""
        ...

    @property
    def halvings(self) -> int:
        """How often a tile was halved because memory ran out."""
        ...

    def stage(self, source: Voxels, read: Box, write: Box) -> Staged:
        """Send a block's voxels to where they are computed with.

        Args:
            source: voxels of ``read``, real neighbours or reflection included, as stored or
                float32; left alone until the block is fetched.
            read: global source box of ``source``; at least ``spec.read_box(write)``.
            write: global target box wanted.

        Raises:
            UsageError: ``read`` does not hold what ``write`` needs.
        """
        ...


def predict(predictor: Predictor, source: Voxels, read: Box, write: Box) -> Voxels:
    """Predict a target box in one go; arguments as :meth:`Predictor.stage`."""
    return predictor.stage(source, read, write).launch().fetch()
