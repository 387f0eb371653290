"""The steps of a traced network, and how they are run so that little memory is needed at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor, fx

from isochunk.models.operations import Item, Moved, Permuted, Reshaped, Window
from isochunk.models.spans import Grid, Operation, Spans, hull

VIEWS = (Item, Moved, Permuted, Reshaped)
"""Operations whose answer is the memory of their input."""

SLABS = 4
"""Parts along z in which the last steps are run: by then what the others hold needs as much."""

RIM = 12
"""Most target voxels along z that a slab may need beyond its own of what the last steps take."""

WORTH = 0.8
"""Share of the memory that slabs must not exceed to be worth their rims."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation in the order they run."""

    node: fx.Node
    """Its place in the graph."""
    operation: Operation
    """What it does."""
    arguments: dict[str, Any]
    """By name; tensors are nodes."""
    inputs: tuple[fx.Node, ...]
    """Those arguments that are spatial."""
    in_place: Callable[..., Any] | None
    """Does the same to its only input, which nothing else wants, without a buffer of its own."""
    cuts: tuple[fx.Node, ...] = ()
    """Inputs that wait for later steps from here on, cut to what these need: skips, that are wider
    than their decoder as long as their encoder needs them."""


def demanded(steps: Sequence[Step], demands: dict[fx.Node, Spans]) -> dict[fx.Node, Spans]:
    """Add what steps need of each node for what is wanted of some."""
    for step in reversed(steps):
        if step.node in demands:
            parts = step.operation.needs(demands[step.node])
            for node, part in zip(step.inputs, parts, strict=True):
                demands[node] = hull(demands.get(node), part)
    return demands


def with_cuts(steps: Sequence[Step]) -> list[Step]:
    """Cut what a coarser level is made of, where later steps want it too."""
    last = {node: at for at, step in enumerate(steps) for node in step.inputs}
    return [
        replace(step, cuts=tuple(n for n in step.inputs if last[n] > at))
        if isinstance(step.operation, Window) and max(step.operation.stride) > 1
        else step
        for at, step in enumerate(steps)
    ]


def slabs_from(
    steps: Sequence[Step], grids: Mapping[fx.Node, Grid], answer: fx.Node, factor: int
) -> int:
    """Return the number of the step from which on they are run in slabs, if that is worth it.

    Args:
        steps: all, in order.
        grids: where the answer of each lies.
        answer: what is wanted.
        factor: target voxels per source voxel along z.
    """
    best, least = len(steps), WORTH * _peak(steps, [answer])
    for at in reversed(range(len(steps))):
        if _z_step(grids[steps[at].node]) != Fraction(1, factor):
            break
        if _rim(steps[at:], grids, answer, factor) > RIM:
            break
        waiting = taken(steps[at:])
        first = _peak(steps[:at], waiting)
        last = sum(map(_bytes, waiting)) + _peak(steps[at:], [answer]) / SLABS
        if max(first, last) < least:
            best, least = at, max(first, last)
    return best


def for_slabs(steps: Sequence[Step]) -> list[Step]:
    """Leave what steps take as it is: the next slab takes a part of it again."""
    kept = taken(steps)
    return [replace(s, in_place=None, cuts=()) if kept & {*s.inputs} else s for s in steps]


def taken(steps: Sequence[Step]) -> set[fx.Node]:
    """Return the nodes that steps take and do not make."""
    return {node for step in steps for node in step.inputs} - {step.node for step in steps}


def _rim(
    steps: Sequence[Step], grids: Mapping[fx.Node, Grid], answer: fx.Node, factor: int
) -> Fraction:
    """Return how many target voxels along z a slab needs beyond its own of what steps take."""
    own = (0, 16 * factor)
    want: Spans = tuple(None if axis is None else own for axis in grids[answer])
    demands = demanded(steps, {answer: want})
    rims = [Fraction(0)]
    for node in taken(steps) & demands.keys():
        for axis, span in zip(grids[node], demands[node], strict=True):
            if axis is not None and axis.axis == 0 and span is not None:
                rims.append((span[1] - span[0]) * axis.step * factor - own[1])
    return max(rims)


def _z_step(grid: Grid) -> Fraction | None:
    """Return the source sections from one index to the next."""
    return next((axis.step for axis in grid if axis is not None and axis.axis == 0), None)


def _peak(steps: Sequence[Step], kept: Iterable[fx.Node]) -> int:
    """Return the most bytes of the trace that answers of steps take at once; some stay."""
    owner: dict[fx.Node, fx.Node] = {}
    last: dict[fx.Node, int] = {}
    for at, step in enumerate(steps):
        first = owner.get(step.inputs[0], step.inputs[0])
        shared = step.in_place is not None or isinstance(step.operation, VIEWS)
        owner[step.node] = first if shared else step.node
        last |= {owner.get(node, node): at for node in step.inputs}
    last |= {owner.get(node, node): len(steps) for node in kept}
    going = {at: [n for n, end in last.items() if end == at] for at in set(last.values())}
    made = {step.node for step in steps if owner[step.node] is step.node}
    alive = peak = 0
    for at, step in enumerate(steps):
        alive += _bytes(step.node) * (step.node in made)
        peak = max(peak, alive)
        alive -= sum(_bytes(node) for node in going.get(at, ()) if node in made)
    return peak


def _bytes(node: fx.Node) -> int:
    """Return the bytes of a node's answer in the trace."""
    value = node.meta["val"]
    tensors = value if isinstance(value, list | tuple) else [value]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
