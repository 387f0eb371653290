"""Interpolation: target voxels a second on one core."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from isochunk.core.geometry import Box
from isochunk.models.interpolation import Interpolation, interpolation_spec

ONE = Fraction(1)


@pytest.mark.parametrize("name", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("factor", [Fraction(4), Fraction(225, 23)])
def test_a_block_of_128(benchmark: Any, name: str, factor: Fraction) -> None:
    model = Interpolation(interpolation_spec(name).for_factor((factor, ONE, ONE)))
    write = Box.from_shape((128, 128, 128))
    read = model.spec.read_box(write)
    source = np.random.default_rng(0).integers(0, 256, read.shape, "uint8")
    result = benchmark(model.restore, source, read, write)
    assert result.shape == write.shape
    benchmark.extra_info["voxels"] = write.size
