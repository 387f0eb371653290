"""Interpolations applied to arrays."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from isochunk.core.geometry import Box, reflected
from isochunk.models.interpolation import Interpolation, interpolation_spec

ONE = Fraction(1)


def predictor(name: str, factor: tuple[Fraction, Fraction, Fraction]) -> Interpolation:
    return Interpolation(interpolation_spec(name).for_factor(factor))


def predict(model: Interpolation, volume: np.ndarray, bounds: Box, write: Box) -> np.ndarray:
    read = model.spec.read_box(write)
    index = [
        reflected(*ends) - ends[2]
        for ends in zip(read.lo, read.hi, bounds.lo, bounds.hi, strict=True)
    ]
    return model.restore(volume[np.ix_(*index)], read, write)
