"""HDF5: one data set of a file, through h5py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from importlib import import_module
from typing import Any

import h5py
import numpy as np

from isochunk.core.geometry import AXES, Box, Spacing, triple
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.errors import NotFoundError, UsageError
from isochunk.storage.access import Access
from isochunk.storage.axes import Pick, pick_from
from isochunk.storage.files.kinds import check_single, file_spec, shortened, told
from isochunk.storage.files.raw import raw_chunk
from isochunk.storage.files.tiff_sizes import UNITS, rounded
from isochunk.storage.ome import SPACING_HELP
from isochunk.storage.url import Location
from isochunk.storage.volume import check_inside

RANK = 3

CACHE_SLOTS = 100_003
"""Places in h5py's table of decoded chunks: a prime, many more than chunks that fit its bytes."""

SIZES = {"element_size_um": "um", "resolution": "nm", "voxel_size": "nm"}
"""Attributes that hold the voxel size z, y, x, and their unit: of ilastik, pytorch-3dunet and
Fiji's plug-ins; of CREMI; of funlib. The last two may have ``units`` beside them."""


class Hdf5Volume:
    """A volume that is a data set of an HDF5 file; h5py lets one thread read at a time."""

    def __init__(
        self, spec: VolumeSpec, dataset: h5py.Dataset, index: tuple[int | None, ...]
    ) -> None:
        """Keep an open data set.

        Args:
            spec: the volume.
            dataset: open for reading; its file is closed with the last of it.
            index: for each of its axes the only position, or None for z, y and x.
        """
        self._spec = spec
        self._file = dataset.file  # closed when nothing of it is used any more
        self._dataset = dataset
        self._index = index

    @property
    def spec(self) -> VolumeSpec:
        """What is stored and where."""
        return self._spec

    def read(self, box: Box, level: int = 0) -> Voxels:
        """Read a box that lies inside ``spec.box`` as a z, y, x array of ``spec.dtype``.

        Raises:
            GeometryError: the box leaves the volume.
            StorageError: the file is damaged or not readable; the message names box and URL.
        """
        check_inside(self._spec, level, box)
        axes = iter(box.slices((0, 0, 0)))
        selection = tuple(next(axes) if at is None else at for at in self._index)
        voxels = np.empty(box.shape, self._spec.dtype)
        with told(f"reading box {box} of {self._spec.url}"):
            self._dataset.read_direct(voxels, selection)
        return voxels


def open_hdf5(location: Location, access: Access) -> Hdf5Volume:
    """Open a data set: the one that is named, or the only volume of the file.

    Raises:
        UsageError: there is no such data set, it is no single volume, its filter is not installed,
            or its voxel size is not known.
        StorageError: the file is damaged or not readable.
    """
    with told(f"opening {location.url}"):
        # Locks are taken where the file system has them, as many shared ones have not.
        file = h5py.File(
            location.path,
            "r",
            locking="best-effort",
            rdcc_nbytes=access.cache_bytes,
            rdcc_nslots=CACHE_SLOTS,
        )
        dataset = _dataset(file, location)
        location = replace(location, format="hdf5", dataset=dataset.name.strip("/"))
        pick, index = _index(dataset, location, access)
        encoding = _encoding(dataset, location)
        kept = [axis for axis, at in enumerate(index) if at is None]
        shape = triple(dataset.shape[axis] for axis in kept)
        dtype = dataset.dtype
        chunk = raw_chunk(shape[2], dtype.itemsize)
        if dataset.chunks is not None:
            chunk = triple(min(dataset.chunks[a], n) for a, n in zip(kept, shape, strict=True))
        attributes = dict(dataset.attrs)
        size = access.spacing or spacing_of(attributes)
    if size is None:
        raise UsageError(f"the voxel size of {location.url} is not known; {SPACING_HELP}")
    spec = file_spec(location, ("hdf5", dtype.name, encoding), shape, chunk, size)
    return Hdf5Volume(replace(pick.of(spec), corner_nm=corner_of(attributes)), dataset, index)


def _dataset(file: h5py.File, location: Location) -> h5py.Dataset:
    """Find the data set that is named, or the only one with three axes."""
    found = file.get(location.dataset) if location.dataset else None
    if isinstance(found, h5py.Dataset):
        return found
    volumes = _listed(file)
    listed = shortened([f"{d.name} {d.shape} {d.dtype}" for d in volumes], 12) or "none"
    if not location.dataset:
        if len(volumes) != 1:
            raise UsageError(
                f"{location.path} holds {len(volumes)} data sets of three axes or more: {listed}; "
                f"name one, as {location.path}:/path"
            )
        return volumes[0]
    what = "is a group" if isinstance(found, h5py.Group) else "is not there"
    raise NotFoundError(
        f"/{location.dataset} {what} in {location.path}; data sets of three axes or more: {listed}"
    )


def _listed(file: h5py.File) -> list[h5py.Dataset]:
    """Return the data sets of a file that may be volumes."""
    found = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim >= RANK:
            found.append(item)

    file.visititems(visit)
    return found


def _index(
    dataset: h5py.Dataset, location: Location, access: Access
) -> tuple[Pick, tuple[int | None, ...]]:
    """Tell which axes are z, y, x: those of these names, or the only three longer than 1.

    Returns:
        What was chosen of the others, and for each axis its only place, or None for z, y, x.

    Raises:
        UsageError: there are fewer or more, or the voxels are no numbers.
    """
    if dataset.ndim < RANK or dataset.dtype.kind not in "uif":
        raise UsageError(
            f"{location.url} has {dataset.ndim} axes {dataset.shape} of {dataset.dtype}; a data "
            "set of integers or floats with axes z, y, x is supported"
        )
    names = axis_names(dataset)
    if names is not None and tuple(n for n in names if n in AXES) == AXES:
        pick = pick_from(location.url, names, dataset.shape, access.pick)
        return pick, tuple(None if name in AXES else pick.index(name) for name in names)
    first, last = 0, dataset.ndim
    while last - first > RANK and dataset.shape[first] == 1:
        first += 1
    while last - first > RANK and dataset.shape[last - 1] == 1:
        last -= 1
    further = dataset.shape[first:last][:-RANK]
    check_single(location.url, {f"axis {first + i}": n for i, n in enumerate(further)})
    if last - first > RANK:
        raise UsageError(f"{location.url} has axes {dataset.shape}; save z, y, x as a data set")
    return Pick(), tuple(None if first <= axis < last else 0 for axis in range(dataset.ndim))


def axis_names(dataset: h5py.Dataset) -> tuple[str, ...] | None:
    """Return the names of a data set's axes, by its labels or as ilastik tags them, if all are."""
    labels = [dimension.label for dimension in dataset.dims]
    if not all(labels):
        try:
            labels = [axis["key"] for axis in json.loads(dataset.attrs["axistags"])["axes"]]
        except (KeyError, TypeError, ValueError):
            return None
    return tuple(str(label).lower() for label in labels) if len(labels) == dataset.ndim else None


def _encoding(dataset: h5py.Dataset, location: Location) -> str:
    """Return the name of a data set's last filter; those of hdf5plugin are registered if needed.

    Raises:
        UsageError: a filter is not installed.
    """
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(i) for i in range(settings.get_nfilters())]
    if any(not h5py.h5z.filter_avail(number) for number, *_ in filters):
        with suppress(ImportError):
            import_module("hdf5plugin")
    for number, _, _, name in filters:
        if not h5py.h5z.filter_avail(number):
            raise UsageError(
                f"{location.url} is compressed by HDF5 filter {number} ({name.decode()}), which is "
                "not installed; pip install hdf5plugin, on workers too"
            )
    return str(dataset.compression or (filters[-1][3].decode() if filters else "raw"))


def _three(value: Any) -> list[Fraction] | None:
    """Return the last three numbers of an attribute; None where it has not three finite ones."""
    numbers = np.ravel(value)
    if numbers.dtype.kind not in "uif" or numbers.size < RANK or not np.isfinite(numbers).all():
        return None
    return [rounded(float(n)) for n in numbers[-RANK:]]


def spacing_of(attributes: Mapping[str, Any]) -> Spacing | None:
    """Return the voxel size that a data set's attributes hold; None where they do not."""
    for name, unit in SIZES.items():
        lengths = _three(attributes[name]) if name in attributes else None
        if lengths is None or min(lengths) <= 0:
            continue
        given = attributes.get("units", unit) if name != "element_size_um" else unit
        units = [u.decode() if isinstance(u, bytes) else str(u) for u in np.ravel(given)]
        if any(u not in UNITS for u in units) or len(units) not in (1, RANK):
            continue
        each = units * RANK if len(units) == 1 else units
        return Spacing(*(n * UNITS[u] for n, u in zip(lengths, each, strict=True)))
    return None


def corner_of(attributes: Mapping[str, Any]) -> tuple[Fraction, Fraction, Fraction]:
    """Return where the first corner lies, in nm: CREMI's ``offset`` beside ``resolution``."""
    known = "resolution" in attributes and "units" not in attributes and "offset" in attributes
    z, y, x = (_three(attributes["offset"]) if known else None) or [Fraction(0)] * RANK
    return (z, y, x)
