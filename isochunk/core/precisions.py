"""What each number format of a network's layers is worth: how exact, and how exactly tiled."""

from __future__ import annotations

from dataclasses import dataclass

from isochunk.core.job import Precision


@dataclass(frozen=True, slots=True)
class Worth:
    """What is expected of a format, in uint8 voxels."""

    identical_to_fp32: float
    """Share of voxels that come out as in fp32 where a network adds to an interpolation; others
    differ by a grey level or two. One that answers by itself loses more."""
    seam_identical: float
    """Share of voxels that come out the same wherever a volume is cut, at least."""
    seam_difference: int
    """Grey levels by which the others differ, at most."""


WORTH: dict[Precision, Worth] = {
    "fp32": Worth(1.0, 0.9999, 1),
    "tf32": Worth(0.98, 0.999, 1),
    "fp16": Worth(0.98, 0.999, 1),
    "bf16": Worth(0.9, 0.99, 2),
}
"""``identical_to_fp32``: of shipped networks on FIB-SEM of the medulla, the least, rounded down;
see docs/gpu.md. fp32 differs where sums are made in another order."""

INTERPOLATED = Worth(1.0, 1.0, 0)
"""Interpolations sum the same products in the same order anywhere."""
