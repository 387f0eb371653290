"""Text forms of values, as the command line and TOML files write them, and how fields are read.

A dataclass says by the types of its fields how they are written: an ``Annotated`` type carries its
reader, a ``Literal`` its words; whole numbers, flags and text speak for themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from types import UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from isochunk.core.geometry import Box, Spacing, Triple, exact_nm
from isochunk.core.window import Window
from isochunk.errors import UsageError


def read_shape(value: str | Sequence[int], name: str) -> Triple:
    """Read ``Z,Y,X`` voxels, each at least 1."""
    try:
        z, y, x = (int(v) for v in (value.split(",") if isinstance(value, str) else value))
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; write Z,Y,X in voxels, as 64,64,64") from None
    if min(z, y, x) < 1:
        raise UsageError(f"{name} is {value!r}; every axis must be at least 1")
    return (z, y, x)


def read_shard(value: str | Sequence[int], name: str) -> Triple | Literal["auto", "none"]:
    """Read a shard shape, ``auto`` or ``none``."""
    if value in ("auto", "none"):
        return value  # type: ignore[return-value]
    return read_shape(value, name)


def read_box(value: str | Box, name: str) -> Box:
    """Read ``z0:z1,y0:y1,x0:x1``; an empty box is refused."""
    if not isinstance(value, (str, Box)):
        raise UsageError(f"{name} is {value!r}; write z0:z1,y0:y1,x0:x1 in source voxels")
    box = value if isinstance(value, Box) else Box.parse(value)
    if box.size == 0:
        raise UsageError(f"{name} {box} is empty; each stop must be greater than its start")
    return box


def read_spacing(value: str | Spacing | Sequence[float | str], name: str) -> Spacing:
    """Read ``Z,Y,X`` in nm."""
    if isinstance(value, Spacing):
        return value
    sizes = value.split(",") if isinstance(value, str) else value
    if not isinstance(sizes, Sequence) or len(sizes) != 3:  # noqa: PLR2004
        raise UsageError(f"{name} is {value!r}; write Z,Y,X in nm, as 8,8,8")
    return Spacing(*(exact_nm(size) for size in sizes))


def read_project(value: str, name: str) -> str:
    """Read the ID or the number of a Google Cloud project."""
    shape = r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]|\d{6,}"
    if not isinstance(value, str) or re.fullmatch(shape, value) is None:
        raise UsageError(f"{name} is {value!r}; write the ID of a Google Cloud project")
    return value


def read_bytes(value: str | int, name: str) -> int:
    """Read a size such as ``8GiB``, ``500MB`` or a number of bytes."""
    text = str(value) if isinstance(value, (int, str)) else ""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kMGT]?)(i?)B?\s*", text)
    if match is None:
        raise UsageError(f"{name} is {value!r}; write a size as 8GiB, 500MB or bytes")
    number, prefix, binary = match.groups()
    base = 1024 if binary else 1000
    size = int(float(number) * base ** " kMGT".index(prefix or " "))
    if size < 1:
        raise UsageError(f"{name} is {value!r}; it must be at least 1 byte")
    return size


def read_index(value: str | int, name: str) -> int:
    """Read a number that counts from 0."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    digits = isinstance(value, str) and re.fullmatch(r"\d+", value.strip()) is not None
    if not (whole or digits) or int(value) < 0:
        raise UsageError(f"{name} is {value!r}; write a whole number, counting from 0")
    return int(value)


def read_window(value: str | Window | Sequence[float], name: str) -> Window | Literal["auto"]:
    """Read ``LOW,HIGH`` in stored values, or ``auto``."""
    if value == "auto":
        return "auto"
    if isinstance(value, Window):
        return value
    ends = value.split(",") if isinstance(value, str) else value
    if not isinstance(ends, Sequence) or len(ends) != 2:  # noqa: PLR2004
        raise UsageError(f"{name} is {value!r}; write LOW,HIGH in stored values, or auto")
    low, high = (_number(end, name, "LOW,HIGH in stored values, or auto") for end in ends)
    return Window(low, high)


def read_seconds(value: str | float, name: str) -> float:
    """Read a number of seconds, more than 0."""
    return _positive(value, name, "seconds, as 120")


def read_rate(value: str | float, name: str) -> float:
    """Read a number of requests a second, more than 0."""
    return _positive(value, name, "requests a second, as 50")


def read_share(value: str | float, name: str) -> float:
    """Read a share, more than 0 and at most 1."""
    share = _number(value, name, "a share, as 0.9")
    if not 0 < share <= 1:
        raise UsageError(f"{name} is {value}; it must be more than 0 and at most 1")
    return share


def read_ratio(value: str | Fraction, name: str) -> Fraction:
    """Read a rational number of at least 1, such as 4, 2.5 or 225/23, exactly."""
    try:
        ratio = Fraction(value)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{name} is {value!r}; write a number as 4, 2.5 or 225/23") from None
    if ratio < 1:
        raise UsageError(f"{name} is {value}; it must be at least 1")
    return ratio


def _positive(value: str | float, name: str, example: str) -> float:
    number = _number(value, name, example)
    if not 0 < number < float("inf"):
        raise UsageError(f"{name} is {value}; it must be more than 0, and finite")
    return number


def _number(value: str | float, name: str, example: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; write {example}") from None


ShapeField: TypeAlias = Annotated[Triple, read_shape]
ShardField: TypeAlias = Annotated[Triple | Literal["auto", "none"], read_shard]
BoxField: TypeAlias = Annotated[Box, read_box]
SpacingField: TypeAlias = Annotated[Spacing, read_spacing]
BytesField: TypeAlias = Annotated[int, read_bytes]
IndexField: TypeAlias = Annotated[int, read_index]
ProjectField: TypeAlias = Annotated[str, read_project]
WindowField: TypeAlias = Annotated[Window | Literal["auto"], read_window]
SecondsField: TypeAlias = Annotated[float, read_seconds]
RateField: TypeAlias = Annotated[float, read_rate]
ShareField: TypeAlias = Annotated[float, read_share]
RatioField: TypeAlias = Annotated[Fraction, read_ratio]


def field_kind(hint: Any) -> Any:
    """Return the type of a field without its ``None``; the hint holds its ``Annotated`` still."""
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


def choices(hint: Any) -> tuple[str, ...] | None:
    """Return the words that a field may be, or None where it is no choice of words."""
    kind = field_kind(hint)
    return get_args(kind) if get_origin(kind) is Literal else None


def read_field(value: Any, hint: Any, name: str) -> Any:
    """Read the value of a field, as text or as what it means, by the field's type.

    Raises:
        UsageError: it cannot be read; the message says which and how to write it.
    """
    if value is None:
        return None
    kind = field_kind(hint)
    if get_origin(kind) is Annotated:
        return get_args(kind)[1](value, name)
    words = choices(kind)
    if kind is int:
        return _whole_number(value, name)
    if kind is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {value!r}; it must be true or false")
    elif not isinstance(value, str):
        raise UsageError(f"{name} is {value!r}; it must be text")
    if words and value not in words:
        raise UsageError(f"{name} is {value!r}; choose one of {', '.join(words)}")
    return value


def _whole_number(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}; it must be a whole number")
    if value < 1:
        raise UsageError(f"{name} is {value}; it must be at least 1")
    return value
