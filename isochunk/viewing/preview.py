"""Predictions on demand: a precomputed volume whose chunks are computed when they are asked for.

The same plan, predictor and reads as a batch run, so what is previewed is what would be written.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any

from isochunk.core.geometry import Box
from isochunk.core.job import Job
from isochunk.core.voxels import Voxels, pool
from isochunk.engine.opened import OpenJob, open_job
from isochunk.engine.prepare import TargetPlace, resolve
from isochunk.errors import IsochunkError
from isochunk.planning.layout import finer_box, pooling_between
from isochunk.planning.plan import Plan
from isochunk.storage.keys import object_boxes, object_key
from isochunk.storage.precomputed import info_json
from isochunk.viewing.neuroglancer import filled_sections
from isochunk.viewing.server import LinkHandler, RunningViewer, serve_link, view

log = logging.getLogger(__name__)

CHUNK = (32, 64, 64)
LEVELS = 3
"""Levels offered; each coarser one costs eight times the computing of the one below."""

KEPT_CHUNKS = 512

CHUNK_NAME = re.compile(r"_".join([r"(-?\d{1,18})--?\d{1,18}"] * 3), re.ASCII)
"""x0-x1_y0-y1_z0-z1; any of them may be negative."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A preview being served."""

    url: str
    """URL of the precomputed volume."""
    plan: Plan
    """What is predicted."""


class PreviewVolume:
    """Computes the chunks of a plan's target, one at a time, and keeps the last ones."""

    def __init__(self, job: OpenJob) -> None:
        """Take an open job; its target is only described."""
        self.job = job
        self.plan = job.plan
        self._compute = ThreadPoolExecutor(1, "isochunk-preview")
        self._chunk = lru_cache(KEPT_CHUNKS)(self._predict)

    def read(self, box: Box, level: int) -> Voxels:
        """Predict a box of a level."""
        levels = self.plan.target.levels
        if level == 0:
            return self.job.predict(box)
        fine, coarse = levels[level - 1], levels[level]
        below = self.read(finer_box(box, fine, coarse), level - 1)
        return pool(below, pooling_between(fine, coarse))

    def chunk(self, path: str) -> bytes | None:
        """Return an object of the volume by its key, raw, or None if there is no such object."""
        if path == "info":
            return info_json(self.plan.target)
        for number, level in enumerate(self.plan.target.levels):
            if path.startswith(f"{level.key}/"):
                box = self._box(path, number)
                return None if box is None else self._chunk(box, number)
        return None

    def _box(self, path: str, number: int) -> Box | None:
        """Find the chunk that a key names."""
        match = CHUNK_NAME.fullmatch(path.rpartition("/")[2])
        if match is None:
            return None
        x, y, z = map(int, match.groups())
        corner = Box((z, y, x), (z + 1, y + 1, x + 1))
        for box in object_boxes(self.plan.target.levels[number], corner):
            if object_key(self.plan.target, number, box) == path:
                return box
        return None

    def _predict(self, box: Box, level: int) -> bytes:
        return self._compute.submit(lambda: self.read(box, level).tobytes()).result()


class _PreviewHandler(LinkHandler):
    """Objects of a preview."""

    def __init__(self, volume: PreviewVolume, *request: Any) -> None:
        self.volume = volume
        super().__init__(*request)

    def answer(self, path: str) -> None:
        """Compute and send an object."""
        status = HTTPStatus.OK
        try:
            body = self.volume.chunk(path)
        except IsochunkError as error:
            log.warning("preview of %s failed: %s", path, error)
            # Not 404: that would be shown as background.
            status, body = HTTPStatus.INTERNAL_SERVER_ERROR, str(error).encode()
        if body is None:
            self.send_not_found()
            return
        self.send_head(status, len(body))
        if self.command == "GET":
            self.wfile.write(body)


def preview_job(job: Job) -> Job:
    """Return the job whose target is only ever looked at."""
    return replace(
        job,
        format="precomputed",
        encoding="raw",
        chunk=CHUNK,
        shard="none",
        block=None,
        levels=None,
        dtype=None,
    )


@contextmanager
def preview(job: Job, port: int = 0) -> Iterator[RunningViewer]:
    """Serve a job's predictions on demand, beside the source, in a local neuroglancer.

    Args:
        job: its target is not used.
        port: of the predictions; 0 for any that is free.

    Raises:
        UsageError: the job cannot be done.
    """
    plan = resolve(preview_job(job), TargetPlace("memory://preview", "precomputed"))
    with serve_preview(plan, port) as served:
        shown = replace(served.plan.target, url=served.url)
        level = shown.levels[-1]
        filled = filled_sections(plan.source, plan.sections)
        ends = None if plan.window is None else plan.window.ends
        with view(shown, plan.source, filled=filled, source_contrast=ends) as viewer:
            log.info("previewing %s voxels at %s nm", level.box, level.spacing)
            yield viewer


@contextmanager
def serve_preview(plan: Plan, port: int = 0) -> Iterator[Preview]:
    """Serve predictions as an unsharded precomputed volume on the loopback.

    Args:
        plan: made of a :func:`preview_job`.
        port: 0 for any that is free.
    """
    target = replace(plan.target, levels=plan.target.levels[:LEVELS])
    plan = replace(plan, target=target)
    volume = PreviewVolume(open_job(plan))
    with serve_link(partial(_PreviewHandler, volume), port) as url:
        log.info("preview of %s: %s", plan.source.url, json.dumps({"url": url}))
        yield Preview(url, plan)
