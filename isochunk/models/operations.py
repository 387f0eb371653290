"""What each operation of a traced network does to places.

Each says on which grid its outputs lie and which inputs a range of outputs needs, and answers that
range from those inputs alone. Nothing is padded: padding only moves indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor
from torch.nn import functional

from isochunk.models.kernels import ONES, makes_one_map, transposed, upsampled_to_one_map
from isochunk.models.spans import (
    Arguments,
    Axis,
    Grid,
    Span,
    Spans,
    UninterpretableError,
    common_axis,
    inner,
    split_grid,
    split_spans,
)


@dataclass(frozen=True, slots=True)
class Window:
    """Convolution or pooling: a kernel that moves over the last dimensions."""

    function: Callable[[Arguments], Tensor]
    """Applies it without padding."""
    kernel: tuple[int, ...]
    """Taps along each spatial dimension."""
    stride: tuple[int, ...]
    """Inputs from one output to the next."""
    padding: tuple[int, ...]
    """Inputs by which the first output's kernel starts before the first input."""
    dilation: tuple[int, ...]
    """Inputs from one tap to the next."""

    def grid(self, inputs: Sequence[Grid]) -> Grid:
        """Return a grid of ``stride`` inputs."""
        head, tail = split_grid(inputs[0], len(self.kernel))
        return (*head, *(Axis(a.axis, a.step * s) for a, s in zip(tail, self.stride, strict=True)))

    def needs(self, want: Spans) -> list[Spans]:
        """Return the inputs under the kernels."""
        head, tail = split_spans(want, len(self.kernel))
        under = (
            (lo * s - p, (hi - 1) * s - p + d * (k - 1) + 1)
            for (lo, hi), k, s, p, d in zip(
                tail, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return [(*head, *under)]

    def run(self, arguments: Arguments, want: Spans) -> Tensor:
        """Apply without padding."""
        del want  # what was needed gives it
        return self.function(arguments)


@dataclass(frozen=True, slots=True)
class Transposed:
    """Transposed convolution."""

    kernel: tuple[int, ...]
    """Taps along each spatial dimension."""
    stride: tuple[int, ...]
    """Outputs from one input to the next."""
    padding: tuple[int, ...]
    """Outputs dropped before the first."""
    dilation: tuple[int, ...]
    """Outputs from one tap to the next."""

    def grid(self, inputs: Sequence[Grid]) -> Grid:
        """Return a grid of ``1 / stride`` inputs."""
        head, tail = split_grid(inputs[0], len(self.kernel))
        return (*head, *(Axis(a.axis, a.step / s) for a, s in zip(tail, self.stride, strict=True)))

    def needs(self, want: Spans) -> list[Spans]:
        """Return the inputs whose kernels reach ``want``."""
        head, tail = split_spans(want, len(self.kernel))
        under = (
            (-((d * (k - 1) - lo - p) // s), (hi - 1 + p) // s + 1)
            for (lo, hi), k, s, p, d in zip(
                tail, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        # Where a kernel is shorter than its stride some outputs have no input: one is read anyway.
        return [(*head, *((min(lo, hi - 1), hi) for lo, hi in under))]

    def run(self, arguments: Arguments, want: Spans) -> Tensor:
        """Apply, and drop what other inputs would add to."""
        dims = len(self.kernel)
        _, wanted = split_spans(want, dims)
        _, given = split_spans(self.needs(want)[0], dims)
        x, weight, bias = (arguments[name] for name in ("input", "weight", "bias"))
        first = [
            lo + p - start * s
            for (lo, _), (start, _), p, s in zip(
                wanted, given, self.padding, self.stride, strict=True
            )
        ]
        sizes = [hi - lo for lo, hi in wanted]
        plain = arguments["groups"] == 1 and set(self.dilation) == {1}
        full = [
            (stop - start - 1) * s + d * (k - 1) + 1
            for (start, stop), s, d, k in zip(
                given, self.stride, self.dilation, self.kernel, strict=True
            )
        ]
        if dims == len(ONES) and plain and makes_one_map(weight, self.stride):
            answer = upsampled_to_one_map(x, weight, bias, self.stride[0])
            known = [k - s for k, s in zip(self.kernel, self.stride, strict=True)]
            return inner(answer, zip(first, known, sizes, strict=True))
        # What the kernel itself can drop is never stored.
        drop = [
            max(0, min(a, whole - a - n)) for a, whole, n in zip(first, full, sizes, strict=True)
        ]
        short = [max(0, a + n - whole) for a, whole, n in zip(first, full, sizes, strict=True)]
        if dims == len(ONES) and plain:
            answer = transposed(x, weight, bias, self.stride, drop, short)
        else:
            function = (
                functional.conv_transpose1d,
                functional.conv_transpose2d,
                functional.conv_transpose3d,
            )[dims - 1]
            answer = function(
                x, weight, bias, self.stride, drop, short, arguments["groups"], self.dilation
            )
        return inner(answer, zip(first, drop, sizes, strict=True))


@dataclass(frozen=True, slots=True)
class Moved:
    """Padding, and slices with a step: output ``o`` is input ``o * step + start``."""

    start: tuple[int, ...]
    """For each dimension; 0 for those that stay."""
    step: tuple[int, ...]
    """For each dimension; 1 for those that stay."""

    def grid(self, inputs: Sequence[Grid]) -> Grid:
        """Return a grid of ``step`` inputs."""
        return tuple(
            None if axis is None else Axis(axis.axis, axis.step * step)
            for axis, step in zip(inputs[0], self.step, strict=True)
        )

    def needs(self, want: Spans) -> list[Spans]:
        """Return the same places by their numbers in the input."""
        return [
            tuple(
                None if span is None else (span[0] * step + start, (span[1] - 1) * step + start + 1)
                for span, start, step in zip(want, self.start, self.step, strict=True)
            )
        ]

    def run(self, arguments: Arguments, want: Spans) -> Tensor:
        """Take every ``step``-th."""
        del want  # what was needed gives it
        x: Tensor = arguments["self"]
        return x[tuple(slice(None, None, step) for step in self.step)]


@dataclass(frozen=True, slots=True)
class Resized:
    """Interpolation by ratios, with half-sample centres."""

    mode: str
    """As :func:`torch.nn.functional.interpolate` takes it."""
    ratio: tuple[Fraction, ...]
    """Inputs from one output to the next, along the last dimensions."""

    def grid(self, inputs: Sequence[Grid]) -> Grid:
        """Return a grid of ``ratio`` inputs."""
        head, tail = split_grid(inputs[0], len(self.ratio))
        return (*head, *(Axis(a.axis, a.step * r) for a, r in zip(tail, self.ratio, strict=True)))

    def needs(self, want: Spans) -> list[Spans]:
        """Return the inputs on either side, in whole periods of the ratio."""
        head, tail = split_spans(want, len(self.ratio))
        return [(*head, *(self._under(span, r) for span, r in zip(tail, self.ratio, strict=True)))]

    def run(self, arguments: Arguments, want: Spans) -> Tensor:
        """Interpolate whole periods, and crop."""
        dims = len(self.ratio)
        _, wanted = split_spans(want, dims)
        _, given = split_spans(self.needs(want)[0], dims)
        sizes = [int((hi - lo) / r) for (lo, hi), r in zip(given, self.ratio, strict=True)]
        smooth = self.mode.endswith("linear")
        source = arguments["input" if "input" in arguments else "self"]  # as its overload names it
        answer = functional.interpolate(
            source, sizes, mode=self.mode, align_corners=False if smooth else None
        )
        starts = [int(lo / r) for (lo, _), r in zip(given, self.ratio, strict=True)]
        parts = zip(wanted, starts, strict=True)
        return inner(answer, ((lo, a, hi - lo) for (lo, hi), a in parts))

    def _under(self, span: Span, ratio: Fraction) -> Span:
        lo, hi = span[0], span[1] - 1
        half = Fraction(1, 2)
        match self.mode:
            case "nearest":
                first, last = math.floor(lo * ratio), math.floor(hi * ratio)
            case "nearest-exact":
                first, last = math.floor((lo + half) * ratio), math.floor((hi + half) * ratio)
            case _:
                first = math.floor((lo + half) * ratio - half)
                last = math.ceil((hi + half) * ratio - half)
        period = ratio.numerator
        return (first // period * period, -(-(last + 1) // period) * period)


@dataclass(frozen=True, slots=True)
class Pointwise:
    """One voxel of each input makes one voxel; channels may mix.

    Concatenation, arithmetic, activations, normalisation by constants, matrices over channels.
    """

    function: Any
    """Takes the arguments."""
    ranks: tuple[int, ...]
    """Dimensions of each spatial input; they are aligned with the last ones of the output."""
    kept: tuple[int | None, ...]
    """For each dimension of the output, that of the inputs, counted from the last as -1; None for
    one that is not spatial in any."""

    def grid(self, inputs: Sequence[Grid]) -> Grid:
        """Return the grid that all inputs lie on."""
        return tuple(None if at is None else common_axis(inputs, at) for at in self.kept)

    def needs(self, want: Spans) -> list[Spans]:
        """Return the same voxels of each input."""
        by_place = {at: span for at, span in zip(self.kept, want, strict=True) if at is not None}
        return [tuple(by_place.get(at - rank) for at in range(rank)) for rank in self.ranks]

    def run(self, arguments: Arguments, want: Spans) -> Any:
        """Apply."""
        del want  # what was needed gives it
        return self.function(**arguments)


@dataclass(frozen=True, slots=True)
class Permuted:
    """Dimensions in another order."""

    order: tuple[int, ...]
    """For each dimension of the output, that of the input."""

    def grid(self, inputs: Sequence[Grid]) -> Grid:
        """Return the axes in the new order."""
        return tuple(inputs[0][at] for at in self.order)

    def needs(self, want: Spans) -> list[Spans]:
        """Return the same voxels."""
        return [tuple(want[self.order.index(at)] for at in range(len(self.order)))]

    def run(self, arguments: Arguments, want: Spans) -> Tensor:
        """Permute."""
        del want
        x: Tensor = arguments["self"]
        return x.permute(self.order)


@dataclass(frozen=True, slots=True)
class Reshaped:
    """Dimensions split and joined; see :func:`regrouped`."""

    inputs: int
    """Dimensions of the input."""
    sizes: tuple[int, ...]
    """Extents of the output's dimensions that are not spatial; others are ignored."""
    sources: tuple[tuple[int, Fraction] | None, ...]
    """For each spatial dimension of the output, that of the input and its inputs per output."""

    def grid(self, inputs: Sequence[Grid]) -> Grid:
        """Return finer grids where channels join an axis, coarser where they leave it."""
        grid: list[Axis | None] = []
        for source in self.sources:
            axis = None if source is None else inputs[0][source[0]]
            scale = 1 if source is None else source[1]
            grid.append(None if axis is None else Axis(axis.axis, axis.step * scale))
        return tuple(grid)

    def needs(self, want: Spans) -> list[Spans]:
        """Return the cells under ``want``."""
        spans: list[Span | None] = [None] * self.inputs
        for source, span in zip(self.sources, want, strict=True):
            if source is not None and span is not None:
                at, scale = source
                spans[at] = (math.floor(span[0] * scale), math.ceil(span[1] * scale))
        return [tuple(spans)]

    def run(self, arguments: Arguments, want: Spans) -> Tensor:
        """Reshape whole cells, and crop."""
        given = self.needs(want)[0]
        shape, crop = [], []
        for size, source, span in zip(self.sizes, self.sources, want, strict=True):
            cell = None if source is None else given[source[0]]
            if source is None or span is None or cell is None:
                shape.append(size)
                crop.append(slice(None))
                continue
            start, stop = (int(edge / source[1]) for edge in cell)
            shape.append(stop - start)
            crop.append(slice(span[0] - start, span[1] - start))
        x: Tensor = arguments["self"]
        return x.reshape(shape)[tuple(crop)]


@dataclass(frozen=True, slots=True)
class Item:
    """One of several answers."""

    index: int
    """Which."""

    def grid(self, inputs: Sequence[Grid]) -> Grid:
        """Return that of all answers."""
        return inputs[0]

    def needs(self, want: Spans) -> list[Spans]:
        """Return the same voxels."""
        return [want]

    def run(self, arguments: Arguments, want: Spans) -> Tensor:
        """Pick it."""
        del want
        answer: Tensor = arguments["self"][self.index]
        return answer


def regrouped(shape: Sequence[int], spatial: Sequence[bool], new: Sequence[int]) -> Reshaped:
    """Find out how the dimensions of a tensor became others.

    Both shapes fall into groups of dimensions of equal product. In each, a spatial dimension comes
    through whole, takes in the channels that follow it (``z, r`` to ``z * r``, as in a sub-pixel
    shuffle), or gives some up (``z * r`` to ``z, r``).

    Raises:
        UninterpretableError: spatial dimensions join, or follow channels that they join.
    """
    sources: list[tuple[int, Fraction] | None] = [None] * len(new)
    for old_group, new_group in _groups(shape, new):
        places = [at for at in old_group if spatial[at]]
        if not places:
            continue
        at = places[0]
        before = math.prod(shape[i] for i in old_group if i < at)
        targets = [j for j in new_group if new[j] != 1] or new_group[:1]
        if len(places) > 1 or before != 1 or not targets:
            raise UninterpretableError("it joins spatial dimensions")
        sources[targets[0]] = (at, Fraction(shape[at], new[targets[0]]))
        scale = Fraction(shape[at], new[targets[0]])
        if 1 not in (scale.numerator, scale.denominator):
            raise UninterpretableError("it cuts a spatial dimension across its cells")
    return Reshaped(len(shape), tuple(new), tuple(sources))


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Cut two shapes of one size into the shortest runs of equal product."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        first, second = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(first), j + len(second)
        while (a := math.prod(old[n] for n in first)) != (b := math.prod(new[n] for n in second)):
            if a < b:
                first.append(i)
                i += 1
            else:
                second.append(j)
                j += 1
        groups.append((first, second))
    return groups
