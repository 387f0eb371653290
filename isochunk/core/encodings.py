"""Names of encodings: a word, and for some a level behind a colon, as ``zstd:9``.

What each makes of EM is measured by ``benchmarks/encodings.py``; docs/cost.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, TypeAlias

from isochunk.core.spec import Format
from isochunk.errors import UsageError

WORDS = ("raw", "gzip", "png", "jpeg", "zstd", "blosc", "blosc-zstd")
"""Encodings that some format can be written in."""

LEVELS: Mapping[str, range] = MappingProxyType({"zstd": range(1, 23), "blosc-zstd": range(1, 10)})
"""Levels of those that take one; more make less of it, in more time."""


SHARES: Mapping[str, Mapping[int, tuple[float, float]]] = MappingProxyType(
    {
        "raw": {0: (1.0, 1.0)},
        "gzip": {0: (0.89, 0.97)},
        "png": {0: (0.68, 0.89)},
        "jpeg": {0: (0.22, 1.0)},
        "zstd": {1: (0.91, 0.97), 9: (0.89, 0.97), 15: (0.86, 0.97)},
        "blosc": {0: (0.96, 0.97)},
        "blosc-zstd": {1: (0.91, 0.96), 5: (0.86, 0.92), 7: (0.84, 0.90), 9: (0.83, 0.89)},
    }
)
"""Bytes stored over bytes of voxels of 8 and of 16 bits, by encoding and least level: the mean of
what was measured of restored EM. jpeg holds no 16."""

USUAL_LEVELS: Mapping[str, int] = MappingProxyType({"zstd": 1, "blosc-zstd": 5})
"""What is written where no level is named."""


def encoded_share(encoding: str, dtype: str) -> float:
    """Return bytes stored over voxel bytes, as EM restored by networks has it, about."""
    word, level = word_and_level(encoding)
    asked = USUAL_LEVELS.get(word, 0) if level is None else level
    measured = SHARES[word]
    found = measured[max(least for least in measured if least <= asked)]
    return found[0] if dtype == "uint8" else found[1]


def word_and_level(encoding: str) -> tuple[str, int | None]:
    """Split an encoding into its word and its level; None where it names none.

    Raises:
        UsageError: the word takes no level, or not this one.
    """
    word, colon, level = encoding.partition(":")
    if not colon:
        return word, None
    levels = LEVELS.get(word, range(0))
    if not level.isdecimal() or int(level) not in levels:
        takes = f"a level from 1 to {levels[-1]}, as {word}:{levels[-1] // 2}" if levels else "none"
        raise UsageError(f"encoding is {encoding!r}; of levels {word} takes {takes}")
    return word, int(level)


def read_encoding(value: str, name: str) -> str:
    """Read an encoding as users write it."""
    if not isinstance(value, str) or value.partition(":")[0] not in WORDS:
        raise UsageError(f"{name} is {value!r}; choose one of {', '.join(WORDS)}")
    word_and_level(value)
    return value


EncodingField: TypeAlias = Annotated[str, read_encoding]


def default_encoding(format_: Format, dtype: str) -> str:
    """Return the encoding of a new target; docs/cost.md says why."""
    if format_ != "precomputed":
        return "blosc-zstd"
    return "png" if dtype == "uint8" else "raw"  # cloud-volume reads no PNG of 16 bits
