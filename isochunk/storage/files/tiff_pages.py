"""One section of a TIFF file: what it is, and those of its tiles or strips that a box overlaps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from tifffile import COMPRESSION, TIFF, TiffFile, TiffPage

from isochunk.core.geometry import Triple, ceil_div
from isochunk.core.voxels import Voxels
from isochunk.errors import CorruptDataError, UsageError
from isochunk.storage.files.kept import KeptSegments
from isochunk.storage.files.kinds import check_single
from isochunk.storage.files.raw import Plane, raw_chunk

UNCOMPRESSED = 1


@dataclass(frozen=True, slots=True)
class PageForm:
    """What all sections of a volume have in common."""

    rows: int
    """Extent along y."""
    columns: int
    """Extent along x."""
    dtype: str
    """numpy name of the voxel type."""

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns} {self.dtype}"


def page_form(page: TiffPage, name: str) -> PageForm:
    """Return what a page holds.

    Args:
        page: of an open file.
        name: of the file, for messages.

    Raises:
        UsageError: colours, channels, depth or voxels that are not supported.
    """
    check_single(name, {"channels": page.samplesperpixel})
    if page.dtype is None or page.imagedepth != 1 or page.dtype.kind not in "uif":
        raise UsageError(
            f"{name} holds pages of {page.bitspersample} bits and sample format {page.sampleformat}"
            f"{f' and depth {page.imagedepth}' if page.imagedepth != 1 else ''}; grey levels of "
            "8, 16 or 32 bits are supported"
        )
    return PageForm(page.imagelength, page.imagewidth, page.dtype.name)


def encoding_of(page: TiffPage) -> str:
    """Return how a page is compressed, as a spec calls it."""
    return "raw" if page.compression == UNCOMPRESSED else COMPRESSION(page.compression).name.lower()


def check_decodes(page: TiffPage, name: str) -> None:
    """Check that a page can be decompressed here.

    Raises:
        UsageError: a package is missing, or the compression is not known.
    """
    compressed = page.compression != UNCOMPRESSED and page.compression not in TIFF.DECOMPRESSORS
    packed = page.bitspersample not in (8, 16, 32, 64)
    if compressed or packed or (page.predictor != 1 and page.predictor not in TIFF.UNPREDICTORS):
        if find_spec("imagecodecs") is None:
            what = f"{page.bitspersample} bits a voxel" if packed else encoding_of(page)
            raise UsageError(
                f"{name} is stored as {what}, which tifffile decodes with the package imagecodecs; "
                "pip install imagecodecs, on workers too"
            )
        if not packed:
            raise UsageError(
                f"{name} is compressed as {encoding_of(page)} (predictor {page.predictor}), which "
                "tifffile and imagecodecs do not decode; save it with another compression"
            )


def segment_shape(page: TiffPage) -> tuple[int, int]:
    """Return the rows and columns of a tile or strip."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def page_chunk(page: TiffPage) -> Triple:
    """Return what a read of one voxel of a page costs, along z, y, x."""
    if page.is_final and page.dtype is not None:
        return raw_chunk(page.imagewidth, page.dtype.itemsize)
    return (1, *segment_shape(page))


class PageReader:
    """Reads parts of the pages of one open file."""

    def __init__(self, file: TiffFile, kept: KeptSegments) -> None:
        """Keep an open file, used by one thread, and what is shared with others."""
        self._file = file
        self._kept = kept

    def page(self, offset: int | None) -> TiffPage:
        """Return the page whose directory starts at a byte of the file; None for the first page."""
        if offset is None or offset == self._file.pages.first.offset:
            return self._file.pages.first
        self._file.filehandle.seek(offset)
        return TiffPage(self._file, 0)

    def read(self, page: TiffPage, z: int, rows: slice, columns: slice) -> Voxels:
        """Read a part of a page.

        Args:
            page: of this file.
            z: which section it is, to find again what is kept of it.
            rows: start and stop along y.
            columns: start and stop along x.

        Returns:
            A y, x array.

        Raises:
            CorruptDataError: the file ends before.
        """
        if page.is_final and page.dtype is not None:
            dtype = page.dtype.newbyteorder(self._file.byteorder)
            plane = Plane(page.dataoffsets[0], page.imagelength, page.imagewidth, dtype)
            handle: Any = self._file.filehandle
            return plane.read(handle, rows, columns)
        part = np.zeros((rows.stop - rows.start, columns.stop - columns.start), page.dtype)
        high, wide = segment_shape(page)
        across = ceil_div(page.imagewidth, wide)
        for i in range(rows.start // high, ceil_div(rows.stop, high)):
            for j in range(columns.start // wide, ceil_div(columns.stop, wide)):
                segment = self._kept.get((z, i, j), partial(self._decode, page, i * across + j))
                _paste(part, segment, (i * high - rows.start, j * wide - columns.start))
        return part

    def _decode(self, page: TiffPage, index: int) -> Voxels:
        """Read and decompress one tile or strip, cut to what is inside the page."""
        handle = self._file.filehandle
        if index >= len(page.dataoffsets):
            raise CorruptDataError(
                f"{handle.path} lists {len(page.dataoffsets)} tiles or strips in a page that needs "
                "more; copy it again"
            )
        size = page.databytecounts[index]
        content = None
        if size:
            handle.seek(page.dataoffsets[index])
            content = handle.read(size)
            if len(content) < size:
                raise CorruptDataError(
                    f"{handle.path} is cut short: it ends within tile or strip {index} of a page; "
                    "copy it again"
                )
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        voxels, (_, _, row, column, _), shape = page.decode(content, index, **tables)
        inside = min(shape[1], page.imagelength - row), min(shape[2], page.imagewidth - column)
        if voxels is None:  # left out of the file, as libtiff leaves out what nobody wrote
            return np.full(inside, page.nodata, page.dtype)
        whole: Voxels = voxels[0, : inside[0], : inside[1], 0]
        return whole


def _paste(part: Voxels, segment: Voxels, at: tuple[int, int]) -> None:
    """Copy what overlaps of a segment whose first voxel is at ``at`` of a part."""
    here, there = [], []
    for start, n, whole in zip(at, segment.shape, part.shape, strict=True):
        lo, hi = max(start, 0), min(start + n, whole)
        here.append(slice(lo, max(lo, hi)))
        there.append(slice(lo - start, max(lo, hi) - start))
    part[tuple(here)] = segment[tuple(there)]
