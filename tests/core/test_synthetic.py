"""The synthetic volume is one endless volume, whatever box of it is made."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isochunk.core.geometry import Spacing
from isochunk.core.synthetic import synthetic_em, synthetic_pair
from isochunk.errors import UsageError

WHOLE_SHAPE, WHOLE_ORIGIN = (40, 90, 100), (-20, 1000, -37)


@pytest.fixture(scope="module")
def whole():
    return synthetic_em(WHOLE_SHAPE, seed=3, origin=WHOLE_ORIGIN)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_box_is_cut_from_the_same_volume(whole, data):
    lo = [data.draw(st.integers(0, n - 1)) for n in WHOLE_SHAPE]
    hi = [data.draw(st.integers(a + 1, n)) for a, n in zip(lo, WHOLE_SHAPE, strict=True)]
    index = tuple(map(slice, lo, hi))
    part = synthetic_em(tuple(np.subtract(hi, lo)), seed=3, origin=tuple(np.add(lo, WHOLE_ORIGIN)))
    np.testing.assert_array_equal(part, whole[index])


def test_it_has_structure_at_every_scale_and_no_background(whole):
    assert whole.dtype == np.uint8
    assert whole.min() > 0
    dark, bright = np.percentile(whole, [2, 98])
    assert bright - dark > 60
    # Structure, not noise alone: neighbours are alike, voxels far apart are not.
    signal = whole.astype(float) - whole.mean()
    near, far = (np.mean(signal[:, :, k:] * signal[:, :, :-k]) / signal.var() for k in (1, 60))
    assert near > 0.6
    assert abs(far) < 0.3


def test_seeds_give_other_volumes(whole):
    other = synthetic_em(WHOLE_SHAPE, seed=4, origin=WHOLE_ORIGIN)
    assert np.corrcoef(whole.ravel(), other.ravel())[0, 1] < 0.3


def test_structures_keep_their_size_in_nm():
    # Every third voxel of 8 nm has its centre where a voxel of 24 nm has its own.
    fine = synthetic_em((48, 96, 96), seed=1).astype(float)
    coarse = synthetic_em((16, 32, 32), seed=1, spacing=Spacing.parse("24,24,24")).astype(float)
    assert np.corrcoef(fine[1::3, 1::3, 1::3].ravel(), coarse.ravel())[0, 1] > 0.7


def test_pair_is_truth_and_its_mean_over_sections():
    coarse, truth = synthetic_pair((6, 40, 50), 4, seed=2)
    assert (coarse.shape, truth.shape) == ((6, 40, 50), (24, 40, 50))
    np.testing.assert_array_equal(truth, synthetic_em((24, 40, 50), seed=2))
    error = coarse - truth.reshape(6, 4, 40, 50).mean(axis=1)
    assert np.abs(error).max() <= 0.5


def test_impossible_shapes_are_refused():
    with pytest.raises(UsageError, match="holds no voxels"):
        synthetic_em((4, 0, 4))
    with pytest.raises(UsageError, match="factor 0"):
        synthetic_pair((4, 4, 4), 0)
