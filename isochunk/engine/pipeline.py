"""One block from storage to storage, and many of them overlapped in one process.

The functions in the middle are pure. :class:`Pipeline` is the only place where reading, computing
and writing run at the same time; its depth is the byte budget, since the plan knows what one block
in flight costs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np

from isochunk.core.geometry import Box, Triple, triple
from isochunk.core.voxels import Voxels, checksum, convert, pool
from isochunk.engine.mask import masked_blocks
from isochunk.engine.opened import OpenJob
from isochunk.engine.report import Seam
from isochunk.errors import DeviceError, StorageError, may_pass
from isochunk.host.allocator import computing_thread, give_back_memory
from isochunk.host.ceiling import MemoryCeiling
from isochunk.models.interface import Launched, Staged
from isochunk.planning.block import REPORT_DTYPE, Block, BlockReport, BlockTask, Reports
from isochunk.planning.layout import (
    block_bounds,
    coarser_box,
    finer_box,
    pooling_between,
)
from isochunk.planning.plan import Plan
from isochunk.storage.volume import WritableVolume, read_reflected

log = logging.getLogger(__name__)


def block_levels(plan: Plan, block: Block) -> list[tuple[int, Box]]:
    """Return every level a block writes with its box there, finest first."""
    stage, levels = plan.stages[block.stage], plan.target.levels
    boxes = [(stage.writes[0], block.write)]
    for number in stage.writes[1:]:
        last, box = boxes[-1]
        boxes.append((number, coarser_box(box, levels[last], levels[number])))
    return boxes


def pyramid(plan: Plan, block: Block, finest: Voxels) -> list[Voxels]:
    """Return a block's voxels at every level it writes, pooled from one another."""
    levels, arrays = plan.target.levels, [finest]
    for fine, coarse in pairwise(number for number, _ in block_levels(plan, block)):
        arrays.append(pool(arrays[-1], pooling_between(levels[fine], levels[coarse])))
    return arrays


def read_block(job: OpenJob, block: Block) -> Voxels | None:
    """Read what a block needs; None where the mask says it is background."""
    plan = job.plan
    reads = plan.stages[block.stage].reads
    if reads is not None:
        levels = plan.target.levels
        under = finer_box(block.write, levels[reads], levels[reads + 1])
        return job.target.read(under, level=reads)
    if job.mask is not None and masked_blocks(plan, job.mask, np.array([block.index]))[0]:
        return None
    return read_reflected(job.source, plan.read_box(block))


def block_arrays(plan: Plan, block: Block, finest: Voxels) -> list[Voxels]:
    """Return what a block stores at every level it writes, of what was predicted or read. Pure."""
    reads = plan.stages[block.stage].reads
    if reads is None:
        return pyramid(plan, block, convert(finest, plan.target.dtype))
    levels = plan.target.levels
    return pyramid(plan, block, pool(finest, pooling_between(levels[reads], levels[reads + 1])))


def write_block(plan: Plan, target: WritableVolume, block: Block, arrays: list[Voxels]) -> int:
    """Write a block at all its levels; return the checksum of the first, as it reads back."""
    started = [
        target.start_write(box, voxels, level)
        for (level, box), voxels in zip(block_levels(plan, block), arrays, strict=True)
    ]
    for finish in started:
        finish()
    if plan.target.lossy:
        return checksum(target.read(block.write, plan.stages[block.stage].writes[0]))
    return checksum(arrays[0])


class Pipeline:
    """Runs a plan's blocks in one process, several in flight, one computing.

    Use it as a context manager. Blocks may be submitted from any thread.
    """

    def __init__(self, job: OpenJob) -> None:
        """Take an open job; nothing starts until a block is submitted."""
        self.job = job
        # Networks keep one thread pool per calling thread, so all computing has one thread.
        self._compute = computing_thread("isochunk-compute")
        self._ceiling: MemoryCeiling | None = None
        if job.plan.model.bytes_per_voxel and not job.plan.on_gpu:
            self._ceiling = MemoryCeiling(job.plan.worker_memory_bytes())
        self._blocks = ThreadPoolExecutor(job.plan.depth, "isochunk-block")
        self._zeros: dict[Triple, int] = {}
        self.lost: DeviceError | None = None
        """How its GPU was lost to this process, if it was: nothing is computed here any more."""
        self.task_slots = threading.Semaphore(2)
        """Held by a task while it runs here; the second keeps the pipeline full between tasks."""

    def __enter__(self) -> Pipeline:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what has not started and wait for what has."""
        self.close()

    def close(self) -> None:
        """Drop what has not started and wait for what has."""
        self._blocks.shutdown(wait=True, cancel_futures=True)
        self._compute.shutdown(wait=True)
        if self._ceiling is not None:
            self._ceiling.stop()
        give_back_memory()

    def abandon(self) -> None:
        """Drop what has not started and let the rest end by itself: it may hang."""
        self._blocks.shutdown(wait=False, cancel_futures=True)
        self._compute.shutdown(wait=False)
        if self._ceiling is not None:
            self._ceiling.stop()

    def run(self, task: BlockTask) -> Reports:
        """Run the blocks of a task."""
        masked, blocks = self.settle_masked(task)
        futures = [self.submit(task.stage, index) for index in blocks]
        return masked | Reports.gather(task.stage, (future.result() for future in futures))

    def settle_masked(self, task: BlockTask) -> tuple[Reports, Sequence[int]]:
        """Settle at once the blocks that the mask leaves as background.

        Returns:
            Reports of those blocks, and the numbers of the others.
        """
        plan, mask = self.job.plan, self.job.mask
        settled = Reports.gather(task.stage, ())
        if mask is None or plan.stages[task.stage].reads is not None:
            return settled, task.blocks
        start, blocks = time.perf_counter(), np.array(task.blocks)
        try:
            out = masked_blocks(plan, mask, blocks)
        except (StorageError, MemoryError):
            return settled, task.blocks  # each block asks for itself, and fails by itself
        done = np.zeros(np.count_nonzero(out), REPORT_DTYPE)
        lo, hi = block_bounds(plan.target.box, plan.stages[0].block, blocks[out])
        done["index"] = blocks[out]
        done["voxels"] = np.prod(hi - lo, axis=1)
        done["empty"] = True
        done["checksum"] = [self._zeros_checksum(triple(shape)) for shape in (hi - lo).tolist()]
        done["read_s"] = (time.perf_counter() - start) / len(blocks)
        return replace(settled, done=done), blocks[~out].tolist()

    def submit(self, stage: int, index: int) -> Future[BlockReport]:
        """Start a block; the future never raises for what the block does, it reports it."""
        return self._blocks.submit(self._run, self.job.plan.block(stage, index))

    def _run(self, block: Block) -> BlockReport:
        report = BlockReport(block.stage, block.index, voxels=block.write.size)
        try:
            if self.lost is not None:  # nothing need be read to fail
                raise self.lost
            return self._attempt(block, report)
        except Exception as error:
            self._notice(error)
            log.debug("block %d of stage %d failed", block.index, block.stage, exc_info=True)
            where = f"block {block.index} {block.write}"
            reason = f"{where}: {type(error).__name__}: {error}"
            return replace(report, error=reason, transient=may_pass(error))

    def compare(self, box: Box) -> Seam:
        """Compare a stored target box with its prediction; see :meth:`OpenJob.compare`.

        Raises:
            StorageError: the source or the target cannot be read.
            DeviceError: the GPU is lost to this process.
        """
        try:
            return self.job.compare(box)
        except DeviceError as error:
            self._notice(error)
            raise

    def _notice(self, error: Exception) -> None:
        """Note that a GPU is lost; the first error says most."""
        if isinstance(error, DeviceError) and self.lost is None:
            self.lost = error
            log.error("%s", error)

    def _attempt(self, block: Block, report: BlockReport) -> BlockReport:
        start = time.perf_counter()
        source = read_block(self.job, block)
        read = time.perf_counter()
        if source is None:
            return replace(
                report,
                empty=True,
                checksum=self._zeros_checksum(block.write.shape),
                read_s=read - start,
            )
        plan = self.job.plan
        read_from = plan.source if plan.stages[block.stage].reads is None else plan.target
        found, compute_s = self._predicted(source, block)
        computed = time.perf_counter()
        arrays = block_arrays(self.job.plan, block, found)
        crc = write_block(self.job.plan, self.job.target, block, arrays)
        written = time.perf_counter()
        return replace(
            report,
            checksum=crc,
            empty=not arrays[0].any(),
            bytes_read=source.size * read_from.itemsize,  # as stored, whatever was made of it
            bytes_written=sum(a.nbytes for a in arrays),
            bytes_encoded=sum(
                self.job.target.encoded_bytes(box, level)
                for level, box in block_levels(self.job.plan, block)
            ),
            read_s=read - start,
            compute_s=compute_s,
            write_s=written - computed,
            halvings=self.job.predictor.halvings,
        )

    def _zeros_checksum(self, shape: Triple) -> int:
        """Return the checksum of a block of background; blocks have few shapes."""
        if shape not in self._zeros:
            self._zeros[shape] = checksum(np.zeros(shape, self.job.plan.target.dtype))
        return self._zeros[shape]

    def _predicted(self, source: Voxels, block: Block) -> tuple[Voxels, float]:
        """Return what the model makes of a block, and the seconds of that.

        The computing thread only launches: while a device computes, it is told of the next block.
        """
        plan = self.job.plan
        if plan.stages[block.stage].reads is not None:
            return source, 0.0
        box, write = plan.read_box(block), plan.anchored(block.write)
        self.job.use_device()
        staged = self.job.predictor.stage(source, box, write)
        launched = self._compute.submit(self._launch, staged).result()
        return launched.fetch(), launched.compute_s()

    def _launch(self, staged: Staged) -> Launched:
        """Compute a block, in the computing thread."""
        self.job.use_device()
        return staged.launch()
