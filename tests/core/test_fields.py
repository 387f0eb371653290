"""Docstrings below fields, read from the source."""

from __future__ import annotations

from dataclasses import dataclass

from isochunk.core.fields import documented


@dataclass(frozen=True, slots=True)
class Base:
    """Not a field."""

    one: int
    """The first; of one line."""
    silent: int = 0
    two: str = ""
    """The second,
    of two lines."""


@dataclass(frozen=True, slots=True)
class Derived(Base):
    three: bool = False
    """Its own."""
    two: str = "x"
    """Said anew."""

    def method(self) -> None:
        """Not a field either."""


def test_fields_are_documented_by_the_docstrings_below_them() -> None:
    assert documented(Base) == {"one": "The first; of one line", "two": "The second, of two lines"}


def test_fields_of_base_classes_are_documented_too() -> None:
    found = documented(Derived)
    assert found == {"one": "The first; of one line", "two": "Said anew", "three": "Its own"}
