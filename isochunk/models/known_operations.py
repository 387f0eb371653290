"""Which operation of torch is which of ``operations``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from operator import getitem
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.nn import functional

from isochunk.models.kernels import ONES, convolved
from isochunk.models.operations import (
    Item,
    Moved,
    Permuted,
    Pointwise,
    Resized,
    Transposed,
    Window,
    regrouped,
)
from isochunk.models.spans import (
    Arguments,
    Grid,
    Operation,
    UninterpretableError,
)

UNARY = frozenset(
    """
    abs alias clamp clamp_max clamp_min clone contiguous cos detach detach_ dropout elu erf exp
    feature_dropout gelu hardsigmoid hardswish hardtanh leaky_relu lift_fresh_copy log log1p
    log_sigmoid mish neg pow reciprocal relu relu6 round rsqrt selu sigmoid silu sin softplus
    softsign sqrt square tanh threshold to type_as alpha_dropout celu logit hardshrink
    softshrink floor ceil sign nan_to_num _to_copy
    """.split()  # noqa: SIM905 - words, as they are read
)
"""Each voxel by itself."""

BINARY = frozenset(
    """
    add sub rsub mul div maximum minimum where atan2 fmod remainder lerp addcmul eq ne lt le gt
    ge logical_and logical_or logical_not
    """.split()  # noqa: SIM905 - words, as they are read
)
"""Voxels at one place, broadcast."""

BY_CHANNEL = frozenset(["batch_norm", "prelu", "rrelu"])
"""Voxels by themselves, with constants for each channel."""

OVER_DIMS = frozenset(
    """
    mean sum amax amin var std softmax log_softmax glu
    """.split()  # noqa: SIM905 - words, as they are read
)
"""Over dimensions that are named; these must be channels."""

PERMUTING = frozenset(
    """
    permute transpose movedim moveaxis swapaxes swapdims
    """.split()  # noqa: SIM905 - words, as they are read
)

RESHAPING = frozenset(
    """
    view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as
    """.split()  # noqa: SIM905 - words, as they are read
)

CUTTING = frozenset(
    """
    chunk split split_with_sizes unsafe_split unsafe_chunk
    """.split()  # noqa: SIM905 - words, as they are read
)

IGNORED = frozenset(("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range"))
"""Checks of the trace, without an answer."""

CONVOLVING = frozenset(("conv1d", "conv2d", "conv3d", "convolution"))

IN_PLACE = frozenset(
    """
    add celu clamp div elu gelu hardsigmoid hardswish hardtanh leaky_relu mish mul relu relu6
    selu sigmoid silu sub tanh
    """.split()  # noqa: SIM905 - words, as they are read
)
"""Done to the input itself where nothing else wants it: no new memory."""

MAKES_VIEWS = frozenset(
    """
    alias contiguous detach dropout feature_dropout to type_as
    """.split()  # noqa: SIM905 - words, as they are read
)
"""Their answer may be the memory of their input."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a traced graph whose inputs are understood."""

    node: fx.Node
    """The node."""
    name: str
    """Its operation, without name space and mark of being in place."""
    arguments: Mapping[str, Any]
    """By the names of the schema, defaults included; tensors are nodes."""
    grids: Mapping[fx.Node, Grid]
    """Where the spatial inputs lie."""

    @property
    def inputs(self) -> tuple[fx.Node, ...]:
        """Spatial inputs, in the order in which operations take them."""
        return tuple(n for n in self.node.all_input_nodes if n in self.grids)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the answer in the trace, or of the first of several."""
        value = self.node.meta["val"]
        return tuple((value[0] if isinstance(value, list | tuple) else value).shape)

    @property
    def grid(self) -> Grid:
        """Where the first spatial input lies."""
        return self.grids[self.inputs[0]]

    def require_channels(self, dims: Iterator[int] | Sequence[int]) -> None:
        """Refuse to work over spatial dimensions.

        Raises:
            UninterpretableError: one of them is spatial.
        """
        if any(self.grid[dim] is not None for dim in dims):
            raise UninterpretableError("it takes in the whole extent of an axis")


Maker: TypeAlias = Callable[[Node], Operation]


def bound(node: fx.Node) -> tuple[str, dict[str, Any]]:
    """Return a node's operation and its arguments by name."""
    if node.target is getitem:
        return "getitem", {"self": node.args[0], "index": node.args[1]}
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(node.target), {}
    values: dict[str, Any] = {a.name: a.default_value for a in schema.arguments}
    values |= dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs
    return schema.name.split("::")[-1].removesuffix("_"), values


def operation_of(node: Node) -> Operation:
    """Return what a node does.

    Raises:
        UninterpretableError: it is not known, or does what cannot be done to parts.
    """
    name = node.name
    for maker, names in MAKERS:
        if name in names:
            return maker(node)
    raise UninterpretableError("it is none that is known")


def _convolution(node: Node) -> Operation:
    arguments = node.arguments
    weight = arguments["weight"]
    if not isinstance(weight, fx.Node) or weight in node.grids:
        raise UninterpretableError("its weights depend on the volume")
    kernel = tuple(weight.meta["val"].shape[2:])
    n = len(kernel)
    if len(node.grid) != n + 2 or node.grid[1] is not None:
        raise UninterpretableError("it moves over channels")
    stride, dilation = _each(arguments["stride"], n), _each(arguments["dilation"], n)
    padding = arguments["padding"]
    if padding == "same":  # torch puts the smaller half first
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    padding = _each(0 if padding == "valid" else padding, n)
    if arguments.get("transposed"):
        return Transposed(kernel, stride, padding, dilation)
    return Window(_convolved, kernel, stride, padding, dilation)


def _convolved(arguments: Arguments) -> Tensor:
    """Convolve along as many dimensions as the weights have."""
    x, weight, bias, stride, dilation, groups = (
        arguments[name] for name in ("input", "weight", "bias", "stride", "dilation", "groups")
    )
    if weight.ndim == len(ONES) + 2 and groups == 1 and {*stride, *dilation} == {1}:
        return convolved(x, weight, bias)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[weight.ndim - 3]
    answer: Tensor = function(x, weight, bias, stride, 0, dilation, groups)
    return answer


def _transposed(node: Node) -> Operation:
    arguments = node.arguments
    kernel = tuple(arguments["weight"].meta["val"].shape[2:])
    n = len(kernel)
    stride, padding, dilation = (
        _each(arguments[name], n) for name in ("stride", "padding", "dilation")
    )
    return Transposed(kernel, stride, padding, dilation)


def _pooling(node: Node) -> Operation:
    arguments, n = node.arguments, int(node.name[-2])
    kernel = _each(arguments["kernel_size"], n)

    def pooled(arguments: Arguments) -> Tensor:
        answer: Tensor = node.node.target(**{**arguments, "padding": 0})  # type: ignore[operator]
        return answer

    return Window(
        pooled,
        kernel,
        _each(arguments["stride"], n) if arguments["stride"] else kernel,
        _each(arguments["padding"], n),
        _each(arguments.get("dilation", 1), n),
    )


def _padded(node: Node) -> Operation:
    arguments, rank = node.arguments, len(node.grid)
    if arguments.get("mode") == "circular":
        raise UninterpretableError("it joins the far ends of an axis")
    start = [0] * rank
    for at, amount in enumerate(arguments["pad"][::2]):
        start[rank - 1 - at] = -amount
    if any(a for a, axis in zip(start, node.grid, strict=True) if axis is None):
        raise UninterpretableError("it pads channels")
    return Moved(tuple(start), (1,) * rank)


def _sliced(node: Node) -> Operation:
    arguments, rank = node.arguments, len(node.grid)
    dim = arguments["dim"] % rank
    if node.grid[dim] is None:
        return _pointwise(node)
    start, step = arguments["start"] or 0, arguments["step"]
    if start < 0:
        raise UninterpretableError("it counts from the far end of an axis")
    return Moved(
        tuple(start if at == dim else 0 for at in range(rank)),
        tuple(step if at == dim else 1 for at in range(rank)),
    )


def _resized(node: Node) -> Operation:
    mode = {
        "upsample_nearest": "nearest",
        "_upsample_nearest_exact": "nearest-exact",
        "upsample_linear": "linear",
        "upsample_bilinear": "bilinear",
        "upsample_trilinear": "trilinear",
    }[node.name[:-2]]
    if node.arguments.get("align_corners"):
        raise UninterpretableError("it aligns corners, so it depends on the whole extent")
    n = int(node.name[-2])
    before, after = node.inputs[0].meta["val"].shape[-n:], node.shape[-n:]
    return Resized(mode, tuple(Fraction(a, b) for a, b in zip(before, after, strict=True)))


def _pointwise(node: Node) -> Operation:
    """Take voxels at one place of all inputs; see :class:`Pointwise`."""
    rank = len(node.shape)
    spatial = [False] * rank
    for grid in node.grids.values():
        for at, axis in enumerate(reversed(grid), 1):
            spatial[-at] |= axis is not None
    kept = tuple(at - rank if s else None for at, s in enumerate(spatial))
    return Pointwise(_out_of_place(node), tuple(len(node.grids[n]) for n in node.inputs), kept)


def _broadcast(node: Node) -> Operation:
    """Take voxels at one place, and constants that have no place."""
    made = _pointwise(node)
    assert isinstance(made, Pointwise)
    for constant in node.node.all_input_nodes:
        if constant in node.grids:
            continue
        shape = constant.meta["val"].shape if "val" in constant.meta else ()
        for at, extent in enumerate(reversed(shape), 1):
            if extent != 1 and made.kept[-at] is not None:
                raise UninterpretableError("it has a constant for each place")
    return made


def _concatenated(node: Node) -> Operation:
    dim = node.arguments["dim"] % len(node.grid)
    if any(grid[dim] is not None for grid in node.grids.values()):
        raise UninterpretableError("it puts volumes side by side")
    if any(n not in node.grids for n in node.node.all_input_nodes):
        raise UninterpretableError("it has a constant for each place")
    return _pointwise(node)


def _over_dims(node: Node) -> Operation:
    rank, dims = len(node.grid), node.arguments["dim"]
    dims = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    dims = sorted(dim % rank for dim in dims)
    node.require_channels(dims)
    if len(node.shape) == rank:
        return _pointwise(node)
    left = [at for at in range(rank) if at not in dims]
    kept = tuple(None if node.grid[at] is None else at - rank for at in left)
    return Pointwise(_out_of_place(node), (rank,), kept)


def _over_last(node: Node) -> Operation:
    last = len(node.arguments.get("normalized_shape", (0,)))
    rank = len(node.grid)
    node.require_channels(range(rank - last, rank))
    return _pointwise(node)


def _cut(node: Node) -> Operation:
    node.require_channels([node.arguments.get("dim", 0)])
    return _pointwise(node)


def _by_channel(node: Node) -> Operation:
    if node.arguments.get("training"):
        raise UninterpretableError("it normalises each tile by itself")
    return _pointwise(node)


def _permuted(node: Node) -> Operation:
    rank = len(node.grid)
    order = [value for key, value in node.arguments.items() if key != "self"]
    empty = torch.empty(tuple(range(1, rank + 1)), device="meta")
    moved = node.node.target(empty, *order)  # type: ignore[operator]
    return Permuted(tuple(n - 1 for n in moved.shape))


def _reshaped(node: Node) -> Operation:
    shape = node.inputs[0].meta["val"].shape
    return regrouped(shape, [axis is not None for axis in node.grid], node.shape)


def _item(node: Node) -> Operation:
    return Item(node.arguments["index"])


MAKERS: Sequence[tuple[Maker, frozenset[str]]] = (
    (_convolution, CONVOLVING),
    (_transposed, frozenset(f"conv_transpose{n}d" for n in (1, 2, 3))),
    (_pooling, frozenset(f"{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3))),
    (_padded, frozenset(("pad", "constant_pad_nd"))),
    (
        _padded,
        frozenset(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
    ),
    (_sliced, frozenset(("slice",))),
    (
        _resized,
        frozenset(
            [
                f"{kind}{n}d"
                for kind in ("upsample_nearest", "_upsample_nearest_exact")
                for n in "123"
            ]
            + ["upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"]
        ),
    ),
    (_broadcast, UNARY | BINARY),
    (_by_channel, BY_CHANNEL),
    (_concatenated, frozenset(("cat", "concat"))),
    (_over_dims, OVER_DIMS),
    (_over_last, frozenset(("linear", "layer_norm", "rms_norm"))),
    (_cut, CUTTING),
    (_permuted, PERMUTING),
    (_reshaped, RESHAPING),
    (_item, frozenset(("getitem",))),
)


def _out_of_place(node: Node) -> Any:
    """Return the function that leaves its input as it was."""
    return _overload(node.node, node.name)


def in_place(node: Node) -> Any | None:
    """Return the function that puts the answer where the input was; None if there is none.

    Its answer must have the shape and type of its first input.
    """
    first = node.inputs[0].meta["val"]
    value = node.node.meta["val"]
    if node.name not in IN_PLACE or node.node.args[0] is not node.inputs[0]:
        return None
    if (first.shape, first.dtype) != (value.shape, value.dtype):
        return None
    return _overload(node.node, f"{node.name}_")


def _overload(node: fx.Node, name: str) -> Any:
    """Return the overload of another operation that takes the arguments of a node's."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.target
    space, _, overload = str(node.target).split(".")
    return getattr(getattr(getattr(torch.ops, space), name), overload)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """Write one number for all dimensions out."""
    values = [value] if isinstance(value, int) else list(value)
    return tuple(values * dims if len(values) == 1 else values)
