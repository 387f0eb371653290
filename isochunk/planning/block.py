"""A unit of work before, during and after it runs: small values that travel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from isochunk.core.geometry import Box


@dataclass(frozen=True, slots=True)
class Block:
    """One unit of work."""

    stage: int
    """Stage it belongs to."""
    index: int
    """Number within the stage."""
    write: Box
    """Stored target voxels on the grid of the stage's first level."""


@dataclass(frozen=True, slots=True)
class BlockTask:
    """Some blocks of one stage: all that a Dask task carries."""

    stage: int
    """Stage of all blocks."""
    blocks: Sequence[int]
    """Numbers of the blocks, in order; a ``range`` where they follow each other, since schedulers
    keep what they sent."""


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What is known of a block after it ran: small enough to send and keep."""

    stage: int
    """Stage of the block."""
    index: int
    """Number within the stage."""
    voxels: int = 0
    """Target voxels of the block's first level."""
    checksum: int = 0
    """CRC-32 of the first level's voxels, as they read back."""
    empty: bool = False
    """All background: nothing was stored."""
    error: str | None = None
    """Why the block failed; None if it did not."""
    transient: bool = False
    """It failed in a way that may pass: trying again may help."""
    bytes_read: int = 0
    """Voxel bytes read."""
    bytes_written: int = 0
    """Voxel bytes written over all levels."""
    bytes_encoded: int = 0
    """Of these, bytes as stored; 0 where that would have to be asked, which is all but memory."""
    read_s: float = 0.0
    """Seconds reading."""
    compute_s: float = 0.0
    """Seconds computing."""
    write_s: float = 0.0
    """Seconds writing."""
    halvings: int = 0
    """How often the worker had halved its tile by then because memory ran out."""

    @property
    def seconds(self) -> float:
        """Seconds of work; waiting between reading, computing and writing is left out."""
        return self.read_s + self.compute_s + self.write_s


REPORT_DTYPE = np.dtype(
    [
        ("index", "<i8"),
        ("voxels", "<i8"),
        ("checksum", "<u4"),
        ("empty", "?"),
        ("bytes_read", "<i8"),
        ("bytes_written", "<i8"),
        ("bytes_encoded", "<i8"),
        ("read_s", "<f8"),
        ("compute_s", "<f8"),
        ("write_s", "<f8"),
        ("halvings", "<i4"),
    ]
)
"""One block that is done; the fields are those of :class:`BlockReport`."""

_row = attrgetter(*REPORT_DTYPE.fields or ())


@dataclass(frozen=True, slots=True, eq=False)
class Reports:
    """What is known of many blocks of a stage after they ran.

    Those done are one table: a thousand blocks of background are sent, recorded and summed in less
    time than one block takes to compute.
    """

    stage: int
    """Stage of the blocks."""
    done: NDArray[np.void]
    """(n,) rows of :data:`REPORT_DTYPE`."""
    failed: tuple[BlockReport, ...] = ()
    """Those that failed."""

    @classmethod
    def gather(cls, stage: int, reports: Iterable[BlockReport]) -> Reports:
        """Put single blocks of a stage together."""
        rows, failed = [], []
        for report in reports:
            if report.error is None:
                rows.append(_row(report))
            else:
                failed.append(report)
        return cls(stage, np.array(rows, REPORT_DTYPE), tuple(failed))

    def __or__(self, other: Reports) -> Reports:
        """Join the reports of two sets of blocks of the same stage."""
        done = np.concatenate([self.done, other.done])
        return Reports(self.stage, done, self.failed + other.failed)

    def __iter__(self) -> Iterator[BlockReport]:
        """Iterate over the blocks one by one, those that failed last."""
        return chain(self.rows(self.done), self.failed)

    def slowest(self, count: int) -> list[BlockReport]:
        """Return the blocks done that took longest."""
        seconds = self.done["read_s"] + self.done["compute_s"] + self.done["write_s"]
        return list(self.rows(self.done[np.argsort(seconds)[-count:]]))

    def rows(self, done: NDArray[np.void]) -> Iterator[BlockReport]:
        """Return rows of the table as reports of single blocks."""
        names = REPORT_DTYPE.names or ()
        return (
            BlockReport(self.stage, **dict(zip(names, row, strict=True))) for row in done.tolist()
        )


EMPTY_REPORTS = Reports(0, np.empty(0, REPORT_DTYPE))
"""Said while waiting."""
