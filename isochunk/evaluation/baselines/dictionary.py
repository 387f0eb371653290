"""Super-resolution by sparse codes over a learned dictionary, the baseline of Heinrich's Table 3.

Veeraraghavan et al. 2010 (CVPR, p. 1767) restore electron microscopy along z by writing every patch
as a sum of few atoms; Heinrich et al. 2017 compare their networks with it. A dictionary
is learned on coarse and fine patches joined, so that one code stands for both; a coarse patch is
coded with the coarse parts of the atoms, and the fine parts are summed with the same code.
Overlapping patches are averaged.

The papers leave open, and here it is chosen: patches are what cubic interpolation leaves over (so
an empty code is cubic), coarse patches are scaled to unit length before they are coded, so lambda
means the same at any contrast, and the fine parts are fitted once more, by ridge regression, to the
codes that coarse patches get alone (as in Zeyde et al. 2010, LNCS 6920:711), since fine voxels
help no code when a volume is restored.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode

from isochunk.core.degradation import PHASES, Degradation
from isochunk.core.geometry import AXES, Triple
from isochunk.core.voxels import quantise
from isochunk.errors import UsageError
from isochunk.models.degrade import degrade
from isochunk.models.interpolation import resample, whole_axis_taps

Array: TypeAlias = NDArray[np.float32]

RIDGE = 1e-3
"""Weight of the fine atoms' size in their last fit, per patch and atom."""

LEARN_BATCH = 512
"""Patches per step of learning."""

LEARN_SWEEPS = 20
"""Sweeps of coordinate descent per code while learning; the next step makes better ones."""

ROWS_AT_A_TIME = 16
"""Rows of patches coded at a time."""


@dataclass(frozen=True, slots=True)
class DictionaryConfig:
    """What is learned, and how patches are coded."""

    patch: Triple = (16, 8, 8)
    """Target voxels of a patch; along z a multiple of the factor. The papers use 8 to 16."""
    atoms: int = 256
    """Size of the dictionary; 200 to 1024 in the papers."""
    penalty: float = 0.05
    """Lambda of the codes while learning; 0.05 to 0.09 in the papers."""
    nonzero: int = 16
    """Atoms per patch when restoring, chosen by orthogonal matching pursuit."""
    pairs: int = 32_000
    """Patches taken; a quarter of them makes the dictionary, and all fit its fine part."""
    epochs: int = 2
    """Passes over the patches that make the dictionary."""
    stride: int = 4
    """Voxels between restored patches along y and x; along z every section begins one."""
    degradation: Degradation = "avg"
    """How sections are made."""


PAPER_CONFIG = DictionaryConfig()


@dataclass(frozen=True, slots=True, eq=False)
class Dictionary:
    """A learned dictionary; one code is for both halves of it."""

    config: DictionaryConfig
    """How it was learned."""
    factor: int
    """Target voxels per section."""
    coarse: Array
    """(atoms, voxels of a coarse patch); each of length 1."""
    fine: Array
    """(atoms, voxels of a fine patch): what they add to cubic interpolation."""


def learn(
    crop: NDArray[Any],
    factor: int,
    config: DictionaryConfig = PAPER_CONFIG,
    seed: int = 0,
) -> Dictionary:
    """Learn a dictionary from an isotropic crop.

    Args:
        crop: integers, (z, y, x).
        factor: target voxels per section.
        config: what to learn.
        seed: of the choice of patches and of the first dictionary.

    Raises:
        UsageError: the crop is smaller than a patch or constant, or the patch is no whole sections.
    """
    _check(config, factor)
    rng = np.random.default_rng(seed)
    coarse, fine = _patch_pairs(crop, factor, config, rng)
    coarse, lengths = _scaled(coarse)
    fine = fine / lengths
    # Weights make both halves count alike, however many voxels they have (Yang et al. 2010).
    weight = np.sqrt(coarse.shape[1] / fine.shape[1])
    training = slice(max(config.atoms, len(coarse) // 4))
    learner = MiniBatchDictionaryLearning(
        config.atoms,
        alpha=config.penalty,
        max_iter=config.epochs,
        batch_size=LEARN_BATCH,
        fit_algorithm="cd",
        transform_max_iter=LEARN_SWEEPS,
        max_no_improvement=None,
        random_state=seed,
    )
    joint = np.concatenate([coarse[training], weight * fine[training]], 1).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # codes that did not converge
        atoms = learner.fit(joint).components_[:, : coarse.shape[1]]
    lengths = np.linalg.norm(atoms, axis=1, keepdims=True)
    atoms = (atoms / np.maximum(lengths, np.finfo(np.float32).eps)).astype(np.float32)
    codes = _codes(coarse, atoms, config.nonzero)
    ridge = RIDGE * len(codes) / config.atoms * np.eye(config.atoms)
    fitted = np.linalg.solve(codes.T @ codes + ridge, codes.T @ fine)
    return Dictionary(config, factor, atoms, fitted.astype(np.float32))


def restore(dictionary: Dictionary, coarse: NDArray[Any]) -> Array:
    """Restore a volume along z.

    Args:
        dictionary: learned at the factor and degradation of the volume.
        coarse: (z, y, x), values in the unit of the dictionary's crops.

    Returns:
        (z * factor, y, x), not rounded.

    Raises:
        UsageError: the volume is smaller than a patch.
    """
    config, factor = dictionary.config, dictionary.factor
    shape = _coarse_patch(config, factor)
    _require_patch(coarse.shape, shape, "coarse volume")
    result = _cubic(coarse, factor, config.degradation)
    added, count = np.zeros_like(result), np.zeros_like(result)
    xs = _starts(coarse.shape[2], shape[2], config.stride)
    for z, ys in _rows_of_patches(coarse.shape, shape, config.stride):
        patches = sliding_window_view(coarse[z : z + shape[0]], shape)[0][np.ix_(ys, xs)]
        values, lengths = _scaled(patches.reshape(len(ys) * len(xs), -1))
        codes = _codes(values, dictionary.coarse, config.nonzero)
        restored = (codes @ dictionary.fine * lengths).astype(np.float32)
        restored = restored.reshape(len(ys), len(xs), *config.patch)
        zs = np.arange(z * factor, z * factor + config.patch[0])
        for y in range(shape[1]):
            for x in range(shape[2]):  # starts differ, so no voxel is met twice
                where = np.ix_(zs, ys + y, xs + x)
                added[where] += restored[:, :, :, y, x].transpose(2, 0, 1)
                count[where] += 1
    result += added / np.maximum(count, 1)
    return result


def _patch_pairs(
    crop: NDArray[Any], factor: int, config: DictionaryConfig, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Take coarse patches, and what cubic interpolation leaves over in the fine ones."""
    crop = crop[: len(crop) // factor * factor]
    _require_patch(crop.shape, config.patch, "crop")
    if crop.min() == crop.max():
        raise UsageError("nothing can be learned from a crop of one value; choose another box")
    volume = torch.from_numpy(crop.astype(np.float32))[None, None]
    degraded: Array = degrade(volume, Fraction(factor), config.degradation)[0, 0].numpy()
    sections = quantise(degraded, crop.dtype)
    left = crop - _cubic(sections, factor, config.degradation)
    patch = _coarse_patch(config, factor)
    z, y, x = (
        rng.integers(0, n - p + 1, config.pairs) for n, p in zip(sections.shape, patch, strict=True)
    )
    coarse = sliding_window_view(sections, patch)[z, y, x]
    fine = sliding_window_view(left, config.patch)[z * factor, y, x]
    order = rng.permutation(config.pairs)
    return coarse.reshape(config.pairs, -1)[order], fine.reshape(config.pairs, -1)[order]


def _cubic(sections: NDArray[Any], factor: int, degradation: Degradation) -> Array:
    """Interpolate along z, reflected at the ends."""
    taps = whole_axis_taps("cubic", len(sections), Fraction(factor), PHASES[degradation])
    return resample(sections, taps, axis=0)


def _scaled(patches: NDArray[Any]) -> tuple[Array, Array]:
    """Take the mean off patches and scale them to length 1; return the lengths too."""
    values = patches.astype(np.float32)
    values -= values.mean(1, keepdims=True)
    lengths = np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1).astype(np.float32)
    return values / lengths, lengths


def _codes(values: Array, atoms: Array, nonzero: int) -> Array:
    """Code patches by orthogonal matching pursuit, (patches, atoms)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer atoms than asked for may do for a flat patch
        codes = sparse_encode(values, atoms, algorithm="omp", n_nonzero_coefs=nonzero)
    return np.asarray(codes, np.float32)


def _rows_of_patches(
    shape: tuple[int, ...], patch: Triple, stride: int
) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield where patches start along z, with where some rows of them start along y."""
    ys = _starts(shape[1], patch[1], stride)
    for z in range(shape[0] - patch[0] + 1):
        for start in range(0, len(ys), ROWS_AT_A_TIME):
            yield z, ys[start : start + ROWS_AT_A_TIME]


def _starts(extent: int, patch: int, stride: int) -> NDArray[np.intp]:
    """Return where patches start along an axis; the last one ends with it."""
    return np.unique([*range(0, extent - patch, stride), extent - patch]).astype(np.intp)


def _coarse_patch(config: DictionaryConfig, factor: int) -> Triple:
    return (config.patch[0] // factor, *config.patch[1:])


def _check(config: DictionaryConfig, factor: int) -> None:
    if min(*config.patch, config.atoms, config.nonzero, config.pairs, config.stride, factor) < 1:
        raise UsageError(f"a dictionary needs numbers of at least 1; got {config} at {factor}")
    if config.patch[0] % factor:
        raise UsageError(
            f"patches of {config.patch[0]} voxels along z are no whole sections of {factor}; "
            "choose a multiple"
        )


def _require_patch(shape: tuple[int, ...], patch: Triple, what: str) -> None:
    for axis, have, want in zip(AXES, shape, patch, strict=True):
        if have < want:
            raise UsageError(
                f"the {what} has {have} voxels along {axis}, but a patch of the dictionary has "
                f"{want}; choose a larger box or a smaller patch"
            )
