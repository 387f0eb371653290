"""Networks of users, run by valid convolutions: their graph, on tensors that know where they lie.

A network is traced (``torch.export``) and each operation is asked, from the wanted voxels back to
the source, what it needs (``operations``). Then each is run on just that. No layer sees a padded
rim, so a tile costs little more than the voxels it makes, and halo and alignment follow from the
graph. A trace is only believed where it answers as the network itself does.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx, nn

from isochunk.core.geometry import Box, Triple, ceil_div, triple
from isochunk.models.folding import fold_batch_norms
from isochunk.models.kernels import lay_out_channels_last
from isochunk.models.known_operations import (
    IGNORED,
    MAKES_VIEWS,
    Node,
    bound,
    in_place,
    operation_of,
)
from isochunk.models.probe import Reach
from isochunk.models.spans import (
    Axis,
    Grid,
    Spans,
    UninterpretableError,
    cropped,
)
from isochunk.models.steps import (
    SLABS,
    VIEWS,
    Step,
    demanded,
    for_slabs,
    slabs_from,
    with_cuts,
)
from isochunk.models.tiling import number_format

TOLERANCE = 1e-4
"""Largest difference from the network itself that counts as rounding, as a share of the largest
answer. A grey level of uint8 is 4e-3 of its range."""


TALKATIVE = ("torch.fx.experimental.symbolic_shapes", "torch._export.non_strict_utils")
"""Loggers that say what torch thinks of a network that is traced."""

ATTEMPTS = (1, 4, 16)
"""Cells of the examples compared, several times over: exported programs have a least extent."""


@dataclass(frozen=True, slots=True)
class TracedEngine:
    """A traced network as an engine: exact at any position, with nothing padded."""

    module: fx.GraphModule
    """The graph with its weights."""
    source: fx.Node
    """Its input."""
    answer: fx.Node
    """Its output."""
    steps: tuple[Step, ...]
    """In order, those for the whole tile."""
    finest: tuple[Step, ...]
    """The last ones, which are run slab by slab."""
    factor: Triple
    """Target voxels per source voxel."""
    largest: Triple | None = None
    """Any tile will do."""

    def needs(self, want: Box) -> Box:
        """Return the source voxels that the target box ``want`` depends on."""
        lo, hi = zip(*(span for span in self._demands(want)[self.source] if span), strict=True)
        return Box(triple(lo), triple(hi))

    def __call__(self, tile: Tensor, want: Box) -> Tensor:
        """Predict ``want`` from the source voxels ``needs(want)``, both (1, 1, z, y, x)."""
        after = demanded(self.finest, {self.answer: _spans(want)})
        demands = demanded(self.steps, dict(after))
        values: dict[fx.Node, Any] = {self.source: tile.to(number_format(self.module))}
        self._run(self.steps, values, demands, after)
        if not self.finest:
            whole: Tensor = values[self.answer]
            return whole
        parts = []
        for slab in want.slabs(SLABS):
            needed = demanded(self.finest, {self.answer: _spans(slab)})
            part = {n: cropped(values[n], demands[n], needed[n]) for n in values}
            self._run(self.finest, part, needed, {self.answer: _spans(slab)})
            parts.append(part[self.answer])
        return torch.cat(parts, 2)

    def reach(self) -> Reach:
        """Return halo and alignment as they follow from the graph."""
        alignment = self.alignment()
        return Reach(triple(self._halo(axis, alignment) for axis in range(3)), alignment)

    def alignment(self) -> Triple:
        """Return the least shifts of the source that shift every operation by whole voxels."""
        cells = [1, 1, 1]
        for _, grid in self.grids():
            for axis in grid:
                if axis is not None:
                    cells[axis.axis] = math.lcm(cells[axis.axis], axis.step.numerator)
        return triple(cells)

    def grids(self) -> list[tuple[fx.Node, Grid]]:
        """Return where the answer of each step lies."""
        known: dict[fx.Node, Grid] = {self.source: SOURCE}
        for step in (*self.steps, *self.finest):
            known[step.node] = step.operation.grid([known[node] for node in step.inputs])
        return list(known.items())

    def _halo(self, axis: int, alignment: Triple) -> int:
        """Return the farthest any output along an axis looks beyond its own source voxel."""
        factor, reach = self.factor[axis], 0
        for at in range(alignment[axis] * factor):
            lo = triple(at if a == axis else 0 for a in range(3))
            need = self.needs(Box.from_shape((1, 1, 1), lo))
            own = at // factor
            reach = max(reach, own - need.lo[axis], need.hi[axis] - 1 - own)
        return reach

    def _demands(self, want: Box) -> dict[fx.Node, Spans]:
        """Return, for each node, what of it the target box depends on."""
        return demanded(self.steps, demanded(self.finest, {self.answer: _spans(want)}))

    def _run(
        self,
        steps: Sequence[Step],
        values: dict[fx.Node, Any],
        demands: dict[fx.Node, Spans],
        after: Mapping[fx.Node, Spans],
    ) -> None:
        """Run steps, and drop what is neither kept nor wanted by another of them.

        Args:
            steps: in order.
            values: what is there, just as demanded; answers are added.
            demands: what is needed of each node; narrowed where an answer is cut.
            after: what is needed of nodes when all is done.
        """
        steps = [step for step in steps if step.node in demands]
        left = Counter(node for step in steps for node in step.inputs)
        left.update(after.keys())
        for at, step in enumerate(steps):
            wanted = demands[step.node]
            parts = {
                node: cropped(values[node], demands[node], part)
                for node, part in zip(step.inputs, step.operation.needs(wanted), strict=True)
            }
            values[step.node] = self._step(step, parts, wanted)
            del parts
            for node in step.inputs:
                left[node] -= 1
                if not left[node]:
                    del values[node]
            for node in step.cuts:
                if left[node]:
                    later = demanded(steps[at + 1 :], dict(after))[node]
                    if later != demands[node]:
                        values[node] = cropped(values[node], demands[node], later).clone()
                        demands[node] = later

    def _step(self, step: Step, parts: dict[fx.Node, Any], want: Spans) -> Any:
        def tensor_of(node: fx.Node) -> Any:
            return parts[node] if node in parts else self._constant(node)

        arguments = fx.map_arg(step.arguments, tensor_of)
        if step.in_place is not None:
            return step.in_place(**arguments)
        return step.operation.run(arguments, want)

    def _constant(self, node: fx.Node) -> Any:
        """Return a weight, or what is computed of weights alone."""
        if node.op == "get_attr":
            found: Any = self.module
            for name in str(node.target).split("."):
                found = getattr(found, name)
            return found
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._constant)
        return node.target(*args, **kwargs)  # type: ignore[operator]


SOURCE: Grid = (None, None, *(Axis(axis, Fraction(1)) for axis in range(3)))
"""Where the source lies."""


def trace(module: nn.Module, factor: Triple, shape: Triple) -> TracedEngine:
    """Trace a network and understand every operation.

    Args:
        module: maps (1, 1, z, y, x) to (1, 1, fz*z, fy*y, fx*x), in eval mode.
        factor: target voxels per source voxel.
        shape: of the example; multiples of its alignment.

    Raises:
        UninterpretableError: it cannot be traced, or an operation cannot be run on parts; the
            message names it.
    """
    try:
        with torch.no_grad(), _quiet():
            graph_module = _graph(module, torch.zeros(1, 1, *shape))
    except Exception as error:  # the network's own code may raise anything
        said = str(error).strip().splitlines() or [""]
        raise UninterpretableError(
            f"it cannot be traced: {type(error).__name__}: {said[0]}"
        ) from error
    assert isinstance(graph_module, fx.GraphModule)
    try:
        return _understood(graph_module, factor)
    except UninterpretableError:
        raise
    except (TypeError, ValueError, IndexError) as error:  # graphs of TorchScript have odd arguments
        raise UninterpretableError(f"its graph has arguments not known here: {error}") from error


def _graph(module: nn.Module, example: Tensor) -> nn.Module:
    """Return the operations of a network; TorchScript within it is turned into these first."""
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        from torch._export.converter import TS2EPConverter  # what torch.export says to use

        script = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        module = TS2EPConverter(script, (example,)).convert().module()  # of symbolic extents
    return torch.export.export(module, (example,)).module()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from showing what it thinks of a network; what matters is raised."""
    talkative = [logging.getLogger(name) for name in TALKATIVE]
    was = [log.disabled for log in talkative]
    for log in talkative:
        log.disabled = True
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, disabled in zip(talkative, was, strict=True):
            log.disabled = disabled


def _understood(module: fx.GraphModule, factor: Triple) -> TracedEngine:
    """Make steps of a graph.

    Raises:
        UninterpretableError: an operation cannot be run on parts.
    """
    module.graph.eliminate_dead_code()
    fold_batch_norms(module)
    lay_out_channels_last(module)
    grids: dict[fx.Node, Grid] = {}
    steps: list[Step] = []
    owned: set[fx.Node] = set()  # answers with memory of their own
    for node in module.graph.nodes:
        if node.op == "placeholder":
            grids[node] = SOURCE
        inputs = {n: grids[n] for n in node.all_input_nodes if n in grids}
        if node.op != "call_function" or not inputs:
            continue
        name, arguments = bound(node)
        if name in IGNORED:
            continue
        known = Node(node, name, arguments, inputs)
        try:
            operation = operation_of(known)
            grids[node] = operation.grid([grids[n] for n in known.inputs])
        except UninterpretableError as error:
            raise UninterpretableError(f"{_where(node, name)}: {error}") from None
        if name not in MAKES_VIEWS and not isinstance(operation, VIEWS):
            owned.add(node)
        first = known.inputs[0]
        free = first in owned and len(first.users) == 1
        steps.append(
            Step(node, operation, arguments, known.inputs, in_place(known) if free else None)
        )
    source, answer = _ends(module, grids, factor)
    cut = slabs_from(steps, grids, answer, factor[0])
    whole, finest = tuple(with_cuts(steps)[:cut]), tuple(for_slabs(steps[cut:]))
    return TracedEngine(module, source, answer, whole, finest, factor)


def _ends(
    module: fx.GraphModule, grids: Mapping[fx.Node, Grid], factor: Triple
) -> tuple[fx.Node, fx.Node]:
    """Return input and output of a graph.

    Raises:
        UninterpretableError: they are none of a network that makes volumes finer.
    """
    sources = [node for node in module.graph.nodes if node.op == "placeholder"]
    answers = module.graph.output_node().all_input_nodes
    if len(sources) != 1 or len(answers) != 1 or answers[0] not in grids:
        raise UninterpretableError("its answer is not one tensor made of one input")
    wanted = (None, None, *(Axis(axis, Fraction(1, f)) for axis, f in enumerate(factor)))
    if grids[answers[0]] != wanted:
        raise UninterpretableError(f"its answer does not lie on a grid of factor {factor}")
    return sources[0], answers[0]


def _spans(box: Box) -> Spans:
    """Return where a box lies in a tensor (1, 1, z, y, x)."""
    return (None, None, *zip(box.lo, box.hi, strict=True))


def _where(node: fx.Node, name: str) -> str:
    """Name an operation and the layer that it belongs to."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    layer = stack[-1][0] if stack else ""
    return f"{layer} ({name})" if layer else name


def prove(engine: TracedEngine, module: nn.Module, shape: Triple | None = None) -> None:
    """Compare a traced network with the network itself, on noise of two shapes.

    Args:
        engine: the trace.
        module: the network.
        shape: the only input shape it takes; None for any.

    Raises:
        UninterpretableError: they answer differently, or the one shape holds no whole answer.
    """
    reach = engine.reach()
    halo = triple(ceil_div(h, g) * g for h, g in zip(reach.halo, reach.alignment, strict=True))
    noise = torch.Generator().manual_seed(0)
    for cells in ((1, 2, 1), (2, 1, 3)):
        for more in ATTEMPTS:
            extents = shape or _around(halo, reach.alignment, triple(n * more for n in cells))
            inner = Box(halo, triple(n - h for n, h in zip(extents, halo, strict=True)))
            if not inner.size:
                raise UninterpretableError(f"its halo of {halo} does not fit its only input")
            try:
                difference = _difference(
                    engine, module, torch.rand(1, 1, *extents, generator=noise), inner
                )
            except Exception as error:  # the network's own code may raise anything
                if shape or more == ATTEMPTS[-1]:
                    raise UninterpretableError(
                        f"it fails on an input of {extents}: {type(error).__name__}: {error}"
                    ) from error
            else:
                break
        if not difference < TOLERANCE:  # NaN is none
            raise UninterpretableError(
                f"its trace answers otherwise than it does itself, on an input of {extents}"
            )


@torch.inference_mode()
def _difference(engine: TracedEngine, module: nn.Module, source: Tensor, inner: Box) -> float:
    """Return the largest difference of two answers inside a source, as a share of the largest."""
    lo, hi = (
        triple(a * f for a, f in zip(at, engine.factor, strict=True)) for at in (inner.lo, inner.hi)
    )
    want = Box(lo, hi)
    whole = module(source)[(..., *want.slices((0, 0, 0)))]
    part = engine(source[(..., *engine.needs(want).slices((0, 0, 0)))], want)
    return float((part - whole).abs().max() / whole.abs().max())


def _around(halo: Triple, cell: Triple, cells: Triple) -> Triple:
    """Return the extents of some cells and their halo."""
    return triple(2 * h + g * n for h, g, n in zip(halo, cell, cells, strict=True))
