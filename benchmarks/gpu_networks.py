"""The networks of ``gpu.py``: shipped ones, those of the papers, and small ones of each kind.

Networks that are not shipped have random weights, scaled so that answers fill the grey range.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from planner import PAPERS
from torch import Tensor, nn

from isochunk.core.geometry import Spacing
from isochunk.core.synthetic import synthetic_em
from isochunk.models.a2i import A2IConfig
from isochunk.models.checkpoint import Card, save
from isochunk.models.counting import Cost
from isochunk.models.fsrcnn import FSRCNN, FSRCNNConfig
from isochunk.models.load import baselines, shipped
from isochunk.models.network import Network, NetworkConfig
from isochunk.models.niiv import NIIVConfig
from isochunk.models.pssr import PSSR, PSSRConfig
from isochunk.models.registry import make
from isochunk.models.srunet import SRUNetConfig

SPACING = Spacing.parse("40,10,10")
"""Voxel size of all sources."""

FACTOR = Fraction(4)
"""By which networks refine z that take any factor."""

UNCOUNTED = Cost(1.0, 1.0)
"""Written into checkpoints: plans count for themselves, and counting takes long."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A network, and what the tables call it."""

    name: str
    """A shipped checkpoint's name, or any."""
    config: NetworkConfig | None = None
    """Hyperparameters of one with random weights; None for a shipped one."""

    @property
    def weights(self) -> str:
        """Where its weights are from."""
        return "shipped" if self.config is None else "random"

    def model(self, work: Path) -> str:
        """Return what a job calls it; its checkpoint is written where that is needed.

        Args:
            work: folder for checkpoints.
        """
        if self.config is None:
            return self.name
        folder = work / "networks" / re.sub(r"\W+", "-", self.name)
        if not (folder / "model.json").exists():
            card = Card(self.name, "none", "random weights")
            save(folder, random_network(self.config), card, UNCOUNTED)
        return str(folder)


SRUNET_Z4 = Subject("srunet-z4")
NIIV_Z2_10 = Subject("niiv-z2-10")
H3, H4, FSRCNN_D240, A2I, PSSR_PAPER, NIIV = (
    Subject(name if "d" in name else f"{name} of the paper", PAPERS[name])
    for name in (
        "3D-SRU-Net h3 w64 d3",
        "3D-SRU-Net h4 w64 d3",
        "3D-FSRCNN d240 s64 m4",
        "A2I",
        "PSSR",
        "niiv",
    )
)
FSRCNN_Z4 = Subject("fsrcnn-z4")
IDENTITY = Subject("identity")

TINY: tuple[Subject, ...] = (
    Subject("srunet, small", SRUNetConfig.compact(4, 2, 2)),
    Subject("srunet, small, residual", SRUNetConfig.compact(4, 2, 2, residual="cubic")),
    Subject("fsrcnn, small", FSRCNNConfig.compact(12, 6, 1)),
    Subject("a2i, small", A2IConfig(width=4, levels=2, window=4, heads=(1, 2), blocks=1)),
    Subject("niiv, small", NIIVConfig(blocks=3, width=16, hidden=32, layers=3)),
    Subject("pssr, small", PSSRConfig(width=2, depths=(1, 1, 1, 1))),
)
"""One of each architecture."""


def all_shipped() -> Iterable[Subject]:
    """Return the shipped networks, the usual one first."""
    others = (name for name, _ in (*shipped(), *baselines()) if name != SRUNET_Z4.name)
    return [SRUNET_Z4, *map(Subject, others)]


@torch.no_grad()
def random_network(config: NetworkConfig) -> Network:
    """Make a network whose answers fill the range, or lie about the interpolation it adds to.

    Random layers keep the size of what goes through them; normalising ones are shown a volume.
    """
    torch.manual_seed(0)
    network = make(config)
    sections = 1 if isinstance(network, PSSR) else 8
    voxels = synthetic_em((sections, 32, 32), seed=1, spacing=SPACING)
    coarse = torch.from_numpy(voxels).float()[None, None] / 255
    if isinstance(network, FSRCNN):
        for convolution in network.convs.children():
            nn.init.kaiming_normal_(convolution.weight)
    normalised = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in normalised:
        layer.momentum = 1.0
    if normalised:
        answers(network.train(), coarse)
    for layer in normalised:
        layer.momentum = 0.1
    network.eval()
    residual = getattr(config, "residual", "none") not in (False, "none")
    base = answers(network, coarse) if residual else torch.zeros(())
    last = network.expand if isinstance(network, FSRCNN) else network.last
    if residual:
        nn.init.normal_(last.weight)
    added = answers(network, coarse) - base
    mean, scale = (0.0, 0.03) if residual else (0.5, 0.15)
    scale /= float(added.std())
    last.bias.sub_(added.mean()).mul_(scale).add_(mean)
    last.weight.mul_(scale)
    return network


def answers(network: Network, coarse: Tensor) -> Tensor:
    """Restore a crop."""
    return network.restore_crops(coarse, FACTOR, "mean")
