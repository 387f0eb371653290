"""Amounts as a person would say them."""

from __future__ import annotations

from collections.abc import Sequence

DECIMAL = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
"""Prefixes of powers of ten."""
BINARY = ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki"))
"""Prefixes of powers of two, in which memory is sold."""
SPANS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
"""Seconds of a unit, and of the smaller one that is said after it."""


def _scaled(amount: float, unit: str, prefixes: Sequence[tuple[float, str]]) -> str:
    for size, prefix in prefixes:
        if amount >= 0.9995 * size:
            return f"{amount / size:.3g} {prefix}{unit}"
    return f"{amount:.3g} {unit}"


def in_bytes(count: float) -> str:
    """Say how much is stored or moved, 18.9 MB."""
    return _scaled(count, "B", DECIMAL)


def in_memory(count: float) -> str:
    """Say how much memory, 2.39 GiB."""
    return _scaled(count, "B", BINARY)


def in_voxels(count: float) -> str:
    """Say how many voxels, 33.6 Mvoxel."""
    return _scaled(count, "voxel", DECIMAL)


def in_time(seconds: float) -> str:
    """Say how long, 4 min 12 s: two units at most."""
    whole = round(seconds)
    for size, unit, smaller, then in SPANS:
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {then}" if rest else f"{whole // size} {unit}"
    return f"{seconds:.3g} s"


def in_percent(share: float) -> str:
    """Say which share, 98.4 %; never 100 % of what is not all, nor 0 % of what is not nothing."""
    for digits in range(5):
        said = f"{100 * share:.{digits}f}"
        if float(said) not in (0.0, 100.0) or share in (0, 1):
            return f"{said} %"
    return f"{100 * share:.1g} %"


def counted(number: int, one: str, several: str = "") -> str:
    """Say how many, 1 block, 12,000 blocks."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def by(numbers: Sequence[float]) -> str:
    """Say extents, 32 x 512 x 512."""
    return " x ".join(f"{n:g}" for n in numbers)
