"""One section of a TIFF file: what it is, and those of its tiles or strips that a box overlaps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tifffile import COMPRESSION, TIFF, TiffFile, TiffPage

from isochunk.core.geometry import Triple, ceil_div
from isochunk.core.voxels import Voxels
from isochunk.errors import CorruptDataError, UsageError
from isochunk.storage.files.kinds import check_single
from isochunk.storage.files.raw import Plane, raw_chunk

Keep: TypeAlias = Callable[[int, Callable[[], Voxels]], Voxels]

UNCOMPRESSED, NO_PREDICTOR = 1, 1


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
    packed = page.bitspersample not in (8, 16, 32, 64)
    if not packed and _decodes(page):
        return
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


def _decodes(page: TiffPage) -> bool:
    """Tell whether what decompresses a page is installed."""
    if page.predictor != NO_PREDICTOR and page.predictor not in TIFF.UNPREDICTORS:
        return False
    if page.compression == UNCOMPRESSED:
        return True
    if page.compression not in TIFF.DECOMPRESSORS:
        return False
    try:
        TIFF.DECOMPRESSORS[page.compression](b"")
    except ImportError:  # some look for what they need when they are called
        return False
    except Exception:  # noqa: BLE001  it is there, and does not like no bytes
        return True
    return True


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


@dataclass(frozen=True, slots=True)
class StoredPage:
    """Where the voxels of a page are in its file, and how they are decoded."""

    form: PageForm
    """What it holds."""
    plane: Plane | None
    """Where it is, if it lies in one piece as it is; else there are tiles or strips:"""
    segment: tuple[int, int]
    """Rows and columns of one."""
    offsets: NDArray[np.int64]
    """Byte at which each starts, x fastest."""
    sizes: NDArray[np.int64]
    """Bytes of each; 0 for those that were never written."""
    decode: Callable[..., Any]
    """tifffile's decoder, of bytes and the number of the tile or strip; safe in any thread."""
    nodata: float
    """What voxels are that were never written."""


def page_at(file: TiffFile, offset: int | None) -> TiffPage:
    """Return the page whose directory starts at a byte of an open file; None for the first page."""
    if offset is None or offset == file.pages.first.offset:
        return file.pages.first
    file.filehandle.seek(offset)
    return TiffPage(file, 0)


def stored_page(file: TiffFile, page: TiffPage, name: str) -> StoredPage:
    """Take from a page of an open file what is needed to read it later.

    Raises:
        UsageError: it is not supported, or cannot be decompressed here.
        CorruptDataError: it lists too few tiles or strips.
    """
    form = page_form(page, name)
    check_decodes(page, name)
    plane, (high, wide) = None, segment_shape(page)
    if page.is_final:
        dtype = np.dtype(form.dtype).newbyteorder(file.byteorder)
        plane = Plane(page.dataoffsets[0], form.rows, form.columns, dtype)
    needed = ceil_div(form.rows, high) * ceil_div(form.columns, wide)
    if min(len(page.dataoffsets), len(page.databytecounts)) < needed:
        raise CorruptDataError(
            f"{name} lists {len(page.dataoffsets)} tiles or strips where {needed} are needed; copy "
            "it again"
        )
    return StoredPage(
        form,
        plane,
        segment=(high, wide),
        offsets=np.array(page.dataoffsets, np.int64),
        sizes=np.array(page.databytecounts, np.int64),
        decode=partial(page.decode, jpegtables=page.jpegtables, jpegheader=page.jpegheader),
        nodata=page.nodata,
    )


def read_page(file: BinaryIO, page: StoredPage, rows: slice, columns: slice, keep: Keep) -> Voxels:
    """Read a part of a page.

    Args:
        file: open for reading, by one thread.
        page: of this file.
        rows: start and stop along y.
        columns: start and stop along x.
        keep: returns a tile or strip by its number, and calls the function only if it must.

    Returns:
        A y, x array.

    Raises:
        CorruptDataError: the file ends before.
    """
    if page.plane is not None:
        return page.plane.read(file, rows, columns)
    part = np.zeros((rows.stop - rows.start, columns.stop - columns.start), page.form.dtype)
    high, wide = page.segment
    across = ceil_div(page.form.columns, wide)
    for i in range(rows.start // high, ceil_div(rows.stop, high)):
        for j in range(columns.start // wide, ceil_div(columns.stop, wide)):
            number = i * across + j
            inside = (min(high, page.form.rows - i * high), min(wide, page.form.columns - j * wide))
            segment = keep(number, partial(_decoded, file, page, number, inside))
            _paste(part, segment, (i * high - rows.start, j * wide - columns.start))
    return part


def _decoded(file: BinaryIO, page: StoredPage, number: int, inside: tuple[int, int]) -> Voxels:
    """Read and decompress one tile or strip, cut to what is inside the page."""
    size = int(page.sizes[number])
    if not size:  # as libtiff leaves out what nobody wrote
        return np.full(inside, page.nodata, page.form.dtype)
    file.seek(int(page.offsets[number]))
    content = file.read(size)
    if len(content) < size:
        raise CorruptDataError(
            f"{file.name} is cut short: it ends within tile or strip {number} of a page; copy it "
            "again"
        )
    voxels, _, _ = page.decode(content, number)
    whole: Voxels = voxels[0, : inside[0], : inside[1], 0]
    if whole.shape != inside:
        raise CorruptDataError(
            f"tile or strip {number} of a page of {file.name} holds {whole.shape} voxels instead "
            f"of {inside}; copy it again"
        )
    return whole


def _paste(part: Voxels, segment: Voxels, at: tuple[int, int]) -> None:
    """Copy what overlaps of a segment whose first voxel is at ``at`` of a part."""
    here, there = [], []
    for start, n, whole in zip(at, segment.shape, part.shape, strict=True):
        lo, hi = max(start, 0), min(start + n, whole)
        here.append(slice(lo, max(lo, hi)))
        there.append(slice(lo - start, max(lo, hi) - start))
    part[tuple(here)] = segment[tuple(there)]
