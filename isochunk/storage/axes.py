"""Which of several stored channels and time points is read. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from isochunk.core.geometry import AXES
from isochunk.core.option_names import option
from isochunk.core.spec import VolumeSpec
from isochunk.errors import UsageError

CHANNEL_AXES = ("c", "ch", "channel", "channels")
"""Names of axes of channels."""
TIME_AXES = ("t", "time")
"""Names of axes of time points."""


@dataclass(frozen=True, slots=True)
class Pick:
    """One channel and one time point of an array."""

    channel: int | None = None
    """Number of the channel; None where there is one, or none was asked for."""
    time: int | None = None
    """Number of the time point; None where there is one, or none was asked for."""

    def of(self, spec: VolumeSpec) -> VolumeSpec:
        """Return a volume that is this channel and time point of what is stored."""
        return replace(spec, channel=self.channel, time=self.time)

    def index(self, axis: str) -> int:
        """Return the place on an axis of the array that is neither z, y nor x."""
        if axis in CHANNEL_AXES:
            return self.channel or 0
        return (self.time or 0) if axis in TIME_AXES else 0


def pick_of(spec: VolumeSpec) -> Pick:
    """Return what a volume is of what is stored."""
    return Pick(spec.channel, spec.time)


def check_pick(spec: VolumeSpec, asked: Pick) -> None:
    """Check that what was asked for was there to be chosen.

    Raises:
        UsageError: a volume of one channel or time point, and another than the first was asked for.
    """
    for field, chosen, wanted in (
        ("channel", spec.channel, asked.channel),
        ("time", spec.time, asked.time),
    ):
        if chosen is None:
            _place(spec.url, field, 1, wanted)


def pick_from(url: str, names: tuple[str, ...], shape: tuple[int, ...], asked: Pick) -> Pick:
    """Choose a channel and a time point of an array.

    Args:
        url: of the volume, for messages.
        names: of the array's axes, in any order.
        shape: of the array.
        asked: what the user chose.

    Returns:
        Numbers for those axes that have several places, None for the others: a choice that makes
        no difference is none.

    Raises:
        UsageError: z, y or x is not among the axes; several channels or time points, of which none
            or one that is not there was chosen; another axis of more than one place.
    """
    sizes = dict(zip(names, shape, strict=True))
    known = (*AXES, *CHANNEL_AXES, *TIME_AXES)
    other = [name for name, n in sizes.items() if name not in known and n != 1]
    if not set(AXES) <= set(names) or other:
        raise UsageError(
            f"{url} has axes {', '.join(names)} of {shape}; a z, y, x volume is supported, one of "
            "several if they lie along axes named c and t; axes of other names must have size 1"
        )
    return Pick(
        _place(url, "channel", _size(sizes, CHANNEL_AXES), asked.channel),
        _place(url, "time", _size(sizes, TIME_AXES), asked.time),
    )


def _size(sizes: dict[str, int], names: tuple[str, ...]) -> int:
    """Return the places on the axis that has one of some names; 1 where there is no such axis."""
    return max((sizes[name] for name in names if name in sizes), default=1)


def _place(url: str, field: str, count: int, asked: int | None) -> int | None:
    """Check a number, or that none is needed."""
    nouns = {"channel": "channel", "time": "time point"}
    there = f"{url} has {count} {nouns[field]}{'s' * (count > 1)}"
    if asked is None and count > 1:
        raise UsageError(f"{there}; choose one with {option(field, 'N')}, from 0 to {count - 1}")
    if asked is not None and asked >= count:
        advice = f"choose from 0 to {count - 1}" if count > 1 else "leave it out"
        raise UsageError(f"{there}, and {option(field)} is {asked}; {advice}")
    return asked if count > 1 else None
