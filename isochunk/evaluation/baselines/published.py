"""Published methods by name: what each needs is checked first, then it is learnt and restores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from isochunk.core.degradation import PHASES, Degradation
from isochunk.core.geometry import Box, Factor, reflected, triple
from isochunk.core.job import Device
from isochunk.core.option_names import option
from isochunk.core.spec import ModelSpec
from isochunk.core.voxels import Voxels, quantise
from isochunk.errors import UsageError
from isochunk.evaluation.baselines import dictionary, siren, stitched
from isochunk.evaluation.config import Baseline, EvaluateConfig
from isochunk.models.checkpoint import load_module
from isochunk.models.load import checkpoint_folder, device_of
from isochunk.models.pssr import PSSR
from isochunk.storage.volume import Volume

SIREN_CONFIG = siren.PAPER_CONFIG
DICTIONARY_CONFIG = dictionary.PAPER_CONFIG

NETWORKS: Mapping[Baseline, str] = {
    "a2i": "a2i-z2-10",
    "diffusion": "diffusion-z2-10",
    "pssr": "pssr-z2-10",
    "srmd": "srmd-z2-10",
    "swinir": "swinir-z2-10",
}
"""Checkpoints of published networks, evaluated like any other model."""

MAX_CROP_EDGE = 256
"""Largest edge of the crop that a dictionary is learnt from, the middle of a volume."""


@dataclass(frozen=True, slots=True)
class BaselineSetup:
    """What published methods are run with in one evaluation."""

    factor: Factor
    """Target voxels per voxel."""
    degradation: Degradation
    """How sections were made."""
    models: Mapping[str, ModelSpec]
    """Models that are evaluated, by name; ``stitched`` takes the one pssr model among them."""
    learn_from: Volume | None
    """Isotropic volume for a dictionary."""
    device: Device
    """Where networks run."""


def with_networks(config: EvaluateConfig) -> EvaluateConfig:
    """Return a config whose references that are networks stand among its models."""
    named = tuple(NETWORKS[name] for name in config.references if name in NETWORKS)
    others = tuple(name for name in config.references if name not in NETWORKS)
    return replace(config, models=(*config.models, *named), references=others)


def check_baseline(name: Baseline, setup: BaselineSetup) -> None:
    """Check that a method can be run, before anything takes time.

    Raises:
        UsageError: the factor is not whole or not along z, or a dictionary has nothing to learn
            from, or its library is not installed, or there is not one pssr model to stitch.
    """
    if name == "stitched":
        _model_to_stitch(setup)
        return
    z, y, x = setup.factor
    if z.denominator != 1 or max(y, x) != 1:
        raise UsageError(f"{name} restores whole factors along z; choose another --factor")
    if name == "dictionary":
        if setup.learn_from is None:
            raise UsageError(
                "a dictionary is learnt from an isotropic volume other than the truth; name one "
                f"with {option('learn_from')}"
            )
        if find_spec("sklearn") is None:
            raise UsageError(
                "dictionaries are learnt with scikit-learn, which is not installed; "
                "pip install 'isochunk[baselines]'"
            )


def restore_by_baseline(name: Baseline, sections: Voxels, setup: BaselineSetup) -> Voxels:
    """Learn or fit, then restore.

    Args:
        name: the method, checked by :func:`check_baseline`.
        sections: what to restore, (z, y, x).
        setup: how they were made, and what the method needs besides.

    Returns:
        Target voxels, (z, y, x), rounded to the dtype of the sections.
    """
    factor = int(setup.factor[0])
    if name == "stitched":
        device = device_of(setup.device)
        restored = _restore_stitched(_model_to_stitch(setup), sections, device)
    elif name == "siren":
        restored = siren.restore(sections, factor, PHASES[setup.degradation], SIREN_CONFIG)
    else:
        assert setup.learn_from is not None  # checked before
        config = replace(
            DICTIONARY_CONFIG, patch=_dictionary_patch(factor), degradation=setup.degradation
        )
        learned = dictionary.learn(_read_middle(setup.learn_from), factor, config)
        restored = dictionary.restore(learned, sections)
    return quantise(restored, sections.dtype)


def _model_to_stitch(setup: BaselineSetup) -> str:
    """Return the model whose tiles are stitched.

    Raises:
        UsageError: not exactly one pssr model is evaluated.
    """
    names = [name for name, spec in setup.models.items() if spec.arch == "pssr"]
    if len(names) != 1:
        raise UsageError(
            "stitched joins the tiles of one pssr model as its authors do, but the evaluated "
            f"models hold {len(names)} of them; name one with --model"
        )
    return names[0]


def _restore_stitched(model: str, sections: Voxels, device: torch.device) -> NDArray[np.float32]:
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
    lateral = network.factor[1]
    return np.stack([stitched.restore_stitched(sharpen, part, lateral) for part in frames])


def _dictionary_patch(factor: int) -> tuple[int, int, int]:
    """Return the patch, along z as many whole sections as come nearest, at least two."""
    z, y, x = DICTIONARY_CONFIG.patch
    return (max(2, round(Fraction(z, factor))) * factor, y, x)


def _read_middle(volume: Volume) -> Voxels:
    """Read the middle of a volume, what a dictionary is learnt from."""
    box, edge = volume.spec.box, MAX_CROP_EDGE
    lo = triple(a + max(0, (n - edge) // 2) for a, n in zip(box.lo, box.shape, strict=True))
    return volume.read(Box.from_shape((edge, edge, edge), lo) & box)
