"""Frozen dataclasses to JSON and back, exactly.

Fractions become text (``"23/5"``), tuples become lists. Reading follows the type hints, so a file
with a missing or unknown key is an error and not a surprise later. A field added after files were
written is marked :data:`LATER`: its default is not stored, so that older files stay readable and
files that make no use of it stay as they were.
"""

from __future__ import annotations

import types
import typing
from contextlib import suppress
from dataclasses import Field, fields, is_dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from isochunk.errors import UsageError

T = TypeVar("T")

JsonObject: TypeAlias = dict[str, Any]
"""A parsed JSON object."""

LATER = MappingProxyType({"later": True})
"""Metadata of a field with a default that is stored only where it differs from it."""


def to_json(value: Any) -> Any:
    """Turn a dataclass, or a value inside one, into JSON values."""
    if is_dataclass(value) and not isinstance(value, type):
        held = {f: getattr(value, f.name) for f in _stored(value)}
        return {_key(f): to_json(v) for f, v in held.items() if not (_later(f) and v == f.default)}
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, tuple):
        return [to_json(v) for v in value]
    return value


def from_json(kind: type[T], data: Any) -> T:
    """Read a dataclass written by :func:`to_json`.

    Raises:
        UsageError: a key is missing, unknown, or holds a value of another kind.
    """
    result: T = _read(kind, data, kind.__name__)
    return result


def _stored(kind: Any) -> list[Field[Any]]:
    """Return the fields that are stored; the others are found out again."""
    return [f for f in fields(kind) if f.metadata.get("stored_as", f.name) is not None]


def _later(field: Field[Any]) -> bool:
    """Tell whether a field is left out where it holds its default."""
    return bool(field.metadata.get("later"))


def _key(field: Field[Any]) -> str:
    """Return the key of a field: its name, or that under which it was stored first."""
    return str(field.metadata.get("stored_as", field.name))


def _read(kind: Any, data: Any, where: str) -> Any:  # noqa: PLR0911
    if is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        names = {_key(f): f.name for f in _stored(kind)}
        needed = {_key(f) for f in _stored(kind) if not _later(f)}
        if not isinstance(data, dict) or not needed <= set(data) <= set(names):
            got = sorted(data) if isinstance(data, dict) else data
            raise UsageError(f"{where} holds {got}; wanted the keys {sorted(names)}")
        return kind(
            **{names[k]: _read(hints[names[k]], v, f"{where}.{k}") for k, v in data.items()}
        )
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        *first, last = (a for a in args if a is not type(None))
        for kind_ in first:
            with suppress(UsageError):
                return _read(kind_, data, where)
        return _read(last, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise UsageError(f"{where} is {data!r}; wanted a list")
        inner = [args[0]] * len(data) if args[-1] is Ellipsis else args
        return tuple(
            _read(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(inner, data, strict=True))
        )
    if origin is typing.Literal:
        if data not in args:
            raise UsageError(f"{where} is {data!r}; wanted one of {args}")
        return data
    if kind is Fraction:
        return Fraction(data)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise UsageError(f"{where} is {data!r}; wanted {kind.__name__}")
    return data
