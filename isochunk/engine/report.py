"""What a run says of itself, while it runs and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from heapq import nlargest
from itertools import pairwise
from typing import Any

from isochunk.core.consistency import Consistency
from isochunk.core.precisions import Worth
from isochunk.core.sentence import Sentence, as_html
from isochunk.engine.sentences import course, proofs, verdict
from isochunk.planning.block import BlockReport, Reports

KEPT_ERRORS = 20
"""Errors kept word for word; all are counted."""

KEPT_SAMPLES = 64
"""Samples of voxels over time."""

KEPT_SLOWEST = 5
"""Slowest blocks named."""


@dataclass(frozen=True, slots=True)
class Seam:
    """How far stored voxels differ from the same voxels predicted as one tile across seams."""

    voxels: int = 0
    """Voxels compared, in boxes centred on the corners and faces of blocks."""
    identical: int = 0
    """Voxels that are equal."""
    max_difference: int = 0
    """Largest difference in grey levels."""

    def __add__(self, other: Seam) -> Seam:
        """Join two figures."""
        return Seam(
            self.voxels + other.voxels,
            self.identical + other.identical,
            max(self.max_difference, other.max_difference),
        )

    def keeps(self, worth: Worth) -> bool:
        """Tell whether the difference is no larger than what a number format is worth."""
        same = self.identical >= worth.seam_identical * self.voxels
        return same and self.max_difference <= worth.seam_difference

    def summary(self) -> dict[str, Any]:
        """Return the figure as JSON."""
        return {
            "voxels": self.voxels,
            "identical_fraction": self.identical / self.voxels,
            "max_difference": self.max_difference,
        }


@dataclass(frozen=True, slots=True)
class Throughput:
    """Voxels over time, in at most :data:`KEPT_SAMPLES` samples however long the run."""

    samples: tuple[tuple[float, int], ...] = ((0.0, 0),)
    """Seconds since the start, and voxels written by then."""
    interval_s: float = 1.0
    """Time between samples; it doubles when there are too many."""

    def at(self, seconds: float, voxels: int) -> Throughput:
        """Return the samples with what is known at a time, if one is due."""
        if seconds - self.samples[-1][0] < self.interval_s:
            return self
        samples = (*self.samples, (seconds, voxels))
        if len(samples) <= KEPT_SAMPLES:
            return replace(self, samples=samples)
        return Throughput(samples[::2], 2 * self.interval_s)

    def summary(self) -> list[dict[str, float]]:
        """Return voxels/s of each span as JSON, by the seconds at its end."""
        return [
            {"until_s": round(t1, 1), "voxels_per_s": round((v1 - v0) / (t1 - t0), 1)}
            for (t0, v0), (t1, v1) in pairwise(self.samples)
        ]


@dataclass(frozen=True, slots=True)
class Report:
    """Sums over the blocks of a run; its size does not depend on their number."""

    total: int
    """Blocks of the whole job."""
    resumed: int
    """Blocks that were done before this run."""
    done: int
    """Blocks that are done now, those resumed included."""
    empty: int = 0
    """Blocks of this run that are all background."""
    failed: int = 0
    """Blocks that failed, or wait for one that did."""
    retries: int = 0
    """Times that a block was tried again after a failure that may pass."""
    workers: int = 1
    """Worker processes now."""
    voxels: int = 0
    """Target voxels written by this run at full resolution."""
    bytes_read: int = 0
    """Voxel bytes read."""
    bytes_written: int = 0
    """Voxel bytes written."""
    read_s: float = 0.0
    """Seconds reading, summed over blocks that overlap."""
    compute_s: float = 0.0
    """Seconds computing."""
    write_s: float = 0.0
    """Seconds writing."""
    halvings: int = 0
    """How often the worker that did so most halved its tile because memory ran out."""
    wall_s: float = 0.0
    """Seconds from start to end."""
    first_block_s: float | None = None
    """Seconds until the first block was done, opening included; None before."""
    throughput: Throughput = Throughput()
    """Voxels over time."""
    slowest: tuple[BlockReport, ...] = ()
    """The blocks that took longest, slowest first."""
    errors: tuple[str, ...] = ()
    """The first errors."""
    seam: Seam | None = None
    """Measured after the run; None if nothing could be compared."""
    promised: Worth | None = None
    """What the seam should be at most; None for a model that is not tiled exactly."""
    invented_voxels: int = 0
    """Target voxels of the whole job, at full resolution, in sections filled from their
    neighbours."""
    consistency: Consistency | None = None
    """How far sections made of what is stored are from the source, in some boxes, after the run;
    None for a model that leaves z or changes y and x, and if nothing could be compared."""
    device: Mapping[str, Any] | None = None
    """The GPUs it ran on, and versions of what computed there; None on CPUs."""
    neuroglancer_url: str = ""
    """Where to look at the result."""

    @property
    def complete(self) -> bool:
        """Whether every block of the job is done."""
        return self.done == self.total

    def after(self, reports: Reports, wall_s: float) -> Report:
        """Return the report with more blocks in it, some time after the start."""
        done = reports.done
        voxels = self.voxels + (int(done["voxels"].sum()) if reports.stage == 0 else 0)
        candidates = (*self.slowest, *reports.slowest(KEPT_SLOWEST))
        errors = (r.error for r in reports.failed if r.error is not None)
        return replace(
            self,
            done=self.done + len(done),
            empty=self.empty + int(done["empty"].sum()),
            failed=self.failed + len(reports.failed),
            voxels=voxels,
            bytes_read=self.bytes_read + int(done["bytes_read"].sum()),
            bytes_written=self.bytes_written + int(done["bytes_written"].sum()),
            read_s=self.read_s + float(done["read_s"].sum()),
            compute_s=self.compute_s + float(done["compute_s"].sum()),
            write_s=self.write_s + float(done["write_s"].sum()),
            halvings=max(self.halvings, int(done["halvings"].max(initial=0))),
            wall_s=wall_s,
            throughput=self.throughput.at(wall_s, voxels),
            slowest=tuple(nlargest(KEPT_SLOWEST, candidates, key=_seconds)),
            errors=(*self.errors, *errors)[:KEPT_ERRORS],
        )

    def summary(self) -> dict[str, Any]:
        """Return the JSON object of ``isochunk run``."""
        busy = self.read_s + self.compute_s + self.write_s
        stages = {"read": self.read_s, "compute": self.compute_s, "write": self.write_s}
        return {
            "complete": self.complete,
            "blocks": {
                "total": self.total,
                "done": self.done,
                "resumed": self.resumed,
                "empty": self.empty,
                "failed": self.failed,
            },
            "retries": self.retries,
            "voxels": self.voxels,
            "wall_s": round(self.wall_s, 3),
            "first_block_s": None if self.first_block_s is None else round(self.first_block_s, 3),
            "voxels_per_s": round(self.voxels / self.wall_s, 1) if self.wall_s else 0.0,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "stages_s": {name: round(s, 3) for name, s in stages.items()},
            "shares": {name: round(s / busy, 4) if busy else 0.0 for name, s in stages.items()},
            "tile_halvings": self.halvings,
            "rates": self.throughput.summary(),
            "slowest": [
                {"stage": r.stage, "block": r.index, "seconds": round(r.seconds, 3)}
                for r in self.slowest
            ],
            "seam": self._seam(),
            "invented_voxels": self.invented_voxels,
            "consistency": None if self.consistency is None else self.consistency.summary(),
            "errors": list(self.errors),
            "device": None if self.device is None else dict(self.device),
            "neuroglancer_url": self.neuroglancer_url,
        }

    def _repr_html_(self) -> str:
        """Show it in a notebook."""
        found = self.summary()
        result = Sentence("result", verdict(found), good=self.complete)
        return as_html("run", (result, *course(found), *proofs(found)))

    def _seam(self) -> dict[str, Any] | None:
        """Return the seam as JSON, with what was promised of it."""
        if self.seam is None or not self.seam.voxels:
            return None
        found = self.seam.summary()
        if self.promised is not None:
            found["promised"] = {
                "identical_fraction": self.promised.seam_identical,
                "max_difference": self.promised.seam_difference,
                "kept": self.seam.keeps(self.promised),
            }
        return found


def _seconds(report: BlockReport) -> float:
    return report.seconds
