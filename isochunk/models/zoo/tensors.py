"""What a package's description means for a volume: axes, extents, factor, halo and grey levels.

All of it as plain values; what cannot be done exactly, tile by tile, is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

from isochunk.core.geometry import AXES, Triple, triple
from isochunk.core.spec import Plane
from isochunk.errors import ModelError

if TYPE_CHECKING:
    from bioimageio.spec.model.v0_5 import InputTensorDescr, ModelDescr, OutputTensorDescr

    Tensor: TypeAlias = InputTensorDescr | OutputTensorDescr

BATCH, CHANNEL = "batch", "channel"

DEPTHS = {"uint8": 255.0, "uint16": 65535.0}
"""Types of grey levels, and what is white."""
INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)) | {
    "bool"
}
"""Types that round."""

FREE_EXTENT = 64
"""Voxels of axes that are free where others are fixed, or nearly so many."""
FREE_SLICES = 8
"""Slices that a network for slices is given at a time where its slices have one shape."""


@dataclass(frozen=True, slots=True)
class Linear:
    """``gain * v + offset``."""

    gain: float
    """Factor."""
    offset: float
    """What is added."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Values below and above are set to these; None for no limit."""

    low: float | None
    """Least value."""
    high: float | None
    """Largest value."""


Map: TypeAlias = Linear | Clip
"""What is done to each voxel by itself."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Which sizes an axis of the input may have: ``least + n * step``, or ``least`` alone."""

    least: int
    """The smallest."""
    step: int
    """0 where there is only one."""

    def fitting(self, size: int) -> int:
        """Return the smallest that holds ``size``."""
        if size <= self.least or not self.step:
            return self.least
        return self.least + math.ceil((size - self.least) / self.step) * self.step


@dataclass(frozen=True, slots=True)
class Layout:
    """How a package's network lies on a volume."""

    takes: tuple[str, ...]
    """Axes of its input, in order: batch, channel, z, y, x, or some of them."""
    gives: tuple[str, ...]
    """Axes of its output, in order."""
    one_by_one: bool
    """Whether it takes one slice at a time."""
    factor: Triple
    """Target voxels per source voxel."""
    cropped: Triple
    """Source voxels on each side that the answer lacks."""
    extents: tuple[Extent, Extent, Extent]
    """Sizes of its input; any for an axis along which slices lie."""
    halo: Triple | None
    """Source voxels on each side that are to be cropped; None where the package names none."""

    @property
    def across(self) -> int | None:
        """Axis (0, 1, 2) along which slices lie; None for a network for volumes."""
        missing = [axis for axis, name in enumerate(AXES) if name not in self.takes]
        return missing[0] if missing else None

    @property
    def plane(self) -> Plane:
        """Slices that it runs on."""
        planes: tuple[Plane, ...] = ("xy", "xz", "yz")
        return "3d" if self.across is None else planes[self.across]

    @property
    def shape(self) -> Triple | None:
        """The only shape that is given to it, rims that it crops left out; None for any."""
        if all(extent.step for extent in self.extents):
            return None
        free = (FREE_SLICES if axis == self.across else FREE_EXTENT for axis in range(3))
        return triple(
            e.fitting(n + 2 * c) - 2 * c
            for e, n, c in zip(self.extents, free, self.cropped, strict=True)
        )

    @property
    def alignment(self) -> Triple | None:
        """Grid on which tiles start, where steps are too coarse to be found; None to find it."""
        steps = triple(extent.step for extent in self.extents)
        return steps if all(steps) and max(steps) > 16 else None  # noqa: PLR2004


@dataclass(frozen=True, slots=True)
class Greys:
    """What values mean on both sides of a network."""

    black: float
    """Value of the package's input that is black."""
    white: float
    """And white."""
    before: tuple[Map, ...]
    """From a value of the package's input to what the network sees."""
    after: tuple[Map, ...]
    """From the network's answer to a value of the package's output."""
    out_black: float
    """Value of the package's output that is black."""
    out_white: float
    """And white."""
    whole: bool
    """Whether the package's output is rounded down to integers, which isochunk leaves out."""


def layout_of(name: str, model: ModelDescr) -> Layout:
    """Return how a network lies on a volume.

    Raises:
        ModelError: it has axes, extents or a factor that a volume cannot be tiled with.
    """
    source, target = model.inputs[0], model.outputs[0]
    takes, gives = _axes(name, source), _axes(name, target)
    if {*takes} & {*AXES} != {*gives} & {*AXES}:
        raise ModelError(
            f"package {name!r} takes axes {', '.join(takes)} but gives {', '.join(gives)}; use a "
            "network whose input and output have the same axes of space"
        )
    factor, cropped, extents, halo = [1, 1, 1], [0, 0, 0], [Extent(1, 1)] * 3, [0, 0, 0]
    for axis, letter in enumerate(AXES):
        if letter not in takes:
            continue
        one, other = _named(source, letter), _named(target, letter)
        extents[axis] = _extent(name, one)
        factor[axis], cropped[axis] = _ratio(name, source, one, other)
        halo[axis] = math.ceil(getattr(other, "halo", 0) / factor[axis])
    batch = [axis for axis in (*source.axes, *target.axes) if axis.type == BATCH]
    return Layout(
        takes,
        gives,
        len(batch) < 2 or any(axis.size == 1 for axis in batch),  # noqa: PLR2004 - in and out
        triple(factor),
        triple(cropped),
        (extents[0], extents[1], extents[2]),
        triple(halo) if any(halo) else None,
    )


def _axes(name: str, tensor: Tensor) -> tuple[str, ...]:
    """Return the axes of a tensor by name; refuse those that a grey volume has not."""
    names = []
    for axis in tensor.axes:
        letter = str(axis.id)
        if axis.type == CHANNEL and axis.size != 1:
            raise ModelError(
                f"package {name!r} has {axis.size} channels in {tensor.id!r}; isochunk restores "
                "one channel; use a network with one"
            )
        if axis.type == "space" and letter not in AXES:
            raise ModelError(
                f"package {name!r} has axis {letter!r} in {tensor.id!r}; axes of space must be "
                "called z, y and x"
            )
        if axis.type not in (BATCH, CHANNEL, "space"):
            raise ModelError(
                f"package {name!r} has an axis of {axis.type}, {letter!r}, in {tensor.id!r}; "
                "isochunk restores volumes and slices; use a network with axes z, y and x"
            )
        names.append(letter if axis.type == "space" else str(axis.type))
    space = [letter for letter in names if letter in AXES]
    if len(space) < 2:  # noqa: PLR2004 - a slice
        raise ModelError(
            f"package {name!r} has {', '.join(names)} in {tensor.id!r}; use a network on volumes "
            "(z, y, x) or on slices (two of these)"
        )
    return tuple(names)


def _named(tensor: Tensor, letter: str) -> Any:
    return next(axis for axis in tensor.axes if str(axis.id) == letter)


def _extent(name: str, axis: Any) -> Extent:
    if isinstance(axis.size, int):
        return Extent(axis.size, 0)
    if hasattr(axis.size, "step"):
        return Extent(axis.size.min, axis.size.step)
    raise ModelError(
        f"package {name!r} takes {axis.id} only as large as {axis.size.axis_id}; tiles have "
        "extents of their own; give the axis a size of min and step"
    )


def _ratio(name: str, source: InputTensorDescr, one: Any, other: Any) -> tuple[int, int]:
    """Return an axis's factor, and how many source voxels the answer lacks on each side."""
    ratio = Fraction(one.scale).limit_denominator(10**6) / Fraction(other.scale).limit_denominator(
        10**6
    )
    if isinstance(other.size, int):
        if not isinstance(one.size, int):
            raise ModelError(
                f"package {name!r} always answers {other.size} voxels along {other.id}; use a "
                "network whose output grows with its input"
            )
        if ratio == 1 and other.size % one.size == 0:
            ratio = Fraction(other.size, one.size)
        lacks = one.size * ratio - other.size
    else:
        if (str(other.size.tensor_id), str(other.size.axis_id)) != (str(source.id), str(one.id)):
            raise ModelError(
                f"package {name!r} sizes {other.id} by {other.size.tensor_id}.{other.size.axis_id};"
                f" it must follow {source.id}.{one.id}"
            )
        lacks = Fraction(-other.size.offset)
    rim = lacks / (2 * ratio)
    if ratio.denominator != 1 or rim.denominator != 1 or rim < 0:
        raise ModelError(
            f"package {name!r} makes {other.id} {ratio} times as fine and {float(-lacks):+g} "
            "voxels longer; a network must have a whole factor, and lack as much on both sides, in "
            "whole source voxels"
        )
    return int(ratio), int(rim)


def greys_of(name: str, model: ModelDescr, seen: tuple[float, float] | None) -> Greys:
    """Return what values mean to a package.

    Args:
        name: of the package.
        model: its description.
        seen: least and largest value of its test input; None where it brings none.

    Raises:
        ModelError: values depend on more than the voxel itself, or have no known black and white.
    """
    source, target = model.inputs[0], model.outputs[0]
    before, ends = _maps(name, source.preprocessing)
    if ends in INTEGERS:
        raise ModelError(
            f"package {name!r} gives its network {ends}; end its preprocessing with ensure_dtype "
            "float32, so that the network sees numbers between grey levels too"
        )
    after, ends = _maps(name, target.postprocessing)
    black, white = _range(source) or _guessed(name, seen)
    found = _range(target)
    if found is None and before and not after:
        raise ModelError(
            f"package {name!r} normalises its input, but says neither what its output means nor "
            f"how to scale it back; add data.range to its output, or scale_linear to its "
            "postprocessing"
        )
    out_black, out_white = found or (black, white)
    return Greys(black, white, before, after, out_black, out_white, ends in INTEGERS)


def _range(tensor: Tensor) -> tuple[float, float] | None:
    """Return black and white of a tensor as it declares them."""
    data = tensor.data[0] if isinstance(tensor.data, Sequence) else tensor.data
    low, high = getattr(data, "range", (None, None))
    if low is not None and high is not None and low < high:
        return low, high
    return (0.0, DEPTHS[tensor.dtype]) if tensor.dtype in DEPTHS else None


def _guessed(name: str, seen: tuple[float, float] | None) -> tuple[float, float]:
    """Take floats without a range for grey levels of uint8, where the test input is such."""
    low, high = seen or (0.0, 0.0)
    if low >= 0 and 1 < high <= DEPTHS["uint8"]:
        return 0.0, DEPTHS["uint8"]
    shown = "brings no test input" if seen is None else f"has a test input of {low:g} to {high:g}"
    raise ModelError(
        f"package {name!r} does not say what is black and white: its input is of floats without a "
        f"range, and it {shown}; add data.range to its input, as [0, 255]"
    )


def _maps(name: str, steps: Iterable[Any]) -> tuple[tuple[Map, ...], str]:
    """Return processing as maps of single values, and the type that it ends with."""
    maps: list[Map] = []
    dtype, rounded = "float32", False
    for step in steps:
        if rounded:
            raise ModelError(
                f"package {name!r} rounds to {dtype} between its steps; leave that ensure_dtype out"
            )
        if step.id == "ensure_dtype":
            dtype = step.kwargs.dtype
            rounded = bool(maps) and dtype in INTEGERS
        elif step.id in KNOWN:
            maps.append(KNOWN[step.id](name, step.kwargs))
        elif step.id in STATISTICS:
            raise ModelError(
                f"package {name!r} normalises by {step.id}, with numbers of the tile at hand, so "
                "tiles would not join; replace it in the description by "
                "fixed_zero_mean_unit_variance with mean and std of your volume, or by scale_linear"
            )
        else:
            raise ModelError(
                f"package {name!r} asks for {step.id}, which makes no grey levels; isochunk knows "
                f"{', '.join((*KNOWN, 'ensure_dtype'))}; use a network that restores grey levels"
            )
    return tuple(maps), dtype


def _linear(name: str, kwargs: Any) -> Map:
    return Linear(_single(name, kwargs.gain), _single(name, kwargs.offset))


def _standard(name: str, kwargs: Any) -> Map:
    mean, std = _single(name, kwargs.mean), _single(name, kwargs.std)
    return Linear(1 / std, -mean / std)


def _clip(name: str, kwargs: Any) -> Map:
    if kwargs.min_percentile is not None or kwargs.max_percentile is not None:
        raise ModelError(
            f"package {name!r} clips at percentiles of the tile at hand, so tiles would not join; "
            "give clip a min and a max"
        )
    return Clip(kwargs.min, kwargs.max)


def _single(name: str, value: float | list[float]) -> float:
    if not isinstance(value, list):
        return float(value)
    if len(value) > 1:
        raise ModelError(
            f"package {name!r} scales {len(value)} entries of an axis differently; isochunk "
            "restores one channel, with one scale"
        )
    return float(value[0])


KNOWN: dict[str, Callable[[str, Any], Map]] = {
    "scale_linear": _linear,
    "fixed_zero_mean_unit_variance": _standard,
    "clip": _clip,
}
"""Processing of single values."""

STATISTICS = ("zero_mean_unit_variance", "scale_range", "scale_mean_variance")
"""Processing with statistics of what it is given."""
