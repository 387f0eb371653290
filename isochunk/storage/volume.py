"""What the rest of isochunk asks of storage: voxels of boxes, and bytes of keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from isochunk.core.geometry import Box, reflected
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import GeometryError


class Volume(Protocol):
    """A stored volume that can be read by box."""

    @property
    def spec(self) -> VolumeSpec:
        """What is stored and where."""
        ...

    def read(self, box: Box, level: int = 0) -> Voxels:
        """Read a box that lies inside ``spec.levels[level].box`` as a z, y, x array.

        Raises:
            StorageError: storage failed after retries; the message names box and URL.
        """
        ...


class WritableVolume(Volume, Protocol):
    """A stored volume that can be written by whole stored objects."""

    def write(self, box: Box, voxels: Voxels, level: int = 0) -> None:
        """Write whole stored objects; each object is written once. All-zero objects are not stored.

        Raises:
            StorageError: storage failed after retries.
        """
        ...

    def start_write(self, box: Box, voxels: Voxels, level: int = 0) -> Callable[[], None]:
        """Start what :meth:`write` does; the answer waits for the end, and raises what it raises.

        The array must stay as it is until then.
        """
        ...

    def encoded_bytes(self, box: Box, level: int = 0) -> int:
        """Return the bytes of the objects of a box, as they were stored last.

        0 where storage would have to be asked for it: it is told by targets in memory.
        """
        ...


class ObjectStore(Protocol):
    """Bytes by key below one URL."""

    url: str

    def get(self, key: str) -> bytes | None:
        """Return the bytes, or None if the key does not exist."""
        ...

    def get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the bytes of each key, asked for at the same time; None where it is absent."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Write or replace one object atomically."""
        ...

    def keys(self, prefix: str = "") -> list[str]:
        """List keys that start with ``prefix``, sorted."""
        ...

    def exists(self, key: str) -> bool:
        """Tell whether a key exists."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete keys; those that do not exist are no error."""
        ...


def check_inside(spec: VolumeSpec, level: int, box: Box) -> None:
    """Check that a level holds all voxels of a box.

    Raises:
        GeometryError: it does not.
    """
    bounds = spec.levels[level].box
    if box not in bounds:
        raise GeometryError(f"box {box} is outside level {level} of {spec.url}, {bounds}")


def read_reflected(volume: Volume, box: Box) -> Voxels:
    """Read a box that may reach beyond the volume, continued by half-sample reflection.

    Only voxels that exist are read, each once, whatever the volume's thickness.

    Args:
        volume: where to read, at its finest level.
        box: global source box of any position.

    Returns:
        Array of ``box.shape``.
    """
    bounds = volume.spec.box
    if box in bounds:
        return volume.read(box)
    index = [
        reflected(lo, hi, start, stop)
        for lo, hi, start, stop in zip(box.lo, box.hi, bounds.lo, bounds.hi, strict=True)
    ]
    z, y, x = index
    lo = (int(z.min()), int(y.min()), int(x.min()))
    inside = Box(lo, (int(z.max()) + 1, int(y.max()) + 1, int(x.max()) + 1))
    return volume.read(inside)[np.ix_(z - lo[0], y - lo[1], x - lo[2])]
