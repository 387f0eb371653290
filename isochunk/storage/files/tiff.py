"""TIFF: a folder of sections, one file each, or one file of many pages; through tifffile.

No file is kept open: a read opens those it needs, so that threads share no position in a file.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path

import numpy as np
from tifffile import TiffFile, TiffPage, TiffPageSeries

from isochunk.core.geometry import Box, Spacing
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import CorruptDataError, NotFoundError, UsageError
from isochunk.storage.access import Access
from isochunk.storage.files.kept import KeptSegments
from isochunk.storage.files.kinds import check_single, file_spec, shortened, told
from isochunk.storage.files.numbering import number_sections
from isochunk.storage.files.raw import Plane, RawVolume, raw_chunk
from isochunk.storage.files.tiff_axes import AXIS_NAMES, picked_sections
from isochunk.storage.files.tiff_pages import (
    PageForm,
    StoredPage,
    check_decodes,
    encoding_of,
    page_at,
    page_chunk,
    page_form,
    read_page,
    stored_page,
)
from isochunk.storage.files.tiff_sizes import Sizes, imagej_size, ome_size, whole_spacing
from isochunk.storage.ome import SPACING_HELP
from isochunk.storage.url import Location
from isochunk.storage.volume import check_inside

log = logging.getLogger(__name__)

SAMPLED_FILES = 16
"""Sections of a folder looked at when it is opened; the others when they are read."""

KEPT_PAGES = 128
"""Sections of which it is kept where their tiles and strips are: more than a block reads."""

DESCRIPTION = 270
"""Code of the tag in which OME and others describe axes."""


@dataclass(frozen=True, slots=True)
class SectionPlace:
    """Where a section is."""

    path: Path
    """File."""
    offset: int | None
    """Byte at which the directory of its page starts; None for the first page."""


class TiffVolume:
    """A volume whose sections are pages of TIFF files."""

    def __init__(
        self, spec: VolumeSpec, sections: Sequence[SectionPlace | None], access: Access
    ) -> None:
        """Keep what is known.

        Args:
            spec: the volume.
            sections: where each is; None for lost ones, which are read as zeros.
            access: how many bytes of decoded tiles and strips are kept.
        """
        self._spec = spec
        self._sections = sections
        self.form = PageForm(*spec.box.shape[1:], spec.dtype)
        self._kept = KeptSegments(access.cache_bytes)
        self._page = lru_cache(KEPT_PAGES)(self._parsed)

    @property
    def spec(self) -> VolumeSpec:
        """What is stored and where."""
        return self._spec

    @property
    def files(self) -> list[Path]:
        """Files of the sections that are there."""
        return [place.path for place in self._sections if place is not None]

    def read(self, box: Box, level: int = 0) -> Voxels:
        """Read a box that lies inside ``spec.box`` as a z, y, x array of ``spec.dtype``.

        Raises:
            GeometryError: the box leaves the volume.
            UsageError: a section differs from the others in size or voxel type.
            StorageError: a file is damaged, gone, or not readable; the message names it.
        """
        check_inside(self._spec, level, box)
        voxels = np.zeros(box.shape, self._spec.dtype)
        _, rows, columns = box.slices((0, 0, 0))
        wanted = [(z, self._sections[z]) for z in range(box.lo[0], box.hi[0])]
        present = [(z, place) for z, place in wanted if place is not None]
        for path, places in groupby(present, lambda found: found[1].path):
            with told(f"reading box {box} of {path}"), path.open("rb") as file:
                for z, place in places:
                    page, keep = self._page(z, place), partial(self._keep, z)
                    voxels[z - box.lo[0]] = read_page(file, page, rows, columns, keep)
        return voxels

    def _parsed(self, z: int, place: SectionPlace) -> StoredPage:
        """Return where the voxels of a section are."""
        name = f"section {z} ({place.path.name})"
        with opened(place.path, f"opening {place.path}") as file:
            page = page_at(file, place.offset)
            check_alike(page, self.form, name)
            return stored_page(file, page, name)

    def _keep(self, z: int, number: int, decode: Callable[[], Voxels]) -> Voxels:
        """Return a tile or strip of a section, decoded only if it is not kept."""
        return self._kept.get((z, number), decode)


def check_alike(page: TiffPage, form: PageForm, name: str) -> None:
    """Check that a page is like the first.

    Raises:
        UsageError: it differs, or cannot be decompressed here.
    """
    found = page_form(page, name)
    if found != form:
        raise UsageError(
            f"{name} is {found}, and the first section {form} (y, x); sections of one volume must "
            "be alike, so crop or convert it"
        )
    check_decodes(page, name)


@contextmanager
def opened(path: Path, doing: str) -> Iterator[TiffFile]:
    """Open a file, with what goes wrong in it told in words; see :func:`kinds.told`."""
    with told(doing), TiffFile(path) as file:
        yield file


def open_tiff(location: Location, access: Access, *, again: bool = False) -> TiffVolume | RawVolume:
    """Open a folder of sections or a file of pages.

    Args:
        location: where it is.
        access: voxel size, what an absent section means, how much is kept.
        again: lost sections were told before, and some files looked at.

    Raises:
        UsageError: what is there is no single volume, or its voxel size is not known.
        StorageError: a file is damaged, gone, or not readable.
    """
    path = Path(location.path)
    if path.is_dir():
        volume, lost = _open_folder(path, location, access)
        if not again:
            _look_through(volume)
            if lost:
                log.warning("%s; they are lost and read as black", lost)
        return volume
    with opened(path, f"opening {path}") as file:
        return _open_pages(file, path, location, access)


def _open_folder(path: Path, location: Location, access: Access) -> tuple[TiffVolume, str]:
    """Open a folder of sections by the first of them; also tell which are lost."""
    with told(f"listing {path}"):
        found = number_sections(str(path), [entry.name for entry in path.iterdir()])
    lost = ""
    if found.absent:
        lost = f"{len(found.absent)} of {len(found.names)} sections of {path} have no file "
        lost += f"({shortened(found.absent)})"
        if access.missing == "error":
            raise NotFoundError(f"{lost}; restore them, or drop --missing error")
    with opened(path / found.present[0], f"opening {path / found.present[0]}") as file:
        page = file.pages.first
        form = page_form(page, found.present[0])
        size = voxel_size(file, location, access)
        chunk, encoding = page_chunk(page), encoding_of(page)
    shape = (len(found.names), form.rows, form.columns)
    spec = file_spec(location, ("tiff", form.dtype, encoding), shape, chunk, size)
    places = [None if name is None else SectionPlace(path / name, None) for name in found.names]
    return TiffVolume(spec, places, access), lost


def _look_through(volume: TiffVolume) -> None:
    """Check a few sections of a folder, the first and the last among them."""
    for place in spread(volume.files, SAMPLED_FILES):
        with opened(place, f"opening {place}") as file:
            check_alike(file.pages.first, volume.form, place.name)
            _check_one_section(file, place.name)


def spread(names: Sequence[Path], count: int) -> list[Path]:
    """Return up to ``count`` of some files, spread evenly, the first and the last among them."""
    steps = range(min(count, len(names)))
    return [names[i * (len(names) - 1) // max(1, len(steps) - 1)] for i in steps]


def _check_one_section(file: TiffFile, name: str) -> None:
    """Check that a file of a folder holds one section; further pages may be smaller copies."""
    pages = sum(not page.aspage().is_reduced for page in file.pages)
    if pages != 1:
        raise UsageError(
            f"{name} holds {pages} pages; in a folder each file is one section, so give such a "
            "file by itself, or split it"
        )


def _open_pages(
    file: TiffFile, path: Path, location: Location, access: Access
) -> TiffVolume | RawVolume:
    """Open a file of pages."""
    _check_complete(file, path)
    series = _only_series(file, path)
    sizes = list(zip(series.axes, series.shape, strict=True))
    if "S" in series.axes:  # channels within a pixel
        check_single(str(path), {"channels": dict(sizes)["S"]})
    stacked = [a for a, n in sizes[:-2] if a not in AXIS_NAMES and n > 1]
    if len(stacked) > 1 or series.axes[-2:] != "YX":
        raise UsageError(
            f"{path} has axes {series.axes} of {series.shape}; one stack of sections (y, x) is "
            "supported"
        )
    form = page_form(series.keyframe, path.name)
    check_decodes(series.keyframe, path.name)
    pick, sections = picked_sections(location.url, sizes[:-2], access.pick)
    shape = (len(sections), form.rows, form.columns)
    count = series.size // (form.rows * form.columns)
    size = voxel_size(file, location, access)
    if series.dataoffset is not None:
        dtype = series.dtype.newbyteorder(file.byteorder)
        plane_bytes = form.rows * form.columns * dtype.itemsize
        at = series.dataoffset + sections.start * plane_bytes
        first = Plane(at, form.rows, form.columns, dtype)
        if series.dataoffset + series.nbytes > file.filehandle.size:
            raise _cut_short(path, f"{count} sections")
        chunk = raw_chunk(form.columns, dtype.itemsize)
        spec = file_spec(location, ("tiff", form.dtype, "raw"), shape, chunk, size)
        return RawVolume(pick.of(spec), path, first, sections.step)
    pages = list(series.pages)
    if len(pages) != count:
        raise _cut_short(path, f"{count} sections, but {len(pages)} are there")
    found = [pages[number] for number in sections]
    places = [None if page is None else SectionPlace(path, page.offset) for page in found]
    encoding, chunk = encoding_of(series.keyframe), page_chunk(series.keyframe)
    spec = file_spec(location, ("tiff", form.dtype, encoding), shape, chunk, size)
    return TiffVolume(pick.of(spec), places, access)


def _only_series(file: TiffFile, path: Path) -> TiffPageSeries:
    """Return the stack of a file that holds one.

    Raises:
        UsageError: its pages differ, or it is one of several files of an OME-TIFF.
    """
    if len(file.series) != 1:
        listed = [f"{'x'.join(map(str, s.shape))} {s.dtype}" for s in file.series]
        raise UsageError(
            f"{path} holds {len(listed)} stacks, or pages that differ in size or voxel type "
            f"({shortened(listed)}); save one stack as a file of its own"
        )
    series = file.series[0]
    if series.is_multifile:
        raise UsageError(
            f"{path} is one of several files of an OME-TIFF; save the volume as one file, or as a "
            "folder of plain sections"
        )
    return series


def _check_complete(file: TiffFile, path: Path) -> None:
    """Check that the description is there, that the chain of pages ends, and ImageJ's count.

    tifffile takes what it finds; a stack that was cut short must not become a thinner one.
    """
    first = file.pages.first
    if DESCRIPTION in _directory(file, first.offset)[0] and DESCRIPTION not in first.tags:
        raise _cut_short(path, "a description of its axes, which is not there")
    if _directory(file, file.pages[len(file.pages) - 1].offset)[1]:
        raise _cut_short(path, f"more than {len(file.pages)} pages")
    images = int((file.imagej_metadata or {}).get("images", 1))
    stored = sum(s.size for s in file.series) // max(1, file.pages.first.size)
    if images > stored:
        raise _cut_short(path, f"{images} images, but {stored} are there")


def _directory(file: TiffFile, offset: int) -> tuple[tuple[int, ...], int]:
    """Return the codes of the tags of a page, and where the next page's are; 0 for none."""
    form, handle = file.tiff, file.filehandle
    handle.seek(offset)
    count = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))[0]
    code = struct.Struct(f"{form.byteorder}H{form.tagsize - 2}x")
    tags = tuple(tag for (tag,) in code.iter_unpack(handle.read(count * form.tagsize)))
    return tags, int(struct.unpack(form.offsetformat, handle.read(form.offsetsize))[0])


def _cut_short(path: Path, told_by_metadata: str) -> CorruptDataError:
    return CorruptDataError(
        f"{path} is cut short: its metadata tell of {told_by_metadata}; copy it again"
    )


def voxel_size(file: TiffFile, location: Location, access: Access) -> Spacing:
    """Return the voxel size: what the user says, else OME's, else ImageJ's.

    Raises:
        UsageError: nobody says.
    """
    if access.spacing is not None:
        return access.spacing
    tags = file.pages.first.tags
    found: Sizes = (None, None, None)
    if file.is_ome and file.ome_metadata:
        found = ome_size(file.ome_metadata)
    elif file.imagej_metadata:
        names = {"x": "XResolution", "y": "YResolution"}
        quotients = {axis: tags[name].value for axis, name in names.items() if name in tags}
        found = imagej_size(file.imagej_metadata, quotients)
    size = whole_spacing(found)
    if size is None:
        known = " and ".join(
            f"{float(v):g} nm along {a}" for a, v in zip("zyx", found, strict=True) if v
        )
        raise UsageError(
            f"the voxel size of {location.url} is not known"
            f"{f' (only {known})' if known else ''}; {SPACING_HELP}"
        )
    return size
