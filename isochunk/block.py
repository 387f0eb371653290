"""A unit of work before, during and after it runs: small values that travel."""

from __future__ import annotations

from dataclasses import dataclass

from isochunk.geometry import Box


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
    """Consecutive blocks of one stage: all that a Dask task carries."""

    stage: int
    """Stage of all blocks."""
    blocks: tuple[int, ...]
    """Numbers of the blocks."""


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
