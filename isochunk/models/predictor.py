"""A torch network as a Predictor: blocks are cut into tiles, and tiles equal the whole."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from isochunk.core.geometry import Box, Triple, ceil_div, triple
from isochunk.core.job import Precision
from isochunk.core.spec import Intensity, ModelSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import PredictionError, UsageError
from isochunk.models.tiling import Engine

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_NO_MEMORY = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory|_ALLOC_FAILED\b")
"""What errors say that are of a more general type."""


class TorchPredictor:
    """Predicts blocks tile by tile on one device; see :class:`isochunk.models.interface.Predictor`.

    Tiles lie on the absolute grid of the network's alignment. Those of one block have one shape,
    except at the far end where the block ends. Where memory runs out, the tile is halved for good
    and the block starts again: tiles of any size give the same answer.
    """

    def __init__(
        self,
        spec: ModelSpec,
        engine: Engine,
        device: torch.device,
        precision: Precision,
        intensity: Intensity,
        tile: Triple,
    ) -> None:
        """Move the network to its device.

        Args:
            spec: the model's spec with its factor resolved.
            engine: how the network is run on a tile.
            device: where.
            precision: number format of weights and layers.
            intensity: what stored values mean to the network.
            tile: target voxels computed at a time; rounded up to the alignment.
        """
        self.spec = spec
        self.engine = engine
        self.device = device
        self.precision = precision
        self.intensity = intensity
        self.tile = tile
        self.halvings = 0
        """How often the tile was halved because memory ran out."""
        engine.module.to(device)
        if precision != "fp32":
            engine.module.to(DTYPES[precision])
        self._black_stays: bool | None = None

    def __call__(self, source: Voxels, read: Box, write: Box) -> Voxels:
        """Predict the target box ``write`` from the source box ``read``.

        Raises:
            PredictionError: NaN, a wrong shape, or too little memory for the smallest tile.
        """
        if source.shape != read.shape or self.spec.read_box(write) not in read:
            raise UsageError(
                f"target box {write} needs source box {self.spec.read_box(write)} but got "
                f"{read} as an array of {source.shape}"
            )
        with torch.inference_mode(), _full_precision(self.device):
            while (result := self._by_tiles(source, read, write)) is None:
                self._halve(write)
        return result

    def tiles(self, write: Box) -> Iterator[Box]:
        """Cut a target box into tiles of nearly equal size that start on the alignment."""
        cell, step = self._cell(), self._step(write)
        start = triple(a // c * c for a, c in zip(write.lo, cell, strict=True))
        for z in range(start[0], write.hi[0], step[0]):
            for y in range(start[1], write.hi[1], step[1]):
                for x in range(start[2], write.hi[2], step[2]):
                    yield Box.from_shape(step, (z, y, x)) & write

    def _cell(self) -> Triple:
        """Return the target voxels of one cell of the alignment: the smallest tile."""
        factor = self.spec.resolved_factor
        return triple(int(g * f) for g, f in zip(self.spec.alignment, factor, strict=True))

    def _step(self, write: Box) -> Triple:
        """Return the shape of the tiles of a target box."""
        cell = self._cell()
        largest = self.engine.largest or self.tile
        start = triple(a // c * c for a, c in zip(write.lo, cell, strict=True))
        step = []
        for axis in range(3):
            limit = min(self.tile[axis], largest[axis])
            limit = max(limit // cell[axis], 1)
            cells = ceil_div(write.hi[axis] - start[axis], cell[axis])
            count = ceil_div(cells, limit)
            step.append(ceil_div(cells, count) * cell[axis])
        return triple(step)

    def _by_tiles(self, source: Voxels, read: Box, write: Box) -> Voxels | None:
        """Predict tile by tile; None where memory ran out."""
        result = np.empty(write.shape, source.dtype)
        try:
            for want in self.tiles(write):
                part = source[self.engine.needs(want).slices(read.lo)]
                result[want.slices(write.lo)] = self._tile(part, want)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            return None  # leaving this frees the tensors that the traceback held
        return result

    def _halve(self, write: Box) -> None:
        """Halve the tile along its longest axis, and say so.

        Raises:
            PredictionError: it cannot be made smaller.
        """
        cell, step = self._cell(), self._step(write)
        if step == cell or self.engine.largest is not None:
            why = "it takes inputs of one shape only" if step != cell else "that is its smallest"
            raise PredictionError(
                f"model {self.spec.name!r} ran out of memory on {self.device} in a tile of {step} "
                f"target voxels (z, y, x), and {why}; give workers more memory, or on a GPU try "
                "--precision bf16 or --device cpu"
            )
        axis = max((a for a in range(3) if step[a] > cell[a]), key=lambda a: step[a])
        half = ceil_div(step[axis] // cell[axis], 2) * cell[axis]
        self.tile = triple(half if a == axis else n for a, n in enumerate(step))
        self.halvings += 1
        log.warning(
            "model %s ran out of memory on %s in a tile of %s target voxels; going on with %s",
            self.spec.name,
            self.device,
            step,
            self.tile,
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _tile(self, part: Voxels, want: Box) -> Voxels:
        if not part.any() and self._keeps_black(part.dtype):
            return np.zeros(want.shape, part.dtype)
        return self._predict(part, want)

    def _predict(self, part: Voxels, want: Box) -> Voxels:
        limits = np.iinfo(part.dtype)
        tile = torch.from_numpy(np.ascontiguousarray(part)).to(self.device).to(torch.float32)
        tile = ((tile - self.intensity.offset) / self.intensity.scale)[None, None]
        answer = self.engine(tile.to(DTYPES[self.precision]), want).float()
        # One NaN or infinity makes the sum one.
        if not bool(torch.isfinite(answer.sum(dtype=torch.float64))):
            raise PredictionError(
                f"model {self.spec.name!r} answered NaN or infinity in target box {want}; its "
                f"weights or --precision {self.precision} do not suit this volume's values"
            )
        values = answer * self.intensity.scale + self.intensity.offset
        values = values.round_().clamp_(limits.min, limits.max)
        stored = values.to(torch.uint8 if part.dtype == np.uint8 else torch.uint16)
        voxels: Voxels = stored.cpu().numpy()[0, 0]
        return voxels

    def _keeps_black(self, dtype: np.dtype[np.unsignedinteger]) -> bool:
        """Tell whether the network answers all 0 with 0; asked once, over one cell of its grid."""
        if self._black_stays is None:
            want = Box.from_shape(self._cell())
            black = np.zeros(self.engine.needs(want).shape, dtype)
            self._black_stays = not self._predict(black, want).any()
        return self._black_stays


def _out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that the device or the host has no memory left."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or _NO_MEMORY.search(str(error)) is not None


def _full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Keep a GPU from rounding float32 to TF32's 10 bits, and from summing in random order."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
