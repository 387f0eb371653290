"""The source adapter for what tensorstore cannot open, over cloud-volume; reading only.

That is graphene servers, and precomputed volumes in encodings of cloud-volume's own (jxl, fpzip,
compresso, crackle, ...).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

import numpy as np
from cloudvolume import Bbox, CloudVolume

from isochunk.errors import GeometryError, StorageError
from isochunk.geometry import Box
from isochunk.predict import Voxels
from isochunk.spec import VolumeSpec
from isochunk.storage import precomputed
from isochunk.storage.access import Access, storage_error
from isochunk.storage.url import Location

T = TypeVar("T")


class CloudVolumeSource:
    """A volume that cloud-volume reads."""

    def __init__(self, location: Location, access: Access, cloud: CloudVolume) -> None:
        """Describe an opened CloudVolume."""
        self._location = location
        self._access = access
        self._cloud = cloud
        info = dict(cloud.meta.info)
        described = precomputed.volume_spec(location.url, info)
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
        bounds = self._spec.levels[level].box
        if box not in bounds:
            raise GeometryError(f"box {box} is outside level {level} of {self._spec.url}, {bounds}")
        xyz = Bbox(box.lo[::-1], box.hi[::-1])
        mip = self._mips[level]
        cutout = _within(
            lambda: np.asarray(self._cloud.image.download(xyz, mip)),
            f"reading box {box} of level {level} of", self._location, self._access.timeout_s,
        )  # (x, y, z, c)  # fmt: skip
        return np.ascontiguousarray(cutout[..., 0].T)


def open_cloudvolume(location: Location, access: Access) -> CloudVolumeSource:
    """Open a volume through cloud-volume.

    Raises:
        StorageError: nothing there, no access, or unreadable.
    """
    cloud = _within(
        lambda: CloudVolume(
            cloudpath(location, access),
            fill_missing=access.missing == "background",
            progress=False,
            cache=False,
            lru_bytes=access.cache_bytes,
        ),
        "opening", location, access.timeout_s,
    )  # fmt: skip
    return CloudVolumeSource(location, access, cloud)


def cloudpath(location: Location, access: Access) -> str:
    """Return the location as cloud-volume writes it."""
    if location.scheme == "graphene":
        return location.url
    endpoint = access.endpoint(location) if location.scheme == "s3" else None
    if endpoint:
        return f"precomputed://s3://{endpoint}/{location.bucket}/{location.path}"
    return f"precomputed://{location.url}"


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
    except (TimeoutError, StorageError) as error:
        raise storage_error(error, doing, location) from error
    except Exception as error:
        told = RuntimeError(f"{type(error).__name__}: {error}")
        raise storage_error(told, doing, location) from error
