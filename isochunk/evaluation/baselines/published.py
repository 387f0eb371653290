"""Published methods that models are compared with, run as references of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.util import find_spec
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from isochunk.core.degradation import PHASES, Degradation
from isochunk.core.geometry import Box, Factor, reflected, triple
from isochunk.core.job import Device
from isochunk.core.spec import ModelSpec
from isochunk.core.voxels import Voxels, quantise
from isochunk.errors import UsageError
from isochunk.evaluation.baselines import dictionary, siren, stitched
from isochunk.models.checkpoint import load_module
from isochunk.models.load import checkpoint_folder, device_of
from isochunk.models.pssr import PSSR
from isochunk.storage.volume import Volume

Reference: TypeAlias = Literal["dictionary", "siren", "stitched"]

REFERENCES: tuple[Reference, ...] = get_args(Reference)

SIREN = siren.PAPER
DICTIONARY = dictionary.PAPER

LEARNT_EDGE = 256
"""Largest edge of the crop that a dictionary is learnt from, the middle of a volume."""


@dataclass(frozen=True, slots=True)
class BaselineInputs:
    """What references make use of."""

    models: Mapping[str, ModelSpec]
    """Models that are evaluated."""
    learn_from: Volume | None = None
    """Isotropic volume for a dictionary."""
    device: Device = "auto"
    """Where networks run."""


@dataclass(frozen=True, slots=True)
class RestorationTask:
    """What a reference has to restore."""

    sections: Voxels
    """(z, y, x)."""
    factor: Factor
    """Target voxels per voxel."""
    degradation: Degradation
    """How sections were made."""


def check_reference(name: Reference, factor: Factor, inputs: BaselineInputs) -> None:
    """Check that a reference can be run, before anything takes time.

    Raises:
        UsageError: the factor is not whole or not along z, or a dictionary has nothing to learn
            from, or its library is not installed, or there is not one pssr model to stitch.
    """
    if name == "stitched":
        sharpener(inputs)
        return
    z, y, x = factor
    if z.denominator != 1 or max(y, x) != 1:
        raise UsageError(f"{name} restores whole factors along z; choose another --factor")
    if name == "dictionary":
        if inputs.learn_from is None:
            raise UsageError(
                "a dictionary is learnt from an isotropic volume other than the truth; name one "
                "with --learn-from"
            )
        if find_spec("sklearn") is None:
            raise UsageError(
                "dictionaries are learnt with scikit-learn, which is not installed; "
                "pip install 'isochunk[baselines]'"
            )


def restore_by(name: Reference, task: RestorationTask, inputs: BaselineInputs) -> Voxels:
    """Learn or fit, then restore.

    Args:
        name: the method, checked by :func:`check_reference`.
        task: what to restore.
        inputs: what it makes use of.

    Returns:
        Target voxels, rounded to the dtype.
    """
    factor = int(task.factor[0])
    if name == "stitched":
        restored = _stitched(sharpener(inputs), task.sections, device_of(inputs.device))
    elif name == "siren":
        restored = siren.restore(task.sections, factor, PHASES[task.degradation], SIREN)
    else:
        assert inputs.learn_from is not None  # checked before
        config = replace(DICTIONARY, patch=_patch(factor), degradation=task.degradation)
        learned = dictionary.learn([_middle(inputs.learn_from)], factor, config)
        restored = dictionary.restore(learned, task.sections)
    return quantise(restored, task.sections.dtype)


def sharpener(inputs: BaselineInputs) -> str:
    """Return the model whose tiles are stitched.

    Raises:
        UsageError: not exactly one pssr model is evaluated.
    """
    names = [name for name, spec in inputs.models.items() if spec.arch == "pssr"]
    if len(names) != 1:
        raise UsageError(
            "stitched joins the tiles of one pssr model as its authors do, but the models "
            f"hold {len(names)} of them; name one with --model"
        )
    return names[0]


def _stitched(model: str, sections: Voxels, device: torch.device) -> NDArray[np.float32]:
    """Restore section by section, neighbours beyond the volume by half-sample reflection."""
    network = load_module(checkpoint_folder(model)).to(device)
    assert isinstance(network, PSSR)
    top = np.float32(np.iinfo(sections.dtype).max)

    def sharpen(frames: stitched.Image) -> stitched.Image:
        with torch.inference_mode():
            answer = network.sharpen(torch.from_numpy(frames / top)[None].to(device))[0, 0]
        image: stitched.Image = answer.cpu().numpy() * top
        return image

    near, n = network.config.sections, len(sections)
    index = reflected(-near, n + near, 0, n)
    frames = (sections[index[z : z + 2 * near + 1]].astype(np.float32) for z in range(n))
    return np.stack([stitched.stitched(sharpen, part, network.factor[1]) for part in frames])


def _patch(factor: int) -> tuple[int, int, int]:
    """Return the patch, along z as many whole sections as come nearest, at least two."""
    z, y, x = DICTIONARY.patch
    return (max(2, round(Fraction(z, factor))) * factor, y, x)


def _middle(volume: Volume) -> Voxels:
    """Read the middle of a volume."""
    box = volume.spec.box
    lo = triple(a + max(0, (n - LEARNT_EDGE) // 2) for a, n in zip(box.lo, box.shape, strict=True))
    return volume.read(Box.from_shape((LEARNT_EDGE,) * 3, lo) & box)
