"""Pooling, checksums and conversion of voxels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isochunk.core.voxels import checksum, convert, pool

shapes = st.tuples(*[st.integers(1, 9)] * 3)


@given(
    shape=shapes,
    by=st.tuples(*[st.sampled_from([1, 2])] * 3),
    dtype=st.sampled_from(["uint8", "uint16"]),
)
def test_pool_is_the_mean_of_the_voxels_that_exist(
    shape: tuple[int, int, int], by: tuple[int, int, int], dtype: str
) -> None:
    voxels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype)
    pooled = pool(voxels, by)
    assert pooled.dtype == voxels.dtype
    for index in np.ndindex(pooled.shape):
        window = voxels[tuple(slice(i * p, i * p + p) for i, p in zip(index, by, strict=True))]
        assert pooled[index] == int(np.floor(window.astype(float).mean() + 0.5))


@pytest.mark.parametrize("shape", [(9, 6, 5), (8, 3, 3), (1, 7, 2)])
@pytest.mark.parametrize("by", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
def test_pooling_in_slabs_is_pooling(
    shape: tuple[int, int, int], by: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    whole = pool(voxels, by)
    for limit in (1, 40, 90):
        monkeypatch.setattr("isochunk.core.voxels.POOLED_VOXELS", limit)
        np.testing.assert_array_equal(pool(voxels, by), whole)


def test_checksum_is_of_values_not_of_memory_order() -> None:
    voxels = np.arange(24, dtype="uint16").reshape(2, 3, 4)
    assert checksum(voxels) == checksum(np.asfortranarray(voxels))
    assert checksum(voxels) == checksum(voxels.astype(">u2"))
    assert checksum(voxels) != checksum(voxels + 1)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255])
def test_dtype_conversion_keeps_the_full_range(value: int) -> None:
    narrow = np.full((1, 1, 1), value, "uint8")
    wide = convert(narrow, "uint16")
    assert wide.item() == value * 257
    assert convert(wide, "uint8").item() == value
    assert convert(wide - np.uint16(value > 0) * np.uint16(128), "uint8").item() == value
