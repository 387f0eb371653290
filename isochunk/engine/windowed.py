"""A source read through a window: grey levels that are not rounded, of whatever is stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from isochunk.core.geometry import Box
from isochunk.core.option_names import option
from isochunk.core.spec import VolumeSpec
from isochunk.core.voxels import Voxels, quantise
from isochunk.core.window import GREY, WINDOWED, Window, not_numbers
from isochunk.errors import UsageError
from isochunk.planning.window import measure_window
from isochunk.storage.access import Access
from isochunk.storage.open import open_volume
from isochunk.storage.volume import Volume


@dataclass(frozen=True, slots=True)
class WindowedVolume:
    """A volume read through a window, at every level."""

    volume: Volume
    """What is stored."""
    window: Window
    """Which values become black and white."""
    dtype: str
    """numpy name of the type whose range the grey levels have."""
    background: bool
    """Whether NaN and infinity are background, and not an error."""

    @property
    def spec(self) -> VolumeSpec:
        """What is stored and where; of the grey levels' type."""
        return replace(self.volume.spec, dtype=self.dtype)

    def read(self, box: Box, level: int = 0) -> Voxels:
        """Read a box; see :meth:`isochunk.storage.volume.Volume.read`.

        Returns:
            float32 grey levels, not rounded.

        Raises:
            UsageError: the box holds NaN or infinity, and that is not background.
        """
        stored = self.volume.read(box, level)
        grey = self.window.grey(stored, self.dtype)
        wrong = not_numbers(stored)
        if wrong is not None:
            if not self.background:
                raise _not_a_number(self.volume.spec.url, box, stored, wrong)
            grey[wrong] = 0
        return grey


@dataclass(frozen=True, slots=True)
class RoundedVolume:
    """Grey levels rounded to integers, for what only looks at a volume."""

    volume: Volume
    """What reads grey levels."""

    @property
    def spec(self) -> VolumeSpec:
        """What is stored and where; of the grey levels' type."""
        return self.volume.spec

    def read(self, box: Box, level: int = 0) -> Voxels:
        """Read a box; see :meth:`isochunk.storage.volume.Volume.read`."""
        return quantise(self.volume.read(box, level), np.dtype(self.spec.dtype))


def _not_a_number(url: str, box: Box, stored: Voxels, wrong: Voxels) -> UsageError:
    """Say where a box holds what is no number."""
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    z, y, x = (lo + i for lo, i in zip(box.lo, first, strict=True))
    return UsageError(
        f"box {box} of {url} holds {stored[first]} at z,y,x {z},{y},{x}, as {int(wrong.sum())} of "
        f"its {box.size} voxels do; say that they are background with "
        f"{option('missing', 'background')}, or store numbers there"
    )


def windowed(
    volume: Volume, window: Window | None, dtype: str, *, background: bool = False
) -> Volume:
    """Return a volume read through a window; the volume itself without one."""
    if window is None:
        return volume
    return WindowedVolume(volume, window, dtype, background)


def rounded(volume: Volume) -> Volume:
    """Return a volume of integers: what reads grey levels, rounded."""
    return RoundedVolume(volume) if isinstance(volume, WindowedVolume) else volume


def open_rounded(
    url: str, access: Access, wanted: Window | Literal["auto"] | None = None
) -> Volume:
    """Open a volume to be looked at or learnt from: its grey levels, rounded to uint8.

    Args:
        url: a path or URL.
        access: how it is reached.
        wanted: the window, or ``auto``; None for voxels as they are stored.

    Raises:
        UsageError: the volume, or its window, cannot be had.
        StorageError: it cannot be read.
    """
    return Opening(url, access, wanted).fixed()[0]


@dataclass(frozen=True, slots=True)
class Opening:
    """How a volume that is looked at is opened, in whichever process; see :func:`open_rounded`."""

    url: str
    """A path or URL."""
    access: Access
    """How it is reached."""
    window: Window | Literal["auto"] | None = None
    """Which values become black and white."""

    def fixed(self) -> tuple[Volume, Opening]:
        """Open it, and return how others open the same, its window measured."""
        stored = open_volume(self.url, self.access)
        window = find_window(self.window, stored)
        background = self.access.missing == "background"
        volume = rounded(windowed(stored, window, GREY, background=background))
        return volume, replace(self, window=window)


def find_window(wanted: Window | Literal["auto"] | None, volume: Volume) -> Window | None:
    """Return the window through which a volume is read, measured where that is asked for.

    Raises:
        UsageError: values of the volume's type can have none, or it cannot be measured.
        StorageError: a sampled box cannot be read.
    """
    spec = volume.spec
    if wanted is not None and spec.dtype not in WINDOWED:
        raise UsageError(
            f"{spec.url} holds {spec.dtype}, and windows are for {', '.join(WINDOWED)}; convert it "
            "first"
        )
    return measure_window(volume) if isinstance(wanted, str) else wanted
