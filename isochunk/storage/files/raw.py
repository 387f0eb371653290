"""Sections that lie uncompressed in a file, one after the other: read by rows, never mapped.

A mapped file that is cut short, or whose server goes away, would end the process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from isochunk.core.geometry import Box, Triple
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import CorruptDataError
from isochunk.storage.files.kinds import told
from isochunk.storage.volume import check_inside

WHOLE_ROW_BYTES = 16 << 10
"""Rows of up to this many bytes are read whole, many at once: 256 of them took 2.1 ms, and parts of
256 bytes 3.4 ms; with twice as long rows it was 5.5 ms. Of longer ones what is wanted is read."""

PAGE_BYTES = 4096
"""Least that a file system reads."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One uncompressed section in a file."""

    offset: int
    """Byte where it starts."""
    rows: int
    """Extent along y."""
    columns: int
    """Extent along x."""
    dtype: np.dtype[np.generic]
    """Voxels as stored, byte order included."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.columns * self.dtype.itemsize

    def read(self, file: BinaryIO, rows: slice, columns: slice) -> Voxels:
        """Read a part of the section.

        Args:
            file: open for reading; its position is changed.
            rows: start and stop along y.
            columns: start and stop along x.

        Returns:
            A y, x array of the stored byte order.

        Raises:
            CorruptDataError: the file ends before.
        """
        start = self.offset + rows.start * self.row_bytes
        count = rows.stop - rows.start
        if self.row_bytes <= WHOLE_ROW_BYTES:
            whole = self._read(file, start, count * self.columns).reshape(count, self.columns)
            return whole[:, columns]
        start += columns.start * self.dtype.itemsize
        wanted = columns.stop - columns.start
        places = range(start, start + count * self.row_bytes, self.row_bytes)
        return np.stack([self._read(file, at, wanted) for at in places])

    def _read(self, file: BinaryIO, at: int, count: int) -> Voxels:
        file.seek(at)
        content = file.read(count * self.dtype.itemsize)
        if len(content) < count * self.dtype.itemsize:
            raise CorruptDataError(
                f"{file.name} is cut short: it ends at byte {at + len(content)} within its voxels; "
                "copy it again"
            )
        return np.frombuffer(content, self.dtype)


def raw_chunk(columns: int, itemsize: int) -> Triple:
    """Return what a read of one voxel of an uncompressed section costs, along z, y, x."""
    if columns * itemsize <= WHOLE_ROW_BYTES:
        return (1, 1, columns)
    return (1, 1, PAGE_BYTES // itemsize)


class RawVolume:
    """A volume whose sections follow one another in a file; every read opens it anew."""

    def __init__(self, spec: VolumeSpec, path: Path, first: Plane, step: int = 1) -> None:
        """Keep what is known.

        Args:
            spec: the volume.
            path: of the file.
            first: its section 0.
            step: planes from a section to the next; others lie between where channels do.
        """
        self._spec = spec
        self._path = path
        self._first = first
        self._step = step

    @property
    def spec(self) -> VolumeSpec:
        """What is stored and where."""
        return self._spec

    def read(self, box: Box, level: int = 0) -> Voxels:
        """Read a box that lies inside ``spec.box`` as a z, y, x array of ``spec.dtype``.

        Raises:
            GeometryError: the box leaves the volume.
            StorageError: the file is cut short, gone, or not readable.
        """
        check_inside(self._spec, level, box)
        voxels = np.empty(box.shape, self._spec.dtype)
        _, rows, columns = box.slices((0, 0, 0))
        first = self._first
        with told(f"reading box {box} of {self._spec.url}"), self._path.open("rb") as file:
            for z, section in zip(range(box.lo[0], box.hi[0]), voxels, strict=True):
                at = first.offset + z * self._step * first.rows * first.row_bytes
                plane = Plane(at, first.rows, first.columns, first.dtype)
                section[:] = plane.read(file, rows, columns)
        return voxels
