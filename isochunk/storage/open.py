"""Volumes in files, S3, GCS and http(s), through tensorstore.

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
from isochunk.storage.objects import Store, open_store
from isochunk.storage.source import TensorStoreVolume
from isochunk.storage.target import MARKERS, check_creatable, create_volume, open_target
from isochunk.storage.url import parse_url
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


def open_volume(url: str, access: Access = DEFAULT) -> Volume:
    """Open a volume for reading.

    Args:
        url: a path or URL; the format is recognised where it is not named.
        access: limits, retries, endpoint.

    Raises:
        NotFoundError: nothing is stored there, or nothing that is a volume.
        AccessError: storage refused.
        UsageError: a volume that is not supported; the message says what is.
    """
    location = parse_url(url)
    if location.format == "graphene":
        from isochunk.storage.cloudvolume import open_cloudvolume

        return open_cloudvolume(location, access)
    store = Store(location, access, access.cache_bytes)
    found = detect_volume(store)
    if found.spec.format == "precomputed" and found.spec.encoding not in precomputed.READABLE:
        from isochunk.storage.cloudvolume import open_cloudvolume

        log.info("%s: encoding %s, read by cloud-volume", found.spec.url, found.spec.encoding)
        return open_cloudvolume(location, access)
    return TensorStoreVolume(found.spec, store, found.axes, strict=_strict(found, access))


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
