"""MRC: an uncompressed volume behind a header, which mrcfile reads."""

from __future__ import annotations

import logging
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import mrcfile
from mrcfile.utils import data_dtype_from_header, data_shape_from_header

from isochunk.core.geometry import Spacing, triple
from isochunk.errors import CorruptDataError, UsageError
from isochunk.storage.access import Access
from isochunk.storage.files.kinds import check_single, file_spec, told
from isochunk.storage.files.raw import Plane, RawVolume, raw_chunk
from isochunk.storage.files.tiff_sizes import rounded
from isochunk.storage.ome import SPACING_HELP
from isochunk.storage.url import Location

log = logging.getLogger(__name__)

HEADER_BYTES = 1024
NM_PER_ANGSTROM = Fraction(1, 10)
MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
"""Voxel types by mode."""
AXES_IN_ORDER = ((1, 2, 3), (0, 0, 0))
"""What ``mapc``, ``mapr``, ``maps`` are where columns are x, rows y and sections z."""


def open_mrc(location: Location, access: Access) -> RawVolume:
    """Open a volume.

    Mode 0 is int8, as the standard and mrcfile have it, though some programs write it unsigned.

    Raises:
        UsageError: a mode not in ``MODES``, several volumes, or axes in another order; or the voxel
            size is not known.
        CorruptDataError: the header does not make sense, or the file is shorter than it says.
    """
    path = Path(location.path)
    with told(f"opening {location.url}"), mrcfile.open(path, header_only=True) as file:
        header = file.header
        _check_mode(int(header.mode), path)
        dtype, shape = data_dtype_from_header(header), data_shape_from_header(header)
        order = (int(header.mapc), int(header.mapr), int(header.maps))
        size = access.spacing or spacing_of(header)
        offset = HEADER_BYTES + int(header.nsymbt)
    if order not in AXES_IN_ORDER or min(shape) < 1:
        raise UsageError(
            f"{path} holds {shape} voxels, its columns, rows and sections along axes {order}; "
            "volumes with axes 1, 2, 3 (x, y, z) are supported"
        )
    check_single(str(path), dict(zip(("volumes",), shape[:-3], strict=False)))
    sections, rows, columns = triple((1, 1, *shape)[-3:])
    first = Plane(offset, rows, columns, dtype)
    end, found = offset + sections * rows * first.row_bytes, path.stat().st_size
    if found < end:
        raise CorruptDataError(
            f"{path} is cut short: its header tells of {end} bytes, and {found} are there; copy it "
            "again"
        )
    if size is None:
        raise UsageError(f"the voxel size of {location.url} is not known; {SPACING_HELP}")
    if dtype.name == "int8":
        log.info("%s: mode 0 is read as int8, as the standard of 2014 and mrcfile say", path)
    chunk = raw_chunk(columns, dtype.itemsize)
    spec = file_spec(location, ("mrc", dtype.name, "raw"), (sections, rows, columns), chunk, size)
    return RawVolume(spec, path, first)


def _check_mode(mode: int, path: Path) -> None:
    """Check that voxels are numbers that mrcfile reads.

    Raises:
        UsageError: they are not.
    """
    if mode not in MODES:
        known = ", ".join(f"{number} ({name})" for number, name in MODES.items())
        raise UsageError(f"{path} is of mode {mode}; {known} are supported, convert it to one")


def spacing_of(header: Any) -> Spacing | None:
    """Return the voxel size in nm that a header holds, as a cell in ångström and its voxels.

    None where there is no cell.
    """
    cell = [(float(header.cella[axis]), int(header[f"m{axis}"])) for axis in "zyx"]
    if not all(math.isfinite(length) and length > 0 and count > 0 for length, count in cell):
        return None
    return Spacing(*(rounded(length / count) * NM_PER_ANGSTROM for length, count in cell))
