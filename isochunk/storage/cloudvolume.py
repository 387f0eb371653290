"""The source adapter for what tensorstore cannot open, over cloud-volume; reading only.

That is graphene servers, and precomputed volumes in encodings of cloud-volume's own (jxl, fpzip,
compresso, crackle, ...).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from cloudvolume import Bbox, CloudVolume
from cloudvolume.chunks import NEEDS_INSTALL
from cloudvolume.secrets import CLOUD_VOLUME_DIR

from isochunk.core.geometry import Box
from isochunk.core.option_names import option
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import AccessError, UsageError
from isochunk.storage import precomputed
from isochunk.storage.access import CREDENTIALS, Access, storage_error, without_secrets
from isochunk.storage.url import Location
from isochunk.storage.volume import check_inside

T = TypeVar("T")


class CloudVolumeSource:
    """A volume that cloud-volume reads."""

    def __init__(self, location: Location, access: Access, cloud: CloudVolume) -> None:
        """Describe an opened CloudVolume."""
        self._location = location
        self._access = access
        self._cloud = cloud
        info = dict(cloud.meta.info)
        described = precomputed.volume_spec(location.url, info, access.pick)
        self._spec = replace(described, format="cloudvolume")
        keys = [str(scale["key"]) for scale in info["scales"]]
        self._mips = [keys.index(level.key) for level in described.levels]

    @property
    def spec(self) -> VolumeSpec:
        """What is stored and where."""
        return self._spec

    def read(self, box: Box, level: int = 0) -> Voxels:
        """Read a box that lies inside ``spec.levels[level].box`` as a z, y, x array.

        Raises:
            GeometryError: the box leaves the level.
            StorageError: storage failed after retries; the message names box and URL.
        """
        check_inside(self._spec, level, box)
        xyz = Bbox(box.lo[::-1], box.hi[::-1])
        mip = self._mips[level]
        cutout = _within(
            lambda: np.asarray(self._cloud.image.download(xyz, mip)),
            f"reading box {box} of level {level} of",
            self._location,
            self._access.timeout_s,
        )  # (x, y, z, c)
        return np.ascontiguousarray(cutout[..., self._spec.channel or 0].T)


def open_cloudvolume(location: Location, access: Access) -> CloudVolumeSource:
    """Open a volume through cloud-volume.

    Raises:
        StorageError: nothing there, no access, or unreadable.
        UsageError: an S3 endpoint, or who is billed, which cloud-volume cannot be told; a library
            that its encoding needs is not installed.
    """
    if access.requester_pays is not None and location.scheme == "gs":
        raise UsageError(
            f"{location.url} is read by cloud-volume, which cannot be told who pays for requests; "
            f"leave out {option('requester_pays')}, or copy the volume"
        )
    path = cloudpath(location, access)
    _check_keys(location, os.environ)
    cloud = _within(
        lambda: CloudVolume(
            path,
            fill_missing=access.missing == "background",
            progress=False,
            cache=False,
            lru_bytes=access.cache_bytes,
        ),
        "opening",
        location,
        access.timeout_s,
    )
    opened = CloudVolumeSource(location, access, cloud)
    encoding = opened.spec.encoding
    if encoding in NEEDS_INSTALL:
        raise UsageError(
            f"{location.url} is stored as {encoding}, which {NEEDS_INSTALL[encoding]} decodes, and "
            f"that is not installed; pip install {NEEDS_INSTALL[encoding]}"
        )
    return opened


def cloudpath(location: Location, access: Access) -> str:
    """Return the location as cloud-volume writes it."""
    if location.scheme == "graphene":
        return location.url
    if location.scheme == "s3" and (location.endpoint_url or access.endpoint_url):
        raise UsageError(
            f"{location.url} is read by cloud-volume, which takes an S3-compatible server from "
            "AWS_ENDPOINT_URL; set that instead of naming the endpoint"
        )
    return f"precomputed://{location.url}"


def _check_keys(location: Location, environment: Mapping[str, str]) -> None:
    """Say what cloud-volume would say with a KeyError."""
    needed = location.scheme == "s3" and "AWS_SECRET_ACCESS_KEY" in environment
    secrets = Path(CLOUD_VOLUME_DIR) / "secrets"
    if needed and "AWS_SESSION_TOKEN" not in environment and not any(secrets.glob("*aws-secret*")):
        raise AccessError(f"opening {location.url}: {CREDENTIALS['cloud-volume on s3']}")


def _within(call: Callable[[], T], doing: str, location: Location, timeout_s: float) -> T:
    """Call with a time-out; cloud-volume has none of its own.

    The thread is a daemon: one that hangs does not keep the process alive.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  handed over to the waiting thread
            future.set_exception(error)

    threading.Thread(target=run, name="cloud-volume", daemon=True).start()
    try:
        return future.result(timeout=timeout_s)
    except TimeoutError as error:
        raise storage_error(error, doing, location) from error
    except Exception as error:  # noqa: BLE001  raised anew below
        told = RuntimeError(f"{type(error).__name__}: {error}")
        raise storage_error(told, doing, location) from without_secrets(told)
