"""A source whose sections are used as a section table says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isochunk.core.geometry import Box
from isochunk.core.mending import Mending
from isochunk.core.sections import SectionTable
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels
from isochunk.core.window import Window
from isochunk.engine.windowed import RoundedVolume, open_rounded
from isochunk.errors import UsageError
from isochunk.storage.access import Access
from isochunk.storage.volume import Volume

AUTO = "auto"
"""Says that the volume is to be inspected, instead of naming a table."""


@dataclass(frozen=True, slots=True)
class MendedVolume:
    """A volume read through a section table; coarser levels are read as they are stored."""

    volume: Volume
    """What is stored."""
    mending: Mending
    """How its sections are used."""

    @property
    def spec(self) -> VolumeSpec:
        """What is stored and where."""
        return self.volume.spec

    def read(self, box: Box, level: int = 0) -> Voxels:
        """Read a box; see :meth:`isochunk.storage.volume.Volume.read`.

        Returns:
            float32 in stored grey levels where any section of the box is mended, else as stored.
        """
        if level != 0:
            return self.volume.read(box, level)
        (start, *lo), (stop, *hi) = box.lo, box.hi
        first, end = self.mending.needs(start, stop)
        stored = self.volume.read(Box((first, lo[0], lo[1]), (end, hi[0], hi[1])))
        return self.mending.mended(stored, first, start, stop)


def mended(volume: Volume, mending: Mending | None) -> Volume:
    """Return a volume whose sections are mended; the volume itself where none is."""
    return volume if mending is None else MendedVolume(volume, mending)


def mending_of(table: SectionTable, spec: VolumeSpec) -> Mending:
    """Return how a table's volume is mended.

    Raises:
        UsageError: a section does not exist, or all are lost.
    """
    return Mending.of(table, spec.box.lo[0], spec.box.hi[0])


def open_mended(
    url: str, access: Access, window: Window | Literal["auto"] | None, sections: str | None
) -> tuple[Volume, Mending | None]:
    """Open a volume to be looked at, rounded, its sections used as a table says.

    Args:
        url: a path or URL.
        access: how it is reached.
        window: as :func:`isochunk.engine.windowed.open_rounded`.
        sections: as :func:`find_table`; None for sections as they are stored.

    Returns:
        The volume, and how it is mended; None where it is not.

    Raises:
        UsageError: the volume, its window or its table cannot be had.
        StorageError: it cannot be read.
    """
    volume = open_rounded(url, access, window)
    if sections is None:
        return volume, None
    through = MendedVolume(volume, mending_of(find_table(sections, volume), volume.spec))
    return RoundedVolume(through), through.mending


def find_table(wanted: str, volume: Volume) -> SectionTable:
    """Read a section table, or make one.

    Args:
        wanted: a TOML file, or ``auto`` for what :func:`isochunk.inspect` finds.
        volume: what the table is of.

    Raises:
        UsageError: the file cannot be read, is that of another volume, names a section that does
            not exist, or calls all of them lost.
        StorageError: the volume cannot be inspected.
    """
    if wanted == AUTO:
        # What inspects a volume brings scipy, which takes longer to load than all the rest.
        from isochunk.engine.inspection import inspect_volume

        table = inspect_volume(volume).table
    else:
        table = read_table(wanted)
    check_table(table, volume)
    return table


def check_table(table: SectionTable, volume: Volume) -> None:
    """Check that a table is that of a volume.

    Raises:
        UsageError: it is that of another, names a section that does not exist, or calls all lost.
    """
    table.check_source(volume.spec.url)
    mending_of(table, volume.spec)


def read_table(path: str) -> SectionTable:
    """Read a section table.

    Raises:
        UsageError: the file cannot be read, or is none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"section table {path} cannot be read: {error}; write one with isochunk inspect "
            "SOURCE --out FILE, or say --sections auto"
        ) from error
    return SectionTable.parse(text)
