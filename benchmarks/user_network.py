"""A 3D-SRU-Net as a user writes it: plain torch, padded, nothing of isochunk.

Width 8, three levels, two convolutions a level, 3x3x3 kernels, four target sections for each of the
source's. Its weights lie beside the file: ``weights.safetensors``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 8


def convolutions(first: int, maps: int) -> nn.ModuleList:
    """Two convolutions that keep the size."""
    return nn.ModuleList(nn.Conv3d(n, maps, 3, padding=1) for n in (first, maps))


class Network(nn.Module):
    """Maps (1, 1, z, y, x) to (1, 1, 4 z, y, x)."""

    factor = (4, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        maps = [WIDTH, 2 * WIDTH, 4 * WIDTH]
        self.encoder = nn.ModuleList(map(convolutions, [1, *maps], maps))
        self.skip = nn.ModuleDict(
            {
                "0": nn.ConvTranspose3d(maps[0], maps[0], (4, 3, 3), (4, 1, 1), (0, 1, 1)),
                "1": nn.ConvTranspose3d(maps[1], maps[1], (2, 3, 3), (2, 1, 1), (0, 1, 1)),
            }
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(maps[i + 1], maps[i], 3, 2) for i in range(2))
        self.decoder = nn.ModuleList(convolutions(2 * n, n) for n in maps[:2])
        self.last = nn.Conv3d(WIDTH, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = convolved(x, self.encoder[0])
        middle = convolved(functional.max_pool3d(fine, (1, 2, 2)), self.encoder[1])
        coarse = convolved(functional.max_pool3d(middle, (1, 2, 2)), self.encoder[2])
        for level, skipped in ((1, middle), (0, fine)):
            z, y, x_ = (2 * n for n in coarse.shape[2:])
            raised = self.up[level](coarse)[:, :, :z, :y, :x_]
            both = torch.cat([raised, self.skip[str(level)](skipped)], 1)
            coarse = convolved(both, self.decoder[level])
        return self.last(coarse)


def convolved(x: Tensor, layers: nn.Module) -> Tensor:
    """Apply convolutions, each with a ReLU."""
    for layer in layers.children():
        x = functional.relu(layer(x))
    return x


def make() -> nn.Module:
    """Return the network with its weights."""
    network = Network()
    network.load_state_dict(load_file(Path(__file__).with_name("weights.safetensors")))
    return network
