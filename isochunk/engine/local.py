"""Run blocks in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from isochunk.core.consistency import Consistency
from isochunk.core.geometry import Box
from isochunk.core.limits import RECORD_S
from isochunk.engine.events import Notify
from isochunk.engine.pipeline import Pipeline
from isochunk.engine.report import Seam
from isochunk.errors import DeviceError
from isochunk.planning.block import BlockReport, BlockTask, Reports


class LocalBackend:
    """Runs blocks in the pipeline of this process."""

    workers = 1

    def __init__(self, pipeline: Pipeline) -> None:
        """Take an open pipeline; closing it is the caller's."""
        self.pipeline = pipeline

    @property
    def device(self) -> Mapping[str, Any] | None:
        """The GPU of this process; see :class:`~isochunk.engine.loop.Backend`."""
        return self.pipeline.job.device

    def map(self, tasks: Iterator[BlockTask], notify: Notify) -> Iterator[Reports]:
        """Keep twice the pipeline's depth of blocks submitted.

        Raises:
            DeviceError: the GPU is lost to this process. No other process would take the blocks
                that are left, so they are not tried.
        """
        del notify  # nothing happens here that the reports do not say
        in_flight: set[Future[BlockReport]] = set()
        stage = 0
        for task in tasks:
            stage = task.stage
            masked, blocks = self.pipeline.settle_masked(task)
            yield masked
            for index in blocks:
                if self.pipeline.lost is not None:
                    break
                in_flight.add(self.pipeline.submit(stage, index))
                while len(in_flight) >= 2 * self.pipeline.job.plan.depth:
                    done, in_flight = wait(in_flight, RECORD_S, FIRST_COMPLETED)
                    yield Reports.gather(stage, (future.result() for future in done))
            if self.pipeline.lost is not None:
                break
        while in_flight:
            done, in_flight = wait(in_flight, RECORD_S, FIRST_COMPLETED)
            yield Reports.gather(stage, (future.result() for future in done))
        if self.pipeline.lost is not None:
            raise DeviceError(
                f"{self.pipeline.lost}; what is done is recorded: give the same command again, "
                "which goes on in a new process"
            ) from self.pipeline.lost

    def compare(self, boxes: list[Box]) -> Iterator[Seam]:
        """Compare in this process."""
        return (self.pipeline.compare(box) for box in boxes)

    def check(self, boxes: list[Box]) -> Iterator[Consistency]:
        """Compare with the source in this process."""
        return (self.pipeline.job.check(box) for box in boxes)
