"""Run a plan in this process, and open a plan's volumes and model in any process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

import numpy as np

from isochunk.core.geometry import Box
from isochunk.core.job import Device
from isochunk.core.voxels import Voxels, convert
from isochunk.engine.events import Notify
from isochunk.engine.loop import FLUSH_S
from isochunk.engine.pipeline import Pipeline, Volumes
from isochunk.engine.report import Seam
from isochunk.errors import ModelError
from isochunk.host.allocator import keep_memory
from isochunk.models.interface import Predictor
from isochunk.models.interpolation import INTERPOLATIONS
from isochunk.models.load import Runtime, limit_device, limit_threads, load
from isochunk.planning.block import BlockReport, BlockTask, Reports
from isochunk.planning.plan import Plan, device_tile
from isochunk.storage.access import Access
from isochunk.storage.open import open_target, open_volume
from isochunk.storage.volume import Volume, read_reflected


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a process that runs blocks is set up; nothing here changes the output."""

    model: str
    """Name or path of the model, as the user gave it."""
    device: Device = "auto"
    """Where networks run."""
    device_memory: float = 0.9
    """Share of a GPU's memory that this process may take."""
    access: Access = field(default_factory=Access)
    """How storage is reached."""
    trust: bool = False
    """The user allowed the model to run code of its own."""
    allow_inexact: bool = False
    """The user accepts seams."""
    threads: int | None = None
    """Compute threads; None for torch's default."""


def open_predictor(plan: Plan, settings: WorkerSettings) -> Predictor:
    """Load a plan's model in this process.

    Raises:
        ModelError: it is not the model that was planned with.
    """
    tile = plan.tile
    if plan.model.arch not in INTERPOLATIONS:
        limit = limit_device(settings.device, settings.device_memory)
        tile = tile if limit is None else device_tile(plan, limit)
    runtime = Runtime(
        factor=plan.model.resolved_factor,
        intensity=plan.intensity,
        dtype=plan.source.dtype,
        device=settings.device,
        precision=plan.precision,
        tile=tile,
        trust=settings.trust,
        allow_inexact=settings.allow_inexact,
        plane=plan.model.plane,
    )
    predictor = load(settings.model, runtime)
    if predictor.spec.sha256 != plan.model.sha256:
        raise ModelError(
            f"model {settings.model!r} has digest {predictor.spec.sha256[:12]} here but the job "
            f"was planned with {plan.model.sha256[:12]}; give every worker the same file"
        )
    return predictor


def open_pipeline(plan: Plan, settings: WorkerSettings) -> Pipeline:
    """Open a plan's volumes and load its model in this process.

    Raises:
        ModelError: the model is not the one that was planned with.
        StorageError: a volume cannot be opened.
    """
    if plan.model.arch not in INTERPOLATIONS:
        keep_memory()
        limit_threads(settings.threads)
    volumes = Volumes(
        source=open_volume(plan.source.url, settings.access),
        target=open_target(plan.target, settings.access),
        mask=open_volume(plan.mask.url, settings.access) if plan.mask else None,
    )
    return Pipeline(plan, open_predictor(plan, settings), volumes)


def predict_box(plan: Plan, predictor: Predictor, source: Volume, box: Box) -> Voxels:
    """Predict a stored target box straight from the source."""
    anchored = plan.anchored(box)
    read = plan.model.read_box(anchored)
    return convert(predictor(read_reflected(source, read), read, anchored), plan.target.dtype)


def compare_box(pipeline: Pipeline, box: Box) -> Seam:
    """Predict a stored box as one tile and compare it with what is stored."""
    volumes = pipeline.volumes
    fresh = predict_box(pipeline.plan, pipeline.predictor, volumes.source, box)
    difference = np.abs(fresh.astype(np.int32) - volumes.target.read(box))
    return Seam(box.size, int((difference == 0).sum()), int(difference.max()))


class LocalBackend:
    """Runs blocks in the pipeline of this process."""

    workers = 1

    def __init__(self, pipeline: Pipeline) -> None:
        """Take an open pipeline; closing it is the caller's."""
        self.pipeline = pipeline

    def map(self, tasks: Iterator[BlockTask], notify: Notify) -> Iterator[Reports]:
        """Keep twice the pipeline's depth of blocks submitted."""
        del notify  # nothing happens here that the reports do not say
        flying: set[Future[BlockReport]] = set()
        stage = 0
        for task in tasks:
            stage = task.stage
            background, blocks = self.pipeline.background(task)
            yield background
            for index in blocks:
                flying.add(self.pipeline.submit(stage, index))
                while len(flying) >= 2 * self.pipeline.plan.depth:
                    landed, flying = wait(flying, FLUSH_S, FIRST_COMPLETED)
                    yield Reports.gather(stage, (future.result() for future in landed))
        while flying:
            landed, flying = wait(flying, FLUSH_S, FIRST_COMPLETED)
            yield Reports.gather(stage, (future.result() for future in landed))

    def compare(self, boxes: list[Box]) -> Iterator[Seam]:
        """Compare in this process."""
        return (compare_box(self.pipeline, box) for box in boxes)
