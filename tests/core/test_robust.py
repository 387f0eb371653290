"""Medians of what is around, against numpy's."""

from __future__ import annotations

import math

import numpy as np

from isochunk.core.robust import median_around, robust_spread


def test_medians_leave_out_the_value_itself_and_what_is_unknown() -> None:
    values = np.random.default_rng(0).normal(size=(30, 5))
    values[np.random.default_rng(1).random(values.shape) < 0.3] = math.nan
    values[:, 4] = math.nan
    found = median_around(values, 3)
    for i in range(30):
        near = np.delete(values[max(0, i - 3) : i + 4], min(i, 3), 0)[:, :4]
        expected = [
            np.median(c[~np.isnan(c)]) if (~np.isnan(c)).any() else math.nan for c in near.T
        ]
        np.testing.assert_array_equal(found[i, :4], expected)
    assert np.isnan(found[:, 4]).all()
    np.testing.assert_array_equal(median_around(values[:, 0], 3), found[:, 0])


def test_the_spread_is_that_of_the_middle_half() -> None:
    values = np.random.default_rng(0).normal(0, 3, 2001)
    values[::10] = 1000
    assert abs(robust_spread(values) - 3) < 0.6
    assert robust_spread(np.array([math.nan])) == 0
