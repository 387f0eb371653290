"""A job opened in one process: the only place where its model is loaded and its volumes are opened.

Submitter, worker, preview and lazy array all do it by :func:`open_job`, and pass on what is open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from isochunk.core.consistency import Consistency, compare_sections, sections_of
from isochunk.core.geometry import Box
from isochunk.core.gpus import device_summary
from isochunk.core.option_names import option
from isochunk.core.voxels import Voxels, convert
from isochunk.engine.consistency import sections_box
from isochunk.engine.mended import mended
from isochunk.engine.report import Seam
from isochunk.engine.windowed import windowed
from isochunk.errors import ModelError
from isochunk.host.allocator import keep_memory
from isochunk.models.gpus import seen_gpus
from isochunk.models.interface import Predictor, predict
from isochunk.models.load import (
    RETIRED,
    Runtime,
    device_of,
    limit_device,
    limit_threads,
    load,
    use_device,
)
from isochunk.planning.plan import Plan
from isochunk.planning.seats import Seat
from isochunk.planning.tiles import device_tile
from isochunk.storage.access import Access
from isochunk.storage.open import open_target, open_volume
from isochunk.storage.volume import Volume, WritableVolume, read_reflected


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A plan with its model loaded and its volumes open."""

    plan: Plan
    """What to do."""
    predictor: Predictor
    """The model."""
    source: Volume
    """Read through the model."""
    target: WritableVolume
    """Written, and read back for coarse levels."""
    mask: Volume | None = None
    """Tells where there is nothing to compute."""
    device: Mapping[str, Any] | None = None
    """What a report says of the GPU that computes; None on a CPU."""
    seat: Seat | None = None
    """Which of the GPUs that this process sees computes; None for torch's own choice, or a CPU."""

    def use_device(self) -> None:
        """Have what the calling thread does with a GPU take no memory of another."""
        if self.seat is not None:
            use_device(_cuda(self.seat))

    def predict(self, box: Box) -> Voxels:
        """Predict a stored target box straight from the source, as one tile."""
        self.use_device()
        anchored = self.plan.anchored(box)
        read = self.plan.model.read_box(anchored)
        predicted = predict(self.predictor, read_reflected(self.source, read), read, anchored)
        return convert(predicted, self.plan.target.dtype)

    def compare(self, box: Box) -> Seam:
        """Predict a stored target box as one tile and compare it with what is stored."""
        difference = np.abs(self.predict(box).astype(np.int32) - self.target.read(box))
        return Seam(box.size, int((difference == 0).sum()), int(difference.max()))

    def check(self, box: Box) -> Consistency:
        """Make the sections of a source box of what is stored, and compare them with the source."""
        model, where = self.plan.model, sections_box(self.plan, box)
        stored = self.target.read(where)
        origin = self.plan.anchored(where).lo[0]
        sections = range(box.lo[0], box.hi[0])
        made = sections_of(stored, origin, sections, model.resolved_factor[0], model.phase)
        # Stored in another type, grey levels span its range.
        scale = np.iinfo(self.plan.grey_dtype).max / np.iinfo(self.plan.target.dtype).max
        return compare_sections(made * np.float32(scale), read_reflected(self.source, box), box)


def open_job(plan: Plan, threads: Sequence[int] = (), seat: Seat | None = None) -> OpenJob:
    """Open a plan's volumes and load its model in this process.

    Args:
        plan: what to do; how, its job says.
        threads: how many may compute, to choose from by measurement; none for torch's default.
        seat: which GPU this process computes on, if any; None for torch's own, alone.

    Raises:
        ModelError: the model is not the one that was planned with, or there is no such GPU.
        StorageError: a volume cannot be opened.
    """
    if plan.is_network:
        keep_memory()
        if plan.device == "auto":  # read from its record, or meant for whichever process opens it
            plan = replace(plan, found_device="cuda" if device_of("auto").type == "cuda" else "cpu")
        limit_threads(threads, _device(plan, seat))
    access = Access.for_job(plan.job)
    return OpenJob(
        plan,
        predictor=_load_model(plan, seat),
        source=mended(_grey_levels(plan, access), plan.mending),
        target=open_target(plan.target, access),
        mask=open_volume(plan.mask.url, access.beside()) if plan.mask else None,
        device=_told(seat or Seat()) if plan.on_gpu else None,
        seat=seat if plan.on_gpu else None,
    )


def _grey_levels(plan: Plan, access: Access) -> Volume:
    """Open the source, through the plan's window if it has one."""
    stored = open_volume(plan.source.url, access, again=True)
    background = plan.job.missing == "background"
    return windowed(stored, plan.window, plan.grey_dtype, background=background)


def _told(seat: Seat) -> Mapping[str, Any] | None:
    """Return what a report says of the GPU that this process computes on."""
    seen = seen_gpus()
    return device_summary([(seen.gpus[seat.index], seen)])


def _device(plan: Plan, seat: Seat | None) -> str:
    """Return torch's name of the device that this process computes on."""
    return _cuda(seat) if plan.on_gpu and seat is not None else plan.device


def _cuda(seat: Seat) -> str:
    """Return torch's name of a GPU."""
    return f"cuda:{seat.index}"


def _load_model(plan: Plan, seat: Seat | None) -> Predictor:
    """Load a plan's model.

    Raises:
        ModelError: it is not the model that was planned with.
    """
    job, tile, known = plan.job, plan.tile, None
    device = _device(plan, seat)
    if plan.is_network:
        known = plan.model if plan.examined_by == version("torch") else None
        limit = limit_device(device, (seat or Seat()).share(job.device_memory))
        tile = tile if limit is None else device_tile(plan, limit)
    runtime = Runtime(
        factor=plan.model.resolved_factor,
        intensity=plan.intensity,
        dtype=plan.grey_dtype,
        device=device,
        precision=plan.precision,
        tile=tile,
        trust=job.trust,
        allow_inexact=job.allow_inexact,
        consistent=job.consistent,
        plane=plan.model.plane,
        known=known,
    )
    predictor = load(job.model, runtime)
    if predictor.spec.sha256 != plan.model.sha256:
        advice = "give every worker the same file"
        if predictor.spec.name == RETIRED.get(job.model):
            advice = (
                "it is no longer shipped; finish with the isochunk that began, or with "
                f"{option('model')} and the folder of that checkpoint"
            )
        raise ModelError(
            f"model {job.model!r} has digest {predictor.spec.sha256[:12]} here but the job was "
            f"planned with {plan.model.sha256[:12]}; {advice}"
        )
    return predictor
