"""Which networks there are; a module is imported, and torch with it, when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from isochunk.errors import ModelError

if TYPE_CHECKING:
    from isochunk.models.network import Network, NetworkConfig

NETWORKS: Mapping[str, str] = {
    "fsrcnn": "isochunk.models.fsrcnn:FSRCNN",
    "srunet": "isochunk.models.srunet:SRUNet",
    "a2i": "isochunk.models.a2i:A2I",
    "niiv": "isochunk.models.niiv:NIIV",
    "pssr": "isochunk.models.pssr:PSSR",
    "anyz": "isochunk.models.anyz:AnyZ",
    "swinir": "isochunk.models.swinir:SwinIR",
    "srmd": "isochunk.models.srmd:SRMD",
    "pssr-z": "isochunk.models.pssr_z:PSSRZ",
    "diffusion": "isochunk.models.diffusion:Diffusion",
}
"""Each architecture's name in checkpoints and recipes, and its class."""


def network_type(arch: str) -> type[Network]:
    """Return the class of an architecture.

    Raises:
        ModelError: the architecture is not known.
    """
    if arch not in NETWORKS:
        raise ModelError(
            f"architecture {arch!r} is not known here; this version has {', '.join(NETWORKS)}"
        )
    module, _, name = NETWORKS[arch].partition(":")
    found: type[Network] = getattr(import_module(module), name)
    return found


def config_type(arch: str) -> type[NetworkConfig]:
    """Return the hyperparameters of an architecture; raises as :func:`network_type`."""
    return network_type(arch).config_type


def make(config: NetworkConfig) -> Network:
    """Make a network with fresh weights."""
    return network_type(architecture_of(config))(config)


def build(arch: str, config: Mapping[str, Any]) -> Network:
    """Make a network from its name and its hyperparameters as JSON holds them.

    Raises:
        ModelError: the architecture is not known, or the hyperparameters do not fit it.
    """
    kind = config_type(arch)
    try:
        return make(kind(**{name: as_tuples(value) for name, value in config.items()}))
    except TypeError as error:
        raise ModelError(f"hyperparameters of {arch} do not fit: {error}") from error


def architecture_of(value: Network | NetworkConfig) -> str:
    """Return the name of a network, or of the network that hyperparameters are for.

    Raises:
        ModelError: it is none of ours.
    """
    for name in NETWORKS:
        if type(value) in (network_type(name), config_type(name)):
            return name
    raise ModelError(
        f"{type(value).__name__} cannot be saved as a checkpoint; "
        f"it can be one of {', '.join(NETWORKS)}, or export it as .pt2"
    )


def as_tuples(value: Any) -> Any:
    """Turn nested lists, as JSON and TOML have them, into tuples."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value
