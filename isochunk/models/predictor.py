"""A torch network as a Predictor: blocks are cut into tiles, and tiles equal the whole."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isochunk.core.geometry import Box, Triple, ceil_div, triple
from isochunk.core.job import Precision
from isochunk.core.spec import Intensity, ModelSpec
from isochunk.core.voxels import Voxels, stored_dtype
from isochunk.errors import DeviceError, PredictionError, UsageError
from isochunk.models.network import in_format
from isochunk.models.tiling import Engine
from isochunk.models.transfers import STORED, Download, Upload, transfers_of

log = logging.getLogger(__name__)

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Number formats of weights and layers; ``tf32`` is how a GPU multiplies float32."""

_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory|_ALLOC_FAILED\b"
    r"|CUDA error: out of memory"
    r"|unable to find an engine to execute this computation"  # cuDNN, for want of its workspace
)
"""What errors say that are of a more general type."""


class TorchPredictor:
    """Predicts blocks tile by tile on one device; see :class:`isochunk.models.interface.Predictor`.

    Tiles lie on the absolute grid of the network's alignment. Those of one block have one shape,
    except at the far end where the block ends. Where memory runs out, the tile is halved for good
    and the block starts again: tiles of any size give the same answer.
    """

    def __init__(  # noqa: PLR0913 - all that is known of a model in one process
        self,
        spec: ModelSpec,
        engine: Engine,
        device: torch.device,
        precision: Precision,
        intensity: Intensity,
        tile: Triple,
        *,
        dtype: str = "uint8",
    ) -> None:
        """Move the network to its device.

        Args:
            spec: the model's spec with its factor resolved.
            engine: how the network is run on a tile.
            device: where.
            precision: number format of weights and layers.
            intensity: what stored values mean to the network.
            tile: target voxels computed at a time; rounded up to the alignment.
            dtype: numpy name of the type in which answers to float32 are stored.
        """
        self.spec = spec
        self.engine = engine
        self.device = device
        self.precision = precision
        self.intensity = intensity
        self.tile = tile
        self.dtype = dtype
        self.halvings = 0
        """How often the tile was halved because memory ran out."""
        self.transfers = transfers_of(device)
        set_arithmetic(device, precision)
        in_format(engine.module, DTYPES[precision]).to(device)
        self._black_stays: bool | None = None

    def stage(self, source: Voxels, read: Box, write: Box) -> StagedBlock:
        """Send a block's voxels to the device; see :class:`isochunk.models.interface.Predictor`.

        Where the device has no memory left, that is tried again when the block is launched.
        """
        if source.shape != read.shape or self.spec.read_box(write) not in read:
            raise UsageError(
                f"target box {write} needs source box {self.spec.read_box(write)} but got "
                f"{read} as an array of {source.shape}"
            )
        try:
            upload = self.transfers.upload(source)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                check_device(error, self.device)
                raise
            upload = None
        return StagedBlock(self, source, read, write, upload)

    def launch(self, block: StagedBlock) -> LaunchedBlock:
        """Compute a block, or tell the device to.

        Raises:
            PredictionError: a wrong shape, or too little memory for the smallest tile.
            DeviceError: the device is lost to this process.
        """
        while True:
            try:
                with torch.inference_mode():
                    return self._by_tiles(block)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    check_device(error, self.device)
                    raise
                said = str(error).partition("\n")[0]
            # Leaving the clause freed the tensors that the traceback held.
            self._halve(block.write, said)

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

    def _by_tiles(self, block: StagedBlock) -> LaunchedBlock:
        """Compute tile by tile."""
        source, begun = self.transfers.begin(block.upload or self.transfers.upload(block.source))
        dtype = stored_dtype(block.source, self.dtype)
        target = self.transfers.room(block.write.shape, dtype)
        checked, finite = [], []
        for want in self.tiles(block.write):
            part = self.engine.needs(want).slices(block.read.lo)
            into = want.slices(block.write.lo)
            if not block.source[part].any() and self._keeps_black(dtype):
                target[into].zero_()
                continue
            target[into], known = self._tile(source[part], want, dtype)
            checked.append(want)
            finite.append(known)
        return LaunchedBlock(self, self.transfers.download(target, finite, begun), checked)

    def _halve(self, write: Box, said: str) -> None:
        """Halve the tile along its longest axis, and say so.

        Args:
            write: target box that is cut into tiles.
            said: what the error said.

        Raises:
            PredictionError: it cannot be made smaller.
        """
        cell, step = self._cell(), self._step(write)
        if step == cell or self.engine.largest is not None:
            why = "it takes inputs of one shape only" if step != cell else "that is its smallest"
            raise PredictionError(
                f"model {self.spec.name!r} ran out of memory on {self.device} in a tile of {step} "
                f"target voxels (z, y, x), and {why}; give workers more memory, or on a GPU try "
                f"--precision bf16 or --device cpu ({said})"
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

    def _tile(
        self, source: Tensor, want: Box, dtype: np.dtype[np.unsignedinteger]
    ) -> tuple[Tensor, Tensor]:
        """Compute a tile.

        Args:
            source: voxels (z, y, x) that the engine needs for ``want``, as stored or float32.
            want: target box.
            dtype: as what voxels are stored.

        Returns:
            (z, y, x) to be stored, and whether all answers were finite.
        """
        limits = np.iinfo(dtype)
        tile = (source.to(torch.float32) - self.intensity.offset) / self.intensity.scale
        answer = self.engine(tile[None, None], want)[0, 0].float()
        # One NaN or infinity makes the sum one.
        finite = torch.isfinite(answer.sum(dtype=torch.float64))
        values = answer * self.intensity.scale + self.intensity.offset
        return values.round_().clamp_(limits.min, limits.max).to(STORED[dtype]), finite

    def _keeps_black(self, dtype: np.dtype[np.unsignedinteger]) -> bool:
        """Tell whether the network answers all 0 with 0; asked once, over one cell of its grid."""
        if self._black_stays is None:
            want = Box.from_shape(self._cell())
            black = torch.zeros(self.engine.needs(want).shape, device=self.device)
            answer, finite = self._tile(black, want, dtype)
            self._black_stays = bool(finite) and not answer.cpu().numpy().any()
        return self._black_stays


@dataclass(frozen=True, slots=True)
class StagedBlock:
    """A block whose voxels are on their way to the device."""

    predictor: TorchPredictor
    """What computes it."""
    source: Voxels
    """Source voxels of ``read``."""
    read: Box
    """Source box."""
    write: Box
    """Target box."""
    upload: Upload | None
    """The same voxels on their way; None where there was no memory for them."""

    def launch(self) -> LaunchedBlock:
        """Compute it, or tell the device to; see :meth:`TorchPredictor.launch`."""
        return self.predictor.launch(self)


@dataclass(frozen=True, slots=True)
class LaunchedBlock:
    """A block that is computed, or being computed."""

    predictor: TorchPredictor
    """What computes it."""
    download: Download
    """Its voxels on their way home."""
    checked: list[Box]
    """Tiles that may hold NaN."""

    def fetch(self) -> Voxels:
        """Wait for its voxels; see :class:`isochunk.models.interface.Launched`."""
        predictor = self.predictor
        try:
            voxels, finite = self.download.wait()
        except RuntimeError as error:
            check_device(error, predictor.device)
            raise
        for want, known in zip(self.checked, finite, strict=True):
            if not known:
                raise PredictionError(
                    f"model {predictor.spec.name!r} answered NaN or infinity in target box {want}; "
                    f"{ADVICE[predictor.precision]}"
                )
        return voxels

    def compute_s(self) -> float:
        """Return the seconds of computing."""
        return self.download.compute_s()


ADVICE: dict[Precision, str] = {
    "fp32": "its weights do not suit this volume's values",
    "tf32": "its weights do not suit this volume's values",
    "bf16": "its weights do not suit this volume's values; see whether --precision fp32 helps",
    "fp16": "fp16 ends at 65504, which its layers may exceed; choose --precision bf16 or fp32",
}
"""What to do about NaN, by precision."""


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that the device or the host has no memory left."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or _NO_MEMORY.search(str(error)) is not None


def check_device(error: Exception, device: torch.device) -> None:
    """Look whether an error means that the device is lost; other errors are the caller's.

    Raises:
        DeviceError: it is CUDA's: after most of them no call to it of this process succeeds.
    """
    if "CUDA error: " in str(error):
        first = str(error).partition("\n")[0]
        raise DeviceError(f"{device} is lost to process {os.getpid()}: {first}") from error


def set_arithmetic(device: torch.device, precision: Precision) -> None:
    """Say for this process how a GPU multiplies float32, and that it sums in one order.

    These are flags of the process. They are set when a predictor is made, and not around each
    call: threads that compute beside one another would undo each other's.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
