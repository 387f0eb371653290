"""Volumes as users look at them: opened, sliced like arrays, inspected."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from isochunk.core.geometry import Box, Spacing, Triple, triple
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.text_forms import read_box, read_spacing, read_window
from isochunk.core.voxels import Voxels
from isochunk.core.window import GREY, Window
from isochunk.engine.timeouts import Timeouts
from isochunk.engine.windowed import Opening, find_window, rounded, windowed
from isochunk.errors import UsageError
from isochunk.storage import volume as storage
from isochunk.storage.access import Access
from isochunk.storage.open import open_volume

if TYPE_CHECKING:
    import dask.array
    from distributed import Client

    from isochunk.engine.inspection import Inspection

Index: TypeAlias = int | slice | EllipsisType
"""What an axis is indexed with."""


@dataclass(frozen=True, repr=False)
class Volume:
    """A stored volume, sliced like an array (z, y, x) whose first voxel is 0, 0, 0.

    ``volume[0:10, 512:1024, 512:1024]`` reads those voxels and no others; steps and negative
    numbers mean what they mean to numpy. Nothing is kept of what was read but the chunks that
    tensorstore caches. It can be sent to other processes, which open it anew.
    """

    stored: storage.Volume
    """What reads boxes, on the grid that the format has."""
    access: Access
    """How it is reached."""
    number: int = 0
    """Level that is sliced, 0 for the finest."""

    @property
    def spec(self) -> VolumeSpec:
        """What is stored and where, all levels."""
        return self.stored.spec

    @property
    def _level(self) -> LevelSpec:
        return self.spec.levels[self.number]

    @property
    def shape(self) -> Triple:
        """Voxels along z, y and x."""
        return self._level.box.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""
        return np.dtype(self.spec.dtype)

    @property
    def ndim(self) -> int:
        """Axes: three."""
        return 3

    @property
    def spacing_nm(self) -> tuple[float, float, float]:
        """Voxel size z, y, x in nm."""
        z, y, x = map(float, self._level.spacing)
        return z, y, x

    def level(self, number: int) -> Volume:
        """Return a coarser level, 1 for the first after the finest.

        Raises:
            UsageError: there is none of that number.
        """
        if not 0 <= number < (count := len(self.spec.levels)):
            raise UsageError(
                f"{self.spec.url} has levels 0 to {count - 1}; got {number}: choose one of them"
            )
        return replace(self, number=number)

    def read(self, box: Box, level: int = 0) -> Voxels:
        """Read a box of the grid that the format has (its voxel offset included).

        Args:
            box: voxels of the level.
            level: counted from the finest, whichever level this is.

        Raises:
            GeometryError: the box leaves the level.
            StorageError: storage failed after retries.
        """
        return self.stored.read(box, level)

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Voxels:
        ranges = _ranges(index, self.shape)
        taken = [axis if isinstance(axis, range) else range(axis, axis + 1) for axis in ranges]
        if not all(taken):
            voxels: Voxels = np.empty(triple(map(len, taken)), self.dtype)
        else:
            box = Box(triple(map(min, taken)), triple(max(axis) + 1 for axis in taken))
            voxels = self.read(box.shift(self._level.box.lo), self.number)
            voxels = voxels[tuple(slice(None, None, axis.step) for axis in taken)]
        kept: Voxels = voxels[tuple(slice(None) if isinstance(a, range) else 0 for a in ranges)]
        return kept

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Voxels:  # noqa: FBT001
        whole: Voxels = np.asarray(self[...], dtype)
        return whole

    def dask(self) -> dask.array.Array:
        """Return the level as a lazy array; each worker opens the volume itself.

        Its chunks are whole stored objects, of about the size that Dask's ``array.chunk-size``
        says.
        """
        from isochunk.cluster.lazy import stored_array

        return stored_array(self.spec, self.access, self.number)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without open handles."""
        return _reopened, (self.spec.url, self.access, self.number)

    def __repr__(self) -> str:
        z, y, x = self.shape
        return f"<isochunk.Volume {self.spec.url} ({z}, {y}, {x}) {self.dtype}>"

    def _repr_html_(self) -> str:
        """Show it in a notebook: what it is, and its middle slices."""
        from isochunk.pages.thumbnail import volume_html

        return volume_html(self.stored)


def _reopened(url: str, access: Access, number: int) -> Volume:
    return Volume(open_volume(url, access, again=True), access, number)


def _ranges(index: Index | tuple[Index, ...], shape: Triple) -> list[range | int]:
    """Resolve what a volume is indexed with, an entry for each axis.

    Raises:
        IndexError: more axes than there are, a voxel beyond the volume, or no integer or slice.
    """
    wanted = list(index) if isinstance(index, tuple) else [index]
    if any(not isinstance(i, int | np.integer | slice | EllipsisType) for i in wanted):
        raise IndexError(f"a volume is indexed with integers and slices; got {index!r}")
    dots = [number for number, i in enumerate(wanted) if i is ...] or [len(wanted)]
    rest: list[Index] = [slice(None)] * (len(shape) - len(wanted) + (... in wanted))
    wanted[dots[0] : dots[0] + 1] = rest
    if len(dots) > 1 or len(wanted) != len(shape):
        raise IndexError(f"a volume has axes z, y and x; got {index!r}")
    found: list[range | int] = []
    for axis, i, n in zip("zyx", wanted, shape, strict=True):
        if isinstance(i, slice):
            found.append(range(n)[i])
        elif -n <= i < n:  # type: ignore[operator]  # no ellipsis is left
            found.append(range(n)[i])  # type: ignore[index]
        else:
            raise IndexError(f"{axis} is 0 to {n - 1}, or -{n} to -1 from its end; got {i}")
    return found


def open(
    url: str,
    endpoint_url: str | None = None,
    source_spacing: Spacing | str | None = None,
    channel: int | None = None,
    time: int | None = None,
    requester_pays: str | None = None,
) -> Volume:
    """Open a volume for reading.

    Args:
        url: a path or URL; the format is detected where it is not named.
        endpoint_url: S3-compatible server; default: ``AWS_ENDPOINT_URL``.
        source_spacing: voxel size z, y, x in nm, for volumes that do not say.
        channel: which of several, counting from 0.
        time: which of several time points, counting from 0.
        requester_pays: Google Cloud project that is billed where the bucket's requester pays.

    Raises:
        UsageError: the URL cannot be read as a volume.
        StorageError: storage failed.
    """
    size = None if source_spacing is None else read_spacing(source_spacing, "source_spacing")
    access = Access(
        endpoint_url=endpoint_url,
        requester_pays=requester_pays,
        spacing=size,
        channel=channel,
        time=time,
    )
    return Volume(open_volume(url, access), access)


def inspect(  # noqa: PLR0913 - what to look at, how it is reached, and where
    source: str | storage.Volume,
    box: Box | str | None = None,
    level: int | None = None,
    endpoint_url: str | None = None,
    source_spacing: Spacing | str | None = None,
    window: Window | str | tuple[float, float] | None = None,
    *,
    client: Client | None = None,
) -> Inspection:
    """Find sections that are lost, uneven or displaced; each is read coarsely, nothing is written.

    Args:
        source: a path or URL, or a volume that :func:`open` gave.
        box: source voxels to look at; None for all.
        level: level of the source to read; None for the finest whose sections are small.
        endpoint_url: as for :func:`open`.
        source_spacing: as for :func:`open`.
        window: stored values that become black and white, or ``auto``; None for uint8 and uint16.
        client: a Dask client, on whose workers sections are read; None for this process.

    Returns:
        What was found; ``inspection.table`` is the :class:`~isochunk.SectionTable`.

    Raises:
        UsageError: the source, the box or the level cannot be read.
        StorageError: storage failed.
        ClusterError: the cluster went away.
    """
    where = None if box is None else read_box(box, "box")
    size = None if source_spacing is None else read_spacing(source_spacing, "source_spacing")
    wanted = None if window is None else read_window(window, "window")
    if isinstance(source, str):
        opening = Opening(source, Access(endpoint_url=endpoint_url, spacing=size), wanted)
        volume, opening = opening.fixed()
        return inspect_on(volume, opening, client, where, level)
    if client is not None:
        raise UsageError(
            f"workers open a volume by its URL, and got {source.spec.url} open already; give "
            "inspect the URL, or leave client out"
        )
    from isochunk.engine.inspection import inspect_volume

    grey = windowed(source, find_window(wanted, source), GREY)
    return inspect_volume(rounded(grey), where, level)


def inspect_on(
    volume: storage.Volume,
    opening: Opening,
    client: Client | None,
    box: Box | None = None,
    level: int | None = None,
) -> Inspection:
    """Inspect a volume on the workers of a client, or in this process where there is none.

    Args:
        volume: what is inspected.
        opening: how workers open it.
        client: a Dask client.
        box: as for :func:`inspect`.
        level: as for :func:`inspect`.
    """
    # What inspects a volume brings scipy, which takes longer to load than all the rest.
    from isochunk.engine.inspection import inspect_volume

    if client is None:
        return inspect_volume(volume, box, level)
    from isochunk.cluster.inspection import DaskMeasure

    usual = Timeouts()
    timeouts = replace(usual, no_workers_s=getattr(client, "wait_s", None) or usual.no_workers_s)
    return inspect_volume(volume, box, level, DaskMeasure(client, volume.spec, opening, timeouts))
