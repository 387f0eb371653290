"""Which volumes can be trained on: checked before anything is written."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from isochunk.core.geometry import AXES, Triple, triple
from isochunk.core.sections import SectionTable
from isochunk.core.spec import Intensity
from isochunk.engine.mended import (
    AUTO,
    MendedVolume,
    check_table,
    find_table,
    mended,
    mending_of,
    read_table,
)
from isochunk.errors import UsageError
from isochunk.planning.intensity import measure_intensity, sample_boxes
from isochunk.storage.open import check_supported
from isochunk.storage.volume import Volume
from isochunk.train.config import TrainConfig
from isochunk.train.data import Source

log = logging.getLogger(__name__)

LEAST_ANISOTROPY = Fraction(3, 2)
"""How much coarser z must be for a volume to teach itself."""

SUSPECT = 0.05
"""By how much neighbours along z may be more alike than along another axis before z cannot be the
coarse axis."""

COMPARED_BOXES = 8
"""Boxes in which neighbours are compared."""


def use_volume(volume: Volume, config: TrainConfig) -> Source:
    """Check that a volume can teach what a config asks for, and measure its intensity.

    Raises:
        UsageError: it is constant, or its voxels have the wrong proportions.
        StorageError: it cannot be read.
    """
    check_supported(volume.spec, "grey_window")
    _require_proportions(volume, config)
    if config.mode == "self":
        require_coarse(volume, config.averages)
    measured = measure_intensity(volume, "standard")  # refuses a volume with nothing to learn
    if config.normalisation == "range":
        measured = Intensity.full_range(volume.spec.dtype)
    mending = volume.mending if isinstance(volume, MendedVolume) else None
    return Source(volume, measured, mending)


def with_sections(
    config: TrainConfig, volumes: tuple[Volume, ...]
) -> tuple[TrainConfig, tuple[Volume, ...]]:
    """Have volumes read through their section tables, where a config asks for that.

    Returns:
        The config, with the tables' digests for what named them, and the volumes.

    Raises:
        UsageError: a table cannot be read, is that of none of the volumes, or does not fit.
        StorageError: a volume cannot be inspected.
    """
    wanted = config.sections
    if not wanted:
        return config, volumes
    tables: list[SectionTable | None]
    if wanted == AUTO:
        tables = [find_table(wanted, volume) for volume in volumes]
    else:
        read = read_table(wanted)
        of_one = [read.is_of(volume.spec.url) for volume in volumes]
        # That of none of them is refused by the first.
        which = of_one.index(True) if any(of_one) else 0
        check_table(read, volumes[which])
        tables = [read if i == which else None for i in range(len(volumes))]
    digests = ", ".join("none" if table is None else table.digest for table in tables)
    through = (
        mended(volume, None if table is None else mending_of(table, volume.spec))
        for volume, table in zip(volumes, tables, strict=True)
    )
    return replace(config, sections=digests), tuple(through)


def with_factors(config: TrainConfig, volumes: tuple[Volume, ...]) -> TrainConfig:
    """Fill in the factors that a config leaves open.

    Raises:
        UsageError: volumes differ in how much coarser z is.
    """
    own = config.network.own_factor
    found = {anisotropy(v, a) for v in volumes for a in config.averages}
    if config.factors or own is not None:
        factors = config.factors or (own or Fraction(1),)
        coarse = found - {Fraction(1)}  # isotropic ones are made coarse as the network learns it
        least, most = min(factors), max(factors)
        if config.mode != "supervised" and any(not least <= a <= most for a in coarse):
            log.warning(
                "z is coarser by %s, but the network learns x %s", _listed(coarse), _listed(factors)
            )
        return replace(config, factors=factors)
    if len(found) != 1:
        raise UsageError(
            f"z of the sources is coarser by {_listed(found)}; say with --factor what to learn"
        )
    return replace(config, factors=tuple(found))


def anisotropy(volume: Volume, average: Triple) -> Fraction:
    """Return how much coarser z is than x once blocks are averaged."""
    z, _, x = (s * a for s, a in zip(volume.spec.spacing, average, strict=True))
    return z / x


def require_coarse(volume: Volume, averages: Iterable[Triple]) -> None:
    """Refuse a volume that cannot teach itself.

    Raises:
        UsageError: z is hardly coarser than x, or its axes seem to be in another order.
    """
    for average in averages:
        coarser = anisotropy(volume, average)
        if coarser < LEAST_ANISOTROPY:
            raise UsageError(
                f"{volume.spec.url} has voxels of {volume.spec.spacing} nm (z, y, x), averaged "
                f"{triple(average)}: z is coarser by {float(coarser):.3g}, but a volume that "
                f"teaches itself needs at least {float(LEAST_ANISOTROPY)}; choose mode supervised"
            )
    require_coarse_z(volume)


def require_coarse_z(volume: Volume) -> None:
    """Refuse a volume whose neighbours are less alike along y or x than along z.

    Raises:
        UsageError: the axes seem to be stored in another order than the volume says.
    """
    alike = likeness(volume)
    worst = int(np.nanargmin(alike)) if np.isfinite(alike).any() else 0
    if worst and alike[0] - alike[worst] > SUSPECT:
        raise UsageError(
            f"{volume.spec.url} says that z is its coarse axis, but neighbours along "
            f"{AXES[worst]} are less alike (correlation {alike[worst]:.2f}) than along z "
            f"({alike[0]:.2f}); check the order of its axes"
        )


def likeness(volume: Volume) -> NDArray[np.float64]:
    """Return the correlation of neighbours along z, y and x over some boxes; NaN if unknown."""
    level = volume.spec.levels[0]
    products, squares = np.zeros(3), np.zeros(3)
    for box in islice(sample_boxes(level.box, level.chunk), COMPARED_BOXES):
        voxels = volume.read(box).astype(np.float64)
        voxels -= voxels.mean()
        for axis in range(3):
            one, other = (np.moveaxis(voxels, axis, 0)[part] for part in (np.s_[1:], np.s_[:-1]))
            products[axis] += float((one * other).sum())
            squares[axis] += math.sqrt(float((one**2).sum()) * float((other**2).sum()))
    with np.errstate(invalid="ignore"):
        return products / squares


def _require_proportions(volume: Volume, config: TrainConfig) -> None:
    spacing, url = volume.spec.spacing, volume.spec.url
    for average in config.averages:
        z, y, x = (s * a for s, a in zip(spacing, average, strict=True))
        found = f"{url} has voxels of {spacing} nm (z, y, x), averaged {triple(average)}"
        if y != x:
            raise UsageError(f"{found}; training needs y and x alike: choose other averages")
        if config.network.lateral:
            continue
        if config.mode != "self" and z != x:
            raise UsageError(
                f"{found}; mode {config.mode} needs an isotropic volume: choose another source, "
                "averages that make it isotropic, or mode self"
            )


def _listed(factors: set[Fraction] | tuple[Fraction, ...]) -> str:
    return ", ".join(map(str, sorted(factors)))
