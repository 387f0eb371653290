"""Interpolation: against independent references, and tiled against whole."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interpolations import ONE, predict, predictor
from scipy import ndimage

from isochunk.core.geometry import Box, target_box
from isochunk.errors import ModelError
from isochunk.models.interpolation import INTERPOLATIONS, interpolation_spec


def noise(shape: tuple[int, int, int], dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


@pytest.mark.parametrize("factor", [Fraction(4), Fraction(10), Fraction(225, 23), Fraction(3, 2)])
def test_linear_agrees_with_scipy_at_the_same_centres(factor: Fraction) -> None:
    volume = noise((12, 5, 6))
    bounds = Box.from_shape(volume.shape)
    whole = predict(
        predictor("linear", (factor, ONE, ONE)),
        volume,
        bounds,
        target_box(bounds, (factor, ONE, ONE)),
    )
    centres = (np.arange(whole.shape[0]) + 0.5) / float(factor) - 0.5
    grid = np.meshgrid(centres, np.arange(5), np.arange(6), indexing="ij")
    wanted = ndimage.map_coordinates(volume.astype(float), grid, order=1, mode="reflect")
    assert np.abs(whole - wanted).max() <= 0.5 + 1e-3


def test_cubic_reproduces_quadratics() -> None:
    """Keys' kernel with a = -0.5 is exact for polynomials of degree two."""
    z = np.arange(32)
    values = (1000 + 40 * z + 3 * z * z).astype("uint16")
    volume = np.broadcast_to(values[:, None, None], (32, 2, 2))
    bounds = Box.from_shape((32, 2, 2))
    out = predict(
        predictor("cubic", (Fraction(4), ONE, ONE)), volume, bounds, Box((16, 0, 0), (112, 2, 2))
    )
    centre = (np.arange(16, 112) + 0.5) / 4 - 0.5
    assert np.abs(out[:, 0, 0] - (1000 + 40 * centre + 3 * centre**2)).max() <= 0.51


def test_nearest_repeats_sections() -> None:
    volume = noise((5, 3, 4))
    bounds = Box.from_shape(volume.shape)
    model = predictor("nearest", (Fraction(10), ONE, Fraction(2)))
    out = predict(model, volume, bounds, target_box(bounds, model.spec.resolved_factor))
    np.testing.assert_array_equal(out, volume.repeat(10, 0).repeat(2, 2))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([n for n in INTERPOLATIONS if n != "identity"]),
    factor=st.tuples(
        st.sampled_from([ONE, Fraction(4), Fraction(10), Fraction(225, 23), Fraction(5, 2)]),
        st.sampled_from([ONE, Fraction(3, 2)]),
        st.sampled_from([ONE, Fraction(1, 2)]),
    ),
    shape=st.tuples(st.integers(1, 9), st.integers(2, 9), st.integers(2, 9)),
    dtype=st.sampled_from(["uint8", "uint16"]),
    data=st.data(),
)
def test_any_box_equals_the_crop_of_the_whole(
    name: str,
    factor: tuple[Fraction, Fraction, Fraction],
    shape: tuple[int, int, int],
    dtype: str,
    data: st.DataObject,
) -> None:
    volume = noise(shape, dtype)
    bounds = Box.from_shape(shape)
    model = predictor(name, factor)
    target = target_box(bounds, factor)
    whole = predict(model, volume, bounds, target)
    lo = tuple(data.draw(st.integers(0, n - 1)) for n in target.hi)
    hi = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(lo, target.hi, strict=True))
    write = Box(lo, hi)
    np.testing.assert_array_equal(
        predict(model, volume, bounds, write), whole[write.slices((0, 0, 0))]
    )


def test_averaging_the_output_gives_the_grid_back() -> None:
    """Half-voxel convention: the mean of a linear ramp's target voxels is the source voxel."""
    volume = np.broadcast_to(np.arange(0, 160, 16)[:, None, None], (10, 2, 2)).astype("uint8")
    bounds = Box.from_shape(volume.shape)
    out = predict(
        predictor("linear", (Fraction(4), ONE, ONE)), volume, bounds, Box((8, 0, 0), (32, 2, 2))
    )
    np.testing.assert_array_equal(out.reshape(6, 4, 2, 2).mean(1), volume[2:8])


def test_unknown_interpolation_and_wrong_factor() -> None:
    with pytest.raises(ModelError, match="choose one of identity"):
        interpolation_spec("lanczos")
    with pytest.raises(ModelError, match="factor 1 x 1 x 1"):
        interpolation_spec("identity").for_factor((Fraction(4), ONE, ONE))
