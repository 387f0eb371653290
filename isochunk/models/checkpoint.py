"""Checkpoint folders: ``model.json`` and ``weights.safetensors``; nothing in them can run code.

``model.json`` has two parts. ``model`` is what defines the answers: architecture, its
hyperparameters, geometry, and the digest of the weights; the model's own digest is taken over
it. ``card`` is what people want to know: licence, training data, training record, cost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isochunk.core.geometry import triple
from isochunk.core.spec import ModelSpec, Normalisation, Phase
from isochunk.errors import ModelError
from isochunk.host.files import write_atomically
from isochunk.models.registry import NETWORKS, architecture_of, build

if TYPE_CHECKING:
    from torch import Tensor

    from isochunk.models.counting import Cost
    from isochunk.models.network import Geometry, Network

MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Card:
    """What a checkpoint says of itself beyond its layers."""

    name: str
    """What it is called."""
    licence: str
    """Licence of the weights."""
    trained_on: str
    """Data the weights were trained on, with attribution."""
    phase: Phase = "mean"
    """What a source section is: the mean over its thickness, or a sample."""
    normalisation: Normalisation = "range"
    """How stored values become the network's."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Training record: recipe, steps, seed, figures reached; anything JSON holds."""


def save(
    folder: Path,
    network: Network,
    card: Card,
    counted: Cost | None = None,
    *,
    half: bool = False,
) -> ModelSpec:
    """Write a checkpoint; each file appears whole or not at all, ``model.json`` last.

    Args:
        folder: created where needed; an older checkpoint in it is replaced.
        network: one of :mod:`isochunk.models.registry`.
        card: what it says of itself.
        counted: what the network costs, where it was counted before: counting can take a minute.
        half: write weights in half precision, half the bytes; what is loaded is what was rounded.

    Raises:
        ModelError: half precision cannot hold the weights; or the network is of another class.
    """
    from safetensors.torch import save as to_bytes

    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    weights = to_bytes(_rounded(state) if half else state)
    model = {
        "arch": architecture_of(network),
        "config": asdict(network.config),
        **_as_json(network.geometry()),
        "phase": card.phase,
        "normalisation": card.normalisation,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    counted = counted or network.cost()
    described = {
        "name": card.name,
        "licence": card.licence,
        "trained_on": card.trained_on,
        "parameters": sum(p.numel() for p in network.parameters()),
        "macs_per_voxel": counted.macs,
        "bytes_per_voxel": counted.bytes,
        "training": dict(card.training),
    }
    text = json.dumps({"version": VERSION, "model": model, "card": described}, indent=1)
    write_atomically(folder / WEIGHTS_FILE, lambda file: file.write(weights))
    write_atomically(folder / MODEL_FILE, lambda file: file.write(text.encode()))
    return read_spec(folder)


def read_spec(folder: Path) -> ModelSpec:
    """Read what planning needs, and check that the weights are those recorded; needs no torch.

    Raises:
        ModelError: a file is missing, unreadable, of another version, or was changed.
    """
    model, card, _ = _read(folder)
    try:
        return ModelSpec(
            name=str(card["name"]),
            arch=model["arch"],
            factor=_factor(model["factor"]),
            halo=triple(model["halo"]),
            alignment=triple(model["alignment"]),
            phase=model["phase"],
            plane=model.get("plane", "3d"),
            grid=model.get("grid", "source"),
            sections=int(model.get("sections", 0)),
            exact=bool(model.get("exact", True)),
            normalisation=model["normalisation"],
            parameters=int(card["parameters"]),
            macs_per_voxel=float(card["macs_per_voxel"]),
            bytes_per_voxel=float(card["bytes_per_voxel"]),
            licence=str(card["licence"]),
            trained_on=str(card["trained_on"]),
            trained_factors=_trained_factors(card["training"]),
            sha256=_digest(model),
            residual=model["config"].get("residual", "none") not in (False, "none"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(folder / MODEL_FILE, error) from error


def load_module(folder: Path, *, checked: bool = False) -> Network:
    """Build the network and load its weights, in eval mode on the CPU.

    Args:
        folder: of the checkpoint.
        checked: what is recorded of its halo and grids was compared with its layers before.

    Raises:
        ModelError: as :func:`read_spec`; or the weights or the recorded halo do not fit the layers.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    model, _, weights = _read(folder)
    try:
        network = build(model["arch"], model["config"])
        network.load_state_dict(from_bytes(weights))
        derived = {} if checked else _as_json(network.geometry())
        recorded = {name: model.get(name, value) for name, value in derived.items()}
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise _unreadable(folder, error) from error
    for name, value in recorded.items():
        if value != derived[name]:
            raise ModelError(
                f"{folder / MODEL_FILE} declares {name} {value} but the layers have "
                f"{derived[name]}; save the checkpoint again"
            )
    return network.eval()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return both parts of ``model.json`` and the weights, their digest checked."""
    path = folder / MODEL_FILE
    try:
        stored = json.loads(path.read_bytes())
        version, model, card = stored["version"], stored["model"], stored["card"]
        wanted = model["weights_sha256"]
    except FileNotFoundError:
        raise ModelError(
            f"{folder} holds no {MODEL_FILE}; a checkpoint is a folder with {MODEL_FILE} and "
            f"{WEIGHTS_FILE}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    if version != VERSION:
        raise ModelError(f"{path} has version {version}; this isochunk reads version {VERSION}")
    if model.get("arch") not in NETWORKS:
        raise ModelError(
            f"{path} names architecture {model.get('arch')!r}; this version has "
            f"{', '.join(NETWORKS)}"
        )
    try:
        weights = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise ModelError(f"weights {folder / WEIGHTS_FILE} cannot be read: {error}") from error
    got = hashlib.sha256(weights).hexdigest()
    if got != wanted:
        raise ModelError(
            f"{folder / WEIGHTS_FILE} has sha256 {got} but {MODEL_FILE} records {wanted}; the "
            "file was damaged or changed; fetch the checkpoint again"
        )
    return model, card, weights


def _rounded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in half precision, which holds numbers up to 65,504."""
    found = {name: v.half() if v.is_floating_point() else v for name, v in state.items()}
    lost = [name for name, v in found.items() if v.is_floating_point() and not v.isfinite().all()]
    if lost:
        raise ModelError(
            f"half precision cannot hold {', '.join(lost)}, with numbers above 65,504; save these "
            f"weights in full (half = false in a recipe's [keeping])"
        )
    return found


def _digest(model: Mapping[str, Any]) -> str:
    canonical = json.dumps(model, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _as_json(found: Geometry) -> dict[str, Any]:
    """Return a geometry as ``model.json`` holds it."""
    stored = asdict(found)
    stored["factor"] = [None if f is None else str(f) for f in found.factor]
    stored["halo"], stored["alignment"] = list(found.halo), list(found.alignment)
    return stored


def _factor(values: list[str | None]) -> tuple[Fraction | None, Fraction | None, Fraction | None]:
    z, y, x = (None if value is None else Fraction(value) for value in values)
    return (z, y, x)


def _trained_factors(training: Mapping[str, Any]) -> tuple[Fraction, Fraction] | None:
    factors = [Fraction(factor) for factor in training.get("factors", ())]
    return (min(factors), max(factors)) if factors else None


def _unreadable(path: Path, error: Exception) -> ModelError:
    reason = f"{type(error).__name__}: {error}"
    return ModelError(f"checkpoint {path} cannot be read ({reason}); fetch or save it again")
