"""Write an isotropic volume with coarser sections: what self-supervised recipes learn from.

python benchmarks/coarse.py SOURCE TARGET FACTOR [avg | skip]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from fractions import Fraction

from isochunk.core.geometry import triple
from isochunk.evaluation.ground_truth import degrade_voxels, degraded_spec
from isochunk.storage.open import create_volume, open_volume

CHUNK = (64, 64, 64)


def write_coarse(source: str, target: str, factor: Fraction, degradation: str) -> str:
    """Write a volume whose sections are ``factor`` voxels of another; return its URL."""
    if degradation not in ("avg", "skip"):
        raise SystemExit(f"degradation is avg or skip, got {degradation}")
    truth = open_volume(source)
    factors = (factor, Fraction(1), Fraction(1))
    voxels = degrade_voxels(
        truth.read(truth.spec.box), factors, "avg" if degradation == "avg" else "skip"
    )
    spec = degraded_spec(truth.spec, truth.spec.box, factors)
    (level,) = spec.levels
    chunk = triple(min(n, c) for n, c in zip(voxels.shape, CHUNK, strict=True))
    level = replace(level, key="0", chunk=chunk)
    made = replace(spec, url=target, format="precomputed", levels=(level,))
    create_volume(made).write(level.box, voxels)
    return target


if __name__ == "__main__":
    url, where, ratio, *how = sys.argv[1:]
    print(write_coarse(url, where, Fraction(ratio), how[0] if how else "avg"))
