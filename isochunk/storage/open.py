"""Volumes in files, S3, GCS and http(s), through tensorstore, and what other libraries read.

A volume shares one tensorstore context: one chunk cache, one limit on requests, one policy of
retries. Every operation has a time-out. tensorstore must not be forked: start workers by spawn.
"""

from __future__ import annotations

import logging

from isochunk.core.option_names import option, option_of
from isochunk.core.spec import DTYPES, VolumeSpec
from isochunk.core.window import WINDOWED
from isochunk.errors import UsageError
from isochunk.storage import precomputed
from isochunk.storage.access import Access
from isochunk.storage.detect import DetectedVolume, detect_volume
from isochunk.storage.files.kinds import file_format
from isochunk.storage.objects import Store, open_store
from isochunk.storage.source import TensorStoreVolume
from isochunk.storage.target import MARKERS, check_creatable, create_volume, open_target
from isochunk.storage.url import FileFormat, Location, parse_url
from isochunk.storage.volume import Volume

__all__ = [
    "MARKERS",
    "Access",
    "check_creatable",
    "check_supported",
    "create_volume",
    "open_store",
    "open_target",
    "open_volume",
]

log = logging.getLogger(__name__)

DEFAULT = Access()


def open_volume(url: str, access: Access = DEFAULT, *, again: bool = False) -> Volume:
    """Open a volume for reading.

    Args:
        url: a path or URL; the format is recognised where it is not named.
        access: limits, retries, endpoint.
        again: it was looked through when a job was planned; what is odd was told then.

    Raises:
        NotFoundError: nothing is stored there, or nothing that is a volume.
        AccessError: storage refused.
        UsageError: a volume that is not supported; the message says what is.
    """
    location = parse_url(url)
    if location.format == "graphene":
        from isochunk.storage.cloudvolume import open_cloudvolume

        return open_cloudvolume(location, access)
    kind = file_format(location)
    if kind is not None:
        return _open_file(location, kind, access, again=again)
    store = Store(location, access, access.cache_bytes)
    found = detect_volume(store)
    if found.spec.format == "precomputed" and found.spec.encoding not in precomputed.READABLE:
        from isochunk.storage.cloudvolume import open_cloudvolume

        log.info("%s: encoding %s, read by cloud-volume", found.spec.url, found.spec.encoding)
        return open_cloudvolume(location, access)
    return TensorStoreVolume(found.spec, store, found.axes, strict=_strict(found, access))


def _open_file(location: Location, kind: FileFormat, access: Access, *, again: bool) -> Volume:
    """Open a TIFF, HDF5 or MRC file, or a folder of TIFF sections.

    Raises:
        UsageError: the library for it is not installed, or what :func:`open_volume` raises.
    """
    try:
        match kind:
            case "tiff":
                from isochunk.storage.files.tiff import open_tiff

                return open_tiff(location, access, again=again)
            case "hdf5":
                from isochunk.storage.files.hdf5 import open_hdf5

                return open_hdf5(location, access)
            case "mrc":
                from isochunk.storage.files.mrc import open_mrc

                return open_mrc(location, access)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{location.url} is read with the package {error.name}, which is not installed; "
            "pip install 'isochunk[files]', on workers too"
        ) from error


def _strict(found: DetectedVolume, access: Access) -> bool:
    if access.missing != "auto":
        return access.missing == "error"
    return found.spec.format == "precomputed" and not found.sparse


def check_supported(spec: VolumeSpec, window: str = "window") -> None:
    """Check that a source, read through its window if it has one, can be made isotropic.

    Args:
        spec: the source.
        window: field by which the caller is told of a window.

    Raises:
        UsageError: a voxel type other than uint8 and uint16.
    """
    if spec.dtype in DTYPES:
        return
    advice = "convert it first"
    if spec.dtype in WINDOWED:
        advice = (
            f"say which values are black and white with {option(window, 'LOW,HIGH')}, or "
            f"{option_of(window)} auto to measure them"
        )
    raise UsageError(
        f"{spec.url} holds {spec.dtype}; {' and '.join(DTYPES)} are used as they are: {advice}"
    )
