"""Networks with weights that make a difference, and volumes to run them on."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from isochunk.core.voxels import Voxels
from isochunk.models.fsrcnn import FSRCNN
from isochunk.models.placed import Placed
from isochunk.models.srunet import SRUNet, SRUNetConfig
from isochunk.models.tiled_network import TiledNetwork, derived_halo


def tissue(shape, dtype, seed=0) -> Voxels:
    """Smooth blobs and noise over the dtype's range, with a black corner."""
    rng = np.random.default_rng(seed)
    noise = torch.from_numpy(rng.random((1, 1, *shape), np.float32))
    soft = nn.functional.avg_pool3d(nn.functional.pad(noise, [1] * 6, "replicate"), 3, 1)
    values = (0.6 * soft + 0.4 * noise)[0, 0].numpy()
    values[: shape[0] // 3, : shape[1] // 2, : shape[2] // 2] = 0
    return (values * np.iinfo(dtype).max).astype(dtype)


def network_of(config) -> TiledNetwork:
    torch.manual_seed(3)
    network = SRUNet(config) if isinstance(config, SRUNetConfig) else FSRCNN(config)
    for parameter in network.parameters():
        std = max(float(parameter.detach().std(correction=0)), 0.02)
        nn.init.normal_(parameter, mean=std / 8, std=std)
    with torch.inference_mode():  # answers that fill the range and rarely clip
        x = torch.rand(1, 1, *(2 * h + 16 for h in derived_halo(network)))
        answer = network.predict(Placed(x, (0, 0, 0))).data
        last = network.last if isinstance(network, SRUNet) else network.expand
        scale = 0.15 / float(answer.std())
        last.weight.mul_(scale)
        last.bias.mul_(scale).add_(0.5 - scale * float(answer.mean()))
    return network.eval()
