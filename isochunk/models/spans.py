"""Where parts of tensors lie, and what an operation of a traced network must tell of it.

A network's graph is taken to run over a volume without end, so an index along a spatial dimension
is a place, the same one wherever a tile is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from isochunk.errors import ModelError

Span: TypeAlias = tuple[int, int]
"""First index and end along a spatial dimension."""

Spans: TypeAlias = tuple[Span | None, ...]
"""One for each dimension of a tensor; None where it is not spatial and always whole."""

Arguments: TypeAlias = Mapping[str, Any]
"""Arguments of an operation by the names of its schema."""


class UninterpretableError(ModelError):
    """An operation cannot be run on parts of an unbounded volume, or is not known."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What a spatial dimension of a tensor is."""

    axis: int
    """0, 1 or 2 for z, y or x."""
    step: Fraction
    """Source voxels from one index to the next."""


Grid: TypeAlias = tuple[Axis | None, ...]
"""One for each dimension of a tensor; None where it is not spatial."""


class Operation(Protocol):
    """One node of a graph."""

    def grid(self, inputs: Sequence[Grid]) -> Grid:
        """Return where outputs lie.

        Raises:
            UninterpretableError: inputs lie where this has no meaning.
        """
        ...

    def needs(self, want: Spans) -> list[Spans]:
        """Return, for each spatial input, what the outputs ``want`` are made of."""
        ...

    def run(self, arguments: Arguments, want: Spans) -> Any:
        """Answer ``want``; spatial inputs among the arguments hold exactly what it needs."""
        ...


def hull(one: Spans | None, other: Spans) -> Spans:
    """Return the smallest spans that hold both."""
    if one is None:
        return other
    return tuple(
        None if a is None or b is None else (min(a[0], b[0]), max(a[1], b[1]))
        for a, b in zip(one, other, strict=True)
    )


def cropped(x: Any, have: Spans, want: Spans) -> Any:
    """Return the part ``want`` of a tensor, or of each of several, that covers ``have``."""
    if not isinstance(x, Tensor):
        return tuple(cropped(part, have, want) for part in x)
    for dim, (a, b) in enumerate(zip(have, want, strict=True)):
        if a is not None and b is not None and a != b:
            x = x.narrow(dim, b[0] - a[0], b[1] - b[0])
    return x


def inner(x: Tensor, parts: Iterable[tuple[int, int, int]]) -> Tensor:
    """Crop the last dimensions: for each the first index wanted, that of ``x``, and how many."""
    dims = [(lo - start, size) for lo, start, size in parts]
    for dim, (first, size) in enumerate(dims, x.ndim - len(dims)):
        if x.shape[dim] != size:
            x = x.narrow(dim, first, size)
    return x


def split_grid(grid: Grid, dims: int) -> tuple[Grid, list[Axis]]:
    """Part the last dimensions, which a kernel moves over, from the others.

    Raises:
        UninterpretableError: one of the last is not spatial.
    """
    tail = [axis for axis in grid[len(grid) - dims :] if axis is not None]
    if len(tail) < dims:
        raise UninterpretableError("its kernel moves over channels")
    return grid[: len(grid) - dims], tail


def split_spans(spans: Spans, dims: int) -> tuple[Spans, list[Span]]:
    """Part the spans of the last dimensions, all spatial, from the others."""
    return spans[: len(spans) - dims], [s for s in spans[len(spans) - dims :] if s is not None]


def common_axis(inputs: Sequence[Grid], at: int) -> Axis | None:
    """Return the axis of a dimension, counted from the last as -1, of all inputs that have it."""
    found = {grid[at] for grid in inputs if len(grid) >= -at}
    if len(found) > 1:
        raise UninterpretableError("its inputs lie on different grids")
    return found.pop() if found else None
