"""Which section each file of a folder is; and what is kept of files that were read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isochunk.errors import UsageError
from isochunk.storage.files.kept import KeptSegments
from isochunk.storage.files.numbering import number_sections

NAMES = {
    "two numberings": (
        ["a_1.tif", "a_2.tif", "b_1.tif"],
        r"files of 2 numberings, as a_1.tif \(2 files\), b_1.tif \(1 files\); give each a folder",
    ),
    "two numbers": (
        ["z1_t1.tif", "z1_t2.tif", "z2_t1.tif"],
        r"differ by 2 numbers, as z1_t1.tif and z2_t1.tif; keep one numbering",
    ),
    "a section twice": (["s_1.tif", "s_01.tif"], r"section 1 twice: s_01.tif and s_1.tif"),
    "other images": (["s_1.tif", "s_2.png"], r"1 TIFF files and other images \(s_2.png\); keep"),
    "mostly lost": (
        ["s_1.tif", "s_900.tif"],
        r"numbers 1 to 900 of in only 2 are there; .* number",
    ),
}


@pytest.mark.parametrize("case", NAMES)
def test_folders_that_are_no_one_stack(case):
    names, message = NAMES[case]
    with pytest.raises(UsageError, match=message):
        number_sections("in", names)


@given(
    st.sets(st.integers(0, 60), min_size=31, max_size=61),
    st.sampled_from(["s{}", "2_s{:04d}b3", "{:03d}"]),
)
def test_numbers_in_names(numbers, pattern):
    names = {n: pattern.format(n) + ".tif" for n in range(61)}
    found = number_sections("in", [names[n] for n in numbers])
    span = range(min(numbers), max(numbers) + 1)
    assert found.names == tuple(names[n] if n in numbers else None for n in span)
    assert found.absent == tuple(names[n] for n in span if n not in numbers)
    assert found.present == tuple(names[n] for n in sorted(numbers))


def test_kept_segments_are_bounded():
    kept, decoded = KeptSegments(3000), []

    def decode(key, size=1000):
        decoded.append(key)
        return np.full(size, key, np.uint8)

    for key in (1, 2, 3, 1, 4, 1, 2):  # 4 pushes out 2, the one not used for longest
        assert kept.get(key, lambda key=key: decode(key))[0] == key
    assert decoded == [1, 2, 3, 4, 2]
    assert kept.get(9, lambda: decode(9, 4000)).size == 4000  # too large to keep
    assert kept.get(1, lambda: decode(1))[0] == 1
    assert decoded == [1, 2, 3, 4, 2, 9]
