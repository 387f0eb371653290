"""PSSR's encoder from weights of ResNet34 that the user names; they are no part of isochunk."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from isochunk.errors import UsageError
from isochunk.models.network import Network
from isochunk.train.vgg import read_torch

LAYERS = {
    "body.0": "conv1",
    "body.1": "bn1",
    "body.3": "conv2",
    "body.4": "bn2",
    "short.0": "downsample.0",
    "short.1": "downsample.1",
}
"""Layers of a residual block, and torchvision's names for them."""


def load_encoder(network: Network, path: Path) -> None:
    """Give the encoder the weights of torchvision's ``resnet34`` state dict, a file of PyTorch.

    The network is one whose hyperparameters say ``resnet_encoder``.

    A multi-frame network has a first layer of more channels: there each frame gets an equal part of
    the sum over colours, which is our choice.

    Raises:
        UsageError: the file cannot be read, asks for more than tensors, or is of another network.
    """
    theirs = read_torch(path)
    state = network.state_dict()
    for name, own in state.items():
        if not name.startswith(("stem.", "stages.")) or name.endswith("num_batches_tracked"):
            continue
        value = theirs.get(their_name(name))
        if name == "stem.0.weight" and isinstance(value, Tensor) and network.config.sections:
            value = (value.sum(1, keepdim=True) / own.shape[1]).expand(-1, own.shape[1], -1, -1)
        if not isinstance(value, Tensor) or value.shape != own.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else "missing"
            raise UsageError(
                f"{their_name(name)} of {path} is {got}, but the encoder needs "
                f"{tuple(own.shape)}; name a state dict of ResNet34, and leave width and depths "
                "as they are"
            )
        state[name] = value.to(torch.float32)
    network.load_state_dict(state)


def their_name(name: str) -> str:
    """Return torchvision's name of one of the encoder's arrays."""
    part, *rest = name.split(".")
    if part == "stem":
        return ".".join((("conv1", "bn1")[int(rest[0])], *rest[1:]))
    stage, block, *layer, array = rest
    return f"layer{int(stage) + 1}.{block}.{LAYERS['.'.join(layer)]}.{array}"
