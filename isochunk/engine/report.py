"""What a run says of itself, while it runs and at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from isochunk.block import BlockReport

KEPT_ERRORS = 20
"""Errors kept word for word; all are counted."""


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

    def summary(self) -> dict[str, Any]:
        """Return the figure as JSON."""
        return {
            "voxels": self.voxels,
            "identical_fraction": self.identical / self.voxels,
            "max_difference": self.max_difference,
        }


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
    wall_s: float = 0.0
    """Seconds from start to end."""
    errors: tuple[str, ...] = ()
    """The first errors."""
    seam: Seam | None = None
    """Measured after the run; None if nothing could be compared."""
    neuroglancer_url: str = ""
    """Where to look at the result."""
    started: float = field(default_factory=time.monotonic, compare=False)
    """Clock at the start."""

    @property
    def complete(self) -> bool:
        """Whether every block of the job is done."""
        return self.done == self.total

    def __add__(self, reports: Iterable[BlockReport]) -> Report:
        """Return the report with more blocks in it."""
        now = self
        for r in reports:
            if r.error is not None:
                kept = now.errors if len(now.errors) >= KEPT_ERRORS else (*now.errors, r.error)
                now = replace(now, failed=now.failed + 1, errors=kept)
                continue
            now = replace(
                now,
                done=now.done + 1,
                empty=now.empty + r.empty,
                voxels=now.voxels + (r.voxels if r.stage == 0 else 0),
                bytes_read=now.bytes_read + r.bytes_read,
                bytes_written=now.bytes_written + r.bytes_written,
                read_s=now.read_s + r.read_s,
                compute_s=now.compute_s + r.compute_s,
                write_s=now.write_s + r.write_s,
            )
        return replace(now, wall_s=time.monotonic() - now.started)

    def summary(self) -> dict[str, Any]:
        """Return the JSON object of ``isochunk run``."""
        return {
            "complete": self.complete,
            "blocks": {
                "total": self.total,
                "done": self.done,
                "resumed": self.resumed,
                "empty": self.empty,
                "failed": self.failed,
            },
            "voxels": self.voxels,
            "wall_s": round(self.wall_s, 3),
            "voxels_per_s": round(self.voxels / self.wall_s, 1) if self.wall_s else 0.0,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "stages_s": {
                "read": round(self.read_s, 3),
                "compute": round(self.compute_s, 3),
                "write": round(self.write_s, 3),
            },
            "seam": self.seam.summary() if self.seam and self.seam.voxels else None,
            "errors": list(self.errors),
            "neuroglancer_url": self.neuroglancer_url,
        }
