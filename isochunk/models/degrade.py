"""How an isotropic volume is made anisotropic, for training and for evaluation."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from isochunk.core.degradation import Degradation
from isochunk.errors import UsageError

FWHM_SIGMAS = 2 * math.sqrt(2 * math.log(2))
"""Full width of a Gaussian at half maximum, in standard deviations."""


def degrade(isotropic: Tensor, factor: Fraction | int, degradation: Degradation) -> Tensor:
    """Make every ``factor`` target voxels along z one section.

    Args:
        isotropic: (b, c, z, y, x), float; z must be a multiple of an integer ``factor``. What a
            rational one leaves over at the end is in no section.
        factor: target voxels per section.
        degradation: ``avg``, ``skip`` or ``psf``.

    Returns:
        (b, c, floor(z / factor), y, x).

    Raises:
        UsageError: the factor is below 1, z makes no whole sections, or the degradation is
            unknown.
    """
    b, c, depth, y, x = isotropic.shape
    ratio = Fraction(factor)
    if ratio.denominator == 1 and degradation != "psf":
        _whole_sections(depth, ratio)
        if degradation == "avg":
            return avg_pool3d(isotropic, (ratio.numerator, 1, 1))
        if degradation == "skip":
            return isotropic[:, :, :: ratio.numerator]
    weights = section_weights(depth, ratio, degradation, isotropic.device).to(isotropic.dtype)
    return (weights @ isotropic.reshape(b, c, depth, y * x)).view(b, c, -1, y, x)


def section_weights(
    depth: int, factor: Fraction | int, degradation: Degradation, device: torch.device | None = None
) -> Tensor:
    """Return how much each target voxel counts in each section; every row sums to 1.

    ``avg`` weighs by the length of the overlap. ``skip`` interpolates linearly between the two
    voxels around ``i * factor``. ``psf`` leaves the Gaussian's tails beyond the volume out.

    Args:
        depth: target voxels along z, a multiple of an integer ``factor``.
        factor: target voxels per section.
        degradation: ``avg``, ``skip`` or ``psf``.
        device: where the weights are computed; nothing is copied to it.

    Returns:
        float32 (floor(depth / factor), depth).

    Raises:
        UsageError: as :func:`degrade` says.
    """
    ratio = Fraction(factor)
    sections = _whole_sections(depth, ratio)
    p, q = ratio.numerator, ratio.denominator
    # In units of 1 / q voxel all edges are integers, so nothing is rounded before the division.
    first = torch.arange(sections, device=device)[:, None] * p
    voxel = torch.arange(depth, device=device) * q
    if degradation == "avg":
        overlap = torch.minimum(first + p, voxel + q) - torch.maximum(first, voxel)
        return overlap.clamp(min=0) / p
    if degradation == "skip":
        return (q - (voxel - first).abs()).clamp(min=0) / q
    if degradation == "psf":
        distance = ((voxel - first) * 2 + q - p) / (2 * p)  # between centres, in sections
        gauss = torch.exp(-0.5 * (distance * FWHM_SIGMAS).square())
        return gauss / gauss.sum(1, keepdim=True)
    raise UsageError(
        f"degradation {degradation!r} is unknown; choose one of {', '.join(get_args(Degradation))}"
    )


def _whole_sections(depth: int, ratio: Fraction) -> int:
    if ratio < 1:
        raise UsageError(f"factor {ratio} must be at least 1 target voxel per section")
    sections, left_over = divmod(depth, ratio)
    if sections < 1 or (left_over and ratio.denominator == 1):
        raise UsageError(
            f"{depth} voxels along z cannot be made whole sections of {ratio}; "
            f"choose a multiple, e.g. {math.ceil(max(1, sections) * ratio)}"
        )
    return sections
