"""Batch norms with fixed statistics, made part of the convolution before them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

ATEN = torch.ops.aten

FOLDED = tuple(
    getattr(conv, overload)
    for conv in (ATEN.conv1d, ATEN.conv2d, ATEN.conv3d)
    for overload in ("default", "padding")
)
"""Convolutions whose weights have their outputs first."""


def fold_batch_norms(module: fx.GraphModule) -> None:
    """Fold each batch norm of a traced network into its convolution: a pass over memory less."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target != ATEN.batch_norm.default:
            continue
        conv = node.args[0]
        if conv.target not in FOLDED or len(conv.users) != 1 or conv.args[1].op != "get_attr":
            continue
        if node.args[5] or any(n is not None and n.op != "get_attr" for n in node.args[1:5]):
            continue
        scale, shift = (None if n is None else _attribute(module, n) for n in node.args[1:3])
        mean, variance = (_attribute(module, n) for n in node.args[3:5])
        weight = _attribute(module, conv.args[1])
        bias_node = conv.args[2] if len(conv.args) > 2 else None  # noqa: PLR2004
        gain = (variance.double() + node.args[7]).rsqrt()
        gain = gain if scale is None else gain * scale.double()
        bias = (
            -mean.double() if bias_node is None else _attribute(module, bias_node) - mean.double()
        )
        bias = bias * gain + (0 if shift is None else shift.double())
        gain = gain.view(-1, *(1,) * (weight.ndim - 1))
        folded = {"weight": (weight * gain).to(weight), "bias": bias.to(weight)}
        nodes = [_added(module, conv, f"{conv.name}_{name}", v) for name, v in folded.items()]
        conv.args = (conv.args[0], *nodes, *conv.args[3:])
        node.replace_all_uses_with(conv)
        module.graph.erase_node(node)


def _attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    found: Any = module
    for name in str(node.target).split("."):
        found = getattr(found, name)
    return found.detach()


def _added(module: fx.GraphModule, before: fx.Node, name: str, value: Tensor) -> fx.Node:
    """Give a graph a constant, ahead of a node."""
    module.register_buffer(f"folded_{name}", value)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(f"folded_{name}")
    node.meta["val"] = value
    return node
