"""Frozen dataclasses to JSON and back: what is stored, and what older files leave out."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import pytest

from isochunk.core.codec import LATER, from_json, to_json
from isochunk.errors import UsageError


@dataclass(frozen=True)
class Grown:
    """A record that got a field after files of it were written."""

    size: Fraction
    name: str | None = field(default=None, metadata=LATER)


def test_a_later_field_is_stored_only_where_it_says_something() -> None:
    assert to_json(Grown(Fraction(23, 5))) == {"size": "23/5"}
    assert to_json(Grown(Fraction(23, 5), "a")) == {"size": "23/5", "name": "a"}


@pytest.mark.parametrize("held", [Grown(Fraction(2)), Grown(Fraction(2), "a")])
def test_what_is_stored_reads_back(held: Grown) -> None:
    assert from_json(Grown, to_json(held)) == held


@pytest.mark.parametrize("data", [{"name": "a"}, {"size": "2", "colour": "red"}, {}])
def test_missing_and_unknown_keys_are_errors(data: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"wanted the keys \['name', 'size'\]"):
        from_json(Grown, data)
