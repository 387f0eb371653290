"""Published methods that need no checkpoint, run as references of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from importlib.util import find_spec
from typing import Literal, TypeAlias, get_args

from isochunk.baselines import dictionary, siren
from isochunk.errors import UsageError
from isochunk.geometry import Box, Factor, triple
from isochunk.predict import Voxels, quantise
from isochunk.storage.volume import Volume
from isochunk.train.degrade import PHASES, Degradation

Reference: TypeAlias = Literal["dictionary", "siren"]

REFERENCES: tuple[Reference, ...] = get_args(Reference)

SIREN = siren.PAPER
DICTIONARY = dictionary.PAPER

LEARNT_EDGE = 256
"""Largest edge of the crop that a dictionary is learnt from, the middle of a volume."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a reference has to restore."""

    sections: Voxels
    """(z, y, x)."""
    factor: Factor
    """Target voxels per voxel."""
    degradation: Degradation
    """How sections were made."""


def check_reference(name: Reference, factor: Factor, learn_from: Volume | None) -> None:
    """Check that a reference can be run, before anything takes time.

    Raises:
        UsageError: the factor is not whole or not along z, or a dictionary has nothing to learn
            from, or its library is not installed.
    """
    z, y, x = factor
    if z.denominator != 1 or max(y, x) != 1:
        raise UsageError(f"{name} restores whole factors along z; choose another --factor")
    if name == "dictionary":
        if learn_from is None:
            raise UsageError(
                "a dictionary is learnt from an isotropic volume other than the truth; name one "
                "with --learn-from"
            )
        if find_spec("sklearn") is None:
            raise UsageError(
                "dictionaries are learnt with scikit-learn, which is not installed; "
                "pip install 'isochunk[baselines]'"
            )


def restore_by(name: Reference, task: Task, learn_from: Volume | None) -> Voxels:
    """Learn or fit, then restore.

    Args:
        name: the method, checked by :func:`check_reference`.
        task: what to restore.
        learn_from: isotropic volume for a dictionary.

    Returns:
        Target voxels, rounded to the dtype.
    """
    factor = int(task.factor[0])
    if name == "siren":
        restored = siren.restore(task.sections, factor, PHASES[task.degradation], SIREN)
    else:
        assert learn_from is not None  # checked before
        config = replace(DICTIONARY, patch=_patch(factor), degradation=task.degradation)
        learned = dictionary.learn([_middle(learn_from)], factor, config)
        restored = dictionary.restore(learned, task.sections)
    return quantise(restored, task.sections.dtype)


def _patch(factor: int) -> tuple[int, int, int]:
    """Return the patch, along z as many whole sections as come nearest, at least two."""
    z, y, x = DICTIONARY.patch
    return (max(2, round(Fraction(z, factor))) * factor, y, x)


def _middle(volume: Volume) -> Voxels:
    """Read the middle of a volume."""
    box = volume.spec.box
    lo = triple(a + max(0, (n - LEARNT_EDGE) // 2) for a, n in zip(box.lo, box.shape, strict=True))
    return volume.read(Box.from_shape((LEARNT_EDGE,) * 3, lo) & box)
