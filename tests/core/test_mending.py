"""Sections mended: against a plain account of what a table says, however a volume is cut."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest

from isochunk.core.mending import Mending, Run
from isochunk.core.sections import Section, SectionTable
from isochunk.errors import UsageError

START, COUNT = 5, 9


def table(*sections: Section) -> SectionTable:
    return SectionTable("file:///in", sections)


def mending(*sections: Section) -> Mending:
    return Mending.of(table(*sections), START, START + COUNT)


def plain(stored: np.ndarray, sections: tuple[Section, ...]) -> np.ndarray:
    """Mend a whole volume in double precision, section by section."""
    values = stored.astype(float)
    for s in sections:
        if not s.lost:
            corrected = s.gain * stored[s.z - START].astype(float) + s.offset
            values[s.z - START] = np.where(stored[s.z - START] == 0, 0, corrected)
    good = sorted(set(range(COUNT)) - {s.z - START for s in sections if s.lost})
    for s in sections:
        if s.lost:
            for y, x in np.ndindex(stored.shape[1:]):
                column = [values[z, y, x] for z in good]
                values[s.z - START, y, x] = np.interp(s.z - START, good, column)
    return values


TABLES = {
    "first": (Section(5, lost=True),),
    "last": (Section(13, lost=True),),
    "both ends": (Section(5, lost=True), Section(6, lost=True), Section(13, lost=True)),
    "a run": (*(Section(z, lost=True) for z in (7, 8, 9)), Section(11, gain=0.9, offset=12.5)),
    "between uneven": (
        Section(6, gain=1.2, offset=-20.25),
        Section(7, lost=True),
        Section(8, gain=0.7, offset=31.0),
    ),
    "all but one": tuple(Section(z, lost=True) for z in range(5, 14) if z != 10),
    "nothing": (Section(9, why="looked at, and good"),),
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("name", TABLES)
def test_every_cut_of_a_volume_is_mended_as_the_whole(name: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    stored = rng.integers(0, np.iinfo(dtype).max, (COUNT, 3, 4), dtype, endpoint=True)
    stored[:, 0, 0] = 0
    sections = TABLES[name]
    mend, wanted = mending(*sections), plain(stored, sections)
    whole = mend.mended(stored, START, START, START + COUNT)
    np.testing.assert_allclose(whole, wanted, rtol=2e-6, atol=2e-6 * np.iinfo(dtype).max)
    for start, stop in combinations(range(START, START + COUNT + 1), 2):
        first, end = mend.needs(start, stop)
        assert start - mend.longest <= first <= end <= stop + mend.longest
        held = stored[first - START : end - START]
        cut = mend.mended(held, first, start, stop)
        assert cut.dtype == (np.float32 if mend.touches(start, stop) else dtype)
        np.testing.assert_array_equal(cut, whole[start - START : stop - START])


def test_what_is_lost_is_not_looked_at() -> None:
    stored = np.full((COUNT, 2, 2), 100, np.uint8)
    stored[3] = 255
    mend = mending(Section(START + 3, lost=True))
    assert mend.runs == (Run(START + 3, START + 4, START + 2, START + 4),)
    np.testing.assert_array_equal(mend.mended(stored, START, START, START + COUNT), 100)


def test_what_was_not_recorded_stays_black() -> None:
    stored = np.zeros((COUNT, 2, 2), np.uint8)
    stored[:, 1] = 90
    mended = mending(Section(7, offset=20.0)).mended(stored, START, 7, 8)
    np.testing.assert_array_equal(mended[0], [[0, 0], [110, 110]])


@pytest.mark.parametrize(
    ("factor", "planes"),
    [(Fraction(4), 12), (Fraction(5, 2), 7), (Fraction(225, 23), 30)],
    ids=str,
)
def test_planes_in_lost_sections_are_counted(factor: Fraction, planes: int) -> None:
    lost = {7, 8, 11}
    mend = mending(*(Section(z, lost=True) for z in sorted(lost)))
    whole = range(int(START * factor), int((START + COUNT) * factor))
    assert planes == sum(j // factor in lost for j in whole)
    assert mend.filled_planes(whole.start, whole.stop, factor) == planes
    cut = range(whole.start + 11, whole.stop - 17)
    counted = sum(j // factor in lost for j in cut)
    assert mend.filled_planes(cut.start, cut.stop, factor) == counted


def test_a_volume_of_which_all_is_lost_is_refused() -> None:
    with pytest.raises(UsageError, match="all 9 sections of file:///in lost"):
        mending(*(Section(START + z, lost=True) for z in range(COUNT)))


def test_a_section_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="z of file:///in runs from 5 to 13"):
        mending(Section(14, lost=True))


def test_tables_that_change_the_same_have_one_digest() -> None:
    one = table(Section(6, lost=True, why="black"), Section(7, gain=1.5), Section(8, why="fine"))
    same = table(Section(6, lost=True), Section(7, gain=1.5, offset=0.0, why="bright"))
    assert one.digest == same.digest
    assert one.effects() == {"6": {"lost": True}, "7": {"gain": 1.5, "offset": 0.0}}
    assert table(Section(6, lost=True), Section(7, gain=1.25)).digest != one.digest
