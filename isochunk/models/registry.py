"""Which networks there are: by name, and with what planning must know of each."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

from torch.nn.functional import pad

from isochunk.core.geometry import Triple
from isochunk.core.spec import Grid, Plane
from isochunk.errors import ModelError
from isochunk.models.a2i import A2I, A2IConfig
from isochunk.models.axial import AxialNetwork
from isochunk.models.fsrcnn import FSRCNN, FSRCNNConfig
from isochunk.models.niiv import NIIV, NIIVConfig
from isochunk.models.probe import Cost, Probe, Reach, axial_cost, cost, derived_halo, measured_cost
from isochunk.models.pssr import PSSR, PSSRConfig
from isochunk.models.srunet import SRUNet, SRUNetConfig
from isochunk.models.tiled_layers import PlacedNetwork

Network: TypeAlias = PlacedNetwork | AxialNetwork | PSSR
NetworkConfig: TypeAlias = FSRCNNConfig | SRUNetConfig | A2IConfig | NIIVConfig | PSSRConfig

CONFIGS: Mapping[str, type[NetworkConfig]] = {
    "fsrcnn": FSRCNNConfig,
    "srunet": SRUNetConfig,
    "a2i": A2IConfig,
    "niiv": NIIVConfig,
    "pssr": PSSRConfig,
}
"""Hyperparameters of each architecture, by its name."""

NETWORKS: Mapping[str, type[Network]] = {
    "fsrcnn": FSRCNN,
    "srunet": SRUNet,
    "a2i": A2I,
    "niiv": NIIV,
    "pssr": PSSR,
}
"""The networks themselves."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a network lies on the grids; see :class:`isochunk.core.spec.ModelSpec`."""

    factor: tuple[Fraction | None, Fraction | None, Fraction | None]
    """Target voxels per source voxel; None for any."""
    halo: Triple
    """Voxels needed beyond an aligned block."""
    alignment: Triple
    """Grid on which tiles must start."""
    plane: Plane = "3d"
    """Slices it runs on."""
    grid: Grid = "source"
    """Grid of halo and alignment."""
    sections: int = 0
    """Neighbouring sections used on each side."""
    exact: bool = True
    """Whether tiles equal the whole."""


def make(config: NetworkConfig) -> Network:
    """Make a network with fresh weights."""
    match config:
        case FSRCNNConfig():
            return FSRCNN(config)
        case SRUNetConfig():
            return SRUNet(config)
        case A2IConfig():
            return A2I(config)
        case NIIVConfig():
            return NIIV(config)
        case PSSRConfig():
            return PSSR(config)


def build(arch: str, config: Mapping[str, Any]) -> Network:
    """Make a network from its name and its hyperparameters as JSON holds them.

    Raises:
        ModelError: the architecture is not known, or the hyperparameters do not fit it.
    """
    if arch not in CONFIGS:
        raise ModelError(
            f"architecture {arch!r} is not known here; this version has {', '.join(CONFIGS)}"
        )
    try:
        return make(CONFIGS[arch](**{name: _tuples(value) for name, value in config.items()}))
    except TypeError as error:
        raise ModelError(f"hyperparameters of {arch} do not fit: {error}") from error


def architecture_of(network: Network) -> str:
    """Return the name under which :func:`build` makes such a network.

    Raises:
        ModelError: it makes none.
    """
    for name, kind in NETWORKS.items():
        if type(network) is kind:
            return name
    raise ModelError(
        f"{type(network).__name__} cannot be saved as a checkpoint; "
        f"it can be one of {', '.join(CONFIGS)}, or export it as .pt2"
    )


def geometry(network: Network) -> Geometry:
    """Return how a network lies on the grids."""
    one = Fraction(1)
    if isinstance(network, AxialNetwork):
        reach, cell = network.halo, network.alignment
        return Geometry((None, one, one), (reach, 0, reach), (cell, 1, cell), "xz", network.grid)
    z, y, x = map(Fraction, network.factor)
    if isinstance(network, PSSR):
        sections = network.config.sections
        return Geometry(
            (z, y, x),
            network.halo,
            network.alignment,
            "xy",
            sections=sections,
            exact=network.exact,
        )
    plane: Plane = "xz" if network.config.planar else "3d"
    return Geometry((z, y, x), derived_halo(network), network.alignment, plane)


def cost_of(network: Network) -> Cost:
    """Count what one target voxel costs; of axial networks on xz slices, four times finer."""
    if isinstance(network, AxialNetwork):
        return axial_cost(network)
    if isinstance(network, PSSR):
        mine, sections = copy.deepcopy(network).eval(), network.config.sections
        probe = Probe(lambda x: mine(pad(x, (0, 0, 0, 0, sections, sections))), network.factor)
        return measured_cost(probe, Reach(network.halo, network.alignment))
    return cost(network)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
