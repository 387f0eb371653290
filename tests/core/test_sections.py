"""The section table as people edit it."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import pytest

from isochunk.core.sections import Section, SectionTable
from isochunk.errors import UsageError

TABLE = SectionTable(
    "precomputed://s3://lab/em",
    (
        Section(41, lost=True, why='98% "black"\n\x7fé'),
        Section(57, gain=1.081, offset=-6.2, why="contrast: mean 141 beside 128"),
        Section(60, offset=3),
    ),
)


def test_a_table_is_read_as_it_was_written() -> None:
    text = TABLE.text(7062)
    assert text.startswith("# 3 of 7062 sections differ; those not named are used as they are\n")
    assert SectionTable.parse(text) == TABLE
    assert tomllib.loads(text)["section"] == [
        {"z": 41, "lost": True, "why": '98% "black"\n\x7fé'},
        {"z": 57, "gain": 1.081, "offset": -6.2, "why": "contrast: mean 141 beside 128"},
        {"z": 60, "offset": 3.0},
    ]
    assert SectionTable.parse(SectionTable("/em").text()) == SectionTable("/em")


def test_sections_may_be_written_in_any_order() -> None:
    text = 'source = "/em"\n[[section]]\nz = 9\nlost = true\n[[section]]\nz = -2\ngain = 2\n'
    assert [s.z for s in SectionTable.parse(text).sections] == [-2, 9]


REFUSED = {
    "not TOML": ("z == 3", "not TOML: .*correct that line"),
    "another key at the head": ('source = "a"\nsections = 3', "unknown key 'sections'; known are"),
    "no source": ("[[section]]\nz = 3", "has no 'source'; add it"),
    "source of another kind": ("source = 3", "source of a section table is 3"),
    "no list": ('source = "a"\nsection = 3', r"write each section below a line \[\[section\]\]"),
    "another key": ('source = "a"\n[[section]]\nz = 3\ngian = 2', "section 3 has the unknown key"),
    "no z": ('source = "a"\n[[section]]\nlost = true', r"section \? has no 'z'"),
    "z of another kind": ('source = "a"\n[[section]]\nz = 3.5', "is 3.5; write a whole number"),
    "twice": ('source = "a"\n[[section]]\nz = 3\n[[section]]\nz = 3', "3 is named more than once"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_a_table_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SectionTable.parse(text)


VALUES: list[tuple[dict[str, Any], str]] = [
    ({"gain": 0}, "gain is 0; write a finite number above 0"),
    ({"gain": -1.5}, "gain is -1.5"),
    ({"gain": math.nan}, "gain is nan"),
    ({"gain": math.inf}, "gain is inf"),
    ({"gain": True}, "gain is True"),
    ({"gain": "2"}, "gain is '2'"),
    ({"offset": math.nan}, "offset is nan; write finite grey levels"),
    ({"offset": -math.inf}, "offset is -inf"),
    ({"lost": 1}, "lost is 1; write true or false"),
    ({"why": 3}, "why is 3; write text"),
    ({"lost": True, "gain": 2.0}, "is lost and has gain 2.0.*leave out one or the other"),
    ({"lost": True, "offset": 2.0}, "is lost and has gain 1.0 and offset 2.0"),
]


@pytest.mark.parametrize(("values", "message"), VALUES)
def test_values_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"section 7.*{message}|section 7: {message}"):
        Section(7, **values)


@pytest.mark.parametrize(
    ("mine", "url"),
    [
        ("precomputed://s3://lab/em", "s3://lab/em/"),
        ("s3://lab/em|precomputed:", "s3://lab/em"),
        ("/data/em", "file:///data/em"),
        ("zarr3:///data/em", "/data/em/"),
        ("precomputed://s3+https://host/lab/em", "s3+https://host/lab/em"),
    ],
)
def test_a_volume_is_known_by_any_of_its_names(mine: str, url: str) -> None:
    SectionTable(mine).check_source(url)
    with pytest.raises(UsageError, match=r"is that of .*, not of .*-other; inspect that volume"):
        SectionTable(mine).check_source(f"{url.rstrip('/')}-other")


def test_sections_that_do_not_exist_are_refused() -> None:
    TABLE.check_inside(41, 61)
    for start, stop, z in ((42, 61, 41), (41, 60, 60)):
        with pytest.raises(
            UsageError, match=f"section {z} does not exist: .* {start} to {stop - 1}"
        ):
            TABLE.check_inside(start, stop)
