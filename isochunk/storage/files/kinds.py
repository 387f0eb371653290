"""Which kind of file a path is, by its content first; and what every kind has in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

from isochunk.core.geometry import Box, Spacing, Triple
from isochunk.core.spec import Format, LevelSpec, VolumeSpec
from isochunk.errors import (
    AccessError,
    CorruptDataError,
    IsochunkError,
    NotFoundError,
    StorageError,
    UsageError,
)
from isochunk.storage.access import CREDENTIALS
from isochunk.storage.target import MARKERS
from isochunk.storage.url import FILE_FORMATS, FileFormat, Location

SUFFIXES: Mapping[str, FileFormat] = {
    ".tif": "tiff",
    ".tiff": "tiff",
    ".btf": "tiff",
    ".tf8": "tiff",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
    ".mrc": "mrc",
    ".map": "mrc",
    ".rec": "mrc",
}
"""Formats by the end of a name; what is inside counts for more."""

NAMES: Mapping[FileFormat, str] = {"tiff": "TIFF", "hdf5": "HDF5", "mrc": "MRC"}
"""Formats as people write them."""

FILES_ONLY = (
    "TIFF, HDF5 and MRC are read from local or shared file systems only; copy it there, or convert "
    "it once to precomputed or OME-Zarr with --model identity and put that into the bucket"
)

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HDF5_START, HDF5_PLACES = b"\x89HDF\r\n\x1a\n", (0, 512, 1024, 2048)
MRC_WORD, MRC_PLACE = b"MAP", 208
HEAD_BYTES = 4096


def is_tiff_name(name: str) -> bool:
    """Tell whether a file name is that of a TIFF; hidden files are none."""
    return not name.startswith(".") and SUFFIXES.get(Path(name).suffix.lower()) == "tiff"


def format_of_content(head: bytes) -> FileFormat | None:
    """Tell the format by the first ``HEAD_BYTES`` of a file; None for none of these."""
    if head[:4] in TIFF_STARTS:
        return "tiff"
    if any(head[at : at + len(HDF5_START)] == HDF5_START for at in HDF5_PLACES):
        return "hdf5"
    return "mrc" if head[MRC_PLACE : MRC_PLACE + len(MRC_WORD)] == MRC_WORD else None


def file_format(location: Location) -> FileFormat | None:
    """Tell whether a location is a TIFF, HDF5 or MRC file, or a folder of TIFF sections.

    A volume is found again by its URL alone, so a named format must be what is found.

    Raises:
        UsageError: the URL names one of these formats, and it is none, or not a local file.
        NotFoundError: nothing is there, and a file of these formats is asked for.
        AccessError: it may not be read.
        CorruptDataError: the file is empty.
    """
    named = next((f for f in FILE_FORMATS if f == location.format), None)
    if location.scheme != "file":
        if named:
            raise UsageError(f"{location.url}: {FILES_ONLY}")
        return None
    if location.format and not named:
        return None
    path = Path(location.path)
    with told(f"opening {location.url}"):
        if path.is_dir():
            return _folder_format(location, path, named)
        expected = named or SUFFIXES.get(path.suffix.lower())
        if not path.exists():
            if expected:
                raise NotFoundError(f"there is no file {path}; check the path")
            return None
        with path.open("rb") as file:
            found = format_of_content(file.read(HEAD_BYTES))
        if expected and not path.stat().st_size:
            raise CorruptDataError(f"{path} is empty (0 bytes); copy it again")
    wrong = expected if found is None else named if named != found else None
    if wrong:
        kind = NAMES[found] if found else "something else"
        raise UsageError(
            f"{path} is no {NAMES[wrong]} file by its content, but {kind}; check which file it is, "
            "or convert it"
        )
    return found


def _folder_format(location: Location, path: Path, named: FileFormat | None) -> FileFormat | None:
    """Tell whether a folder holds TIFF sections and nothing that is a volume of another format."""
    if named in ("hdf5", "mrc"):
        raise UsageError(f"{path} is a folder; give one {NAMES[named]} file")
    other = [name for name in MARKERS if (path / name).exists()]
    if other and named is None:
        return None
    if other:
        raise UsageError(
            f"{path} holds {', '.join(other)} of a volume in another format besides TIFF files; "
            "move either elsewhere"
        )
    if any(is_tiff_name(entry.name) for entry in path.iterdir()):
        return "tiff"
    if named:
        raise NotFoundError(f"no file of {path} ends in .tif or .tiff; check {location.url}")
    return None


@contextmanager
def told(doing: str) -> Iterator[None]:
    """Put what files and the libraries that read them raise into words.

    Args:
        doing: what is done, and to which file.

    Raises:
        NotFoundError: a file is not there (any more).
        AccessError: it may not be read.
        CorruptDataError: its content does not make sense.
        StorageError: the file system failed.
    """
    try:
        yield
    except (IsochunkError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"{doing}: {error.filename} is not there; check the path") from error
    except PermissionError as error:
        raise AccessError(f"{doing}: access refused; {CREDENTIALS['file']}") from error
    except Exception as error:  # each library has errors of its own; raised anew
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(f"{doing}: {error.strerror or error}") from error
        raise CorruptDataError(
            f"{doing}: the file is damaged or cut short: {error}; copy it again"
        ) from error


def file_spec(
    location: Location, form: tuple[Format, str, str], shape: Triple, chunk: Triple, size: Spacing
) -> VolumeSpec:
    """Describe a volume of one level whose first corner is at 0.

    Args:
        location: where it is.
        form: format, numpy name of the voxel type, and encoding.
        shape: voxels along z, y, x.
        chunk: what a read of one voxel costs, along z, y, x.
        size: of a voxel.
    """
    format_, dtype, encoding = form
    zero = Fraction(0)
    level = LevelSpec("", Box.from_shape(shape), size, chunk, None)
    return VolumeSpec(location.url, format_, dtype, encoding, (zero, zero, zero), (level,))


def shortened(names: Sequence[str], most: int = 5) -> str:
    """List the first of some names, and say how many there are besides."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def check_single(url: str, further: Mapping[str, int]) -> None:
    """Check that axes besides z, y, x of which none can be chosen have size 1.

    Args:
        url: of the volume.
        further: sizes of the other axes by name.

    Raises:
        UsageError: there is more than one.
    """
    several = {name: n for name, n in further.items() if n != 1}
    if several:
        listed = " and ".join(f"{n} along {name}" for name, n in several.items())
        raise UsageError(
            f"{url} holds more than one volume ({listed}); save the one that is meant as a file of "
            "its own"
        )
