"""Weights to start from: those of a checkpoint of the very network that is trained."""

from __future__ import annotations

from isochunk.core.codec import to_json
from isochunk.core.spec import Normalisation
from isochunk.errors import ModelError, UsageError
from isochunk.models.checkpoint import load_module, read_spec
from isochunk.models.load import checkpoint_folder
from isochunk.models.network import Network, NetworkConfig
from isochunk.models.registry import architecture_of
from isochunk.train.fingerprint import differences


def start_from(network: Network, name: str, normalisation: Normalisation) -> str:
    """Give a network the weights of a checkpoint.

    Args:
        network: whose weights are replaced.
        name: of a shipped checkpoint, or a checkpoint folder.
        normalisation: how stored values become the network's in this training.

    Returns:
        The checkpoint's sha256, over its weights and all that defines its answers.

    Raises:
        ModelError: there is no such checkpoint, or it was changed.
        UsageError: it is of another architecture, other hyperparameters or another normalisation.
    """
    folder = checkpoint_folder(name)
    spec, theirs = read_spec(folder), load_module(folder)
    found = differences(
        {**_described(network), "normalisation": normalisation},
        {**_described(theirs), "normalisation": spec.normalisation},
    )
    if found:
        raise UsageError(
            f"start {name} holds the weights of another network ({found}); train with its "
            f"hyperparameters, as a recipe has them, or leave start out"
        )
    network.load_state_dict(theirs.state_dict())
    return spec.sha256


def config_to_start(name: str, otherwise: NetworkConfig) -> NetworkConfig:
    """Return the hyperparameters of a checkpoint to start from.

    Args:
        name: of a shipped checkpoint, or a checkpoint folder.
        otherwise: what is returned where it is of another architecture, or cannot be read: a
            training that goes on does not need it any more.
    """
    try:
        found = load_module(checkpoint_folder(name)).config
    except ModelError:
        return otherwise
    return found if type(found) is type(otherwise) else otherwise


def _described(network: Network) -> dict[str, object]:
    return {"arch": architecture_of(network), **to_json(network.config)}
