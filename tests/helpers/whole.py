"""The answer for a whole volume, computed beside the product, and how blocks compare with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jobs import read_all

import isochunk
from isochunk.core.spec import ModelSpec


@dataclass(frozen=True)
class Model:
    """A model and how to run it on a whole volume."""

    name: str
    """What ``--model`` takes."""
    spec: ModelSpec
    """As planned with."""
    network: torch.nn.Module | None
    """None for cubic."""

    def whole(
        self,
        voxels: np.ndarray,
        offset: tuple[int, int, int],
        factor: Fraction,
        stored_as: str | None = None,
    ) -> np.ndarray:
        """Return the float answer, in grey levels, for a whole volume.

        Where the voxels are mended, and so no integers, their volume's dtype is ``stored_as``.
        """
        if self.network is None:
            return keys_whole(voxels, factor)
        grid, halo = self.spec.alignment, self.spec.halo
        # Much more than the halo, and the first voxel on the pooling grid.
        before = [
            2 * h + 5 + (o - 2 * h - 5) % g for h, o, g in zip(halo, offset, grid, strict=True)
        ]
        after = [
            2 * h + 5 + -(b + n + 2 * h + 5) % g
            for h, b, n, g in zip(halo, before, voxels.shape, grid, strict=True)
        ]
        around = np.pad(voxels, list(zip(before, after, strict=True)), mode="symmetric")
        stored = np.dtype(stored_as or voxels.dtype)
        shift, scale = 0.0, float(np.iinfo(stored).max)
        if self.spec.normalisation == "standard":
            rounded = np.clip(np.rint(voxels), 0, scale)
            seen = rounded[rounded > 0].astype(np.float64)
            shift, scale = seen.mean(), seen.std()
        x = torch.from_numpy(((around.astype(np.float64) - shift) / scale).astype(np.float32))
        with torch.inference_mode():
            answer = self.network(x[None, None])[0, 0].numpy() * scale + shift
        z, y, x_ = (slice(b, b + n) for b, n in zip(before, voxels.shape, strict=True))
        return answer[z.start * int(factor) : z.stop * int(factor), y, x_]


def keys_whole(voxels: np.ndarray, factor: Fraction) -> np.ndarray:
    """Interpolate along z in double precision: Keys 1981, a = -0.5, from its definition."""
    n = voxels.shape[0]
    matrix = np.zeros((int(n * factor), n + 2 * n))
    for j in range(len(matrix)):
        centre = (Fraction(2 * j + 1, 2) / factor) - Fraction(1, 2)
        for i in range(-n, 2 * n):
            d = abs(float(centre - i))
            near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
            matrix[j, i + n] = near if d <= 1 else far if d < 2 else 0
    around = np.pad(voxels, [(n, n), (0, 0), (0, 0)], mode="symmetric")
    return np.tensordot(matrix, around.astype(np.float64), 1)


def assert_equals_whole(got: np.ndarray, exact: np.ndarray) -> None:
    """Compare stored voxels with the whole-volume answer before it was rounded."""
    limits = np.iinfo(got.dtype)
    assert got.shape == exact.shape
    assert exact.std() > 0.03 * limits.max  # there is something to get wrong
    inside = (exact > limits.min) & (exact < limits.max)
    assert inside.mean() > 0.5  # and it is not clipped away
    wanted = np.clip(np.rint(exact), limits.min, limits.max).astype(np.int64)
    difference = np.abs(got.astype(np.int64) - wanted)
    assert difference.max() <= 1, np.argwhere(difference == difference.max())[:5]
    if got.dtype == np.uint8:  # 99.99 %, and what chance makes of that in a small volume
        assert np.count_nonzero(difference) <= 1e-4 * got.size + 3
    # A grey level of difference is allowed only for what float32 cannot tell from a half.
    off = np.abs(got - np.clip(exact, limits.min, limits.max))
    assert off.max() <= 0.5 + 2e-6 * limits.max


def assert_every_block_shape(
    job: isochunk.Job, blocks: Mapping[str, Mapping[str, Any]], exact: np.ndarray
) -> None:
    """Run a job by blocks of several shapes, each to its own target; compare with the whole."""
    for shape, options in blocks.items():
        target = f"{job.target}-{shape}"
        report = isochunk.run(isochunk.plan(replace(job, target=target, **options)))
        assert report.complete, report.errors
        assert report.seam is None or report.seam.max_difference <= 1
        assert_equals_whole(read_all(target), exact)
