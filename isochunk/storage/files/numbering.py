"""Which section each file of a folder is, by the number in its name. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from isochunk.errors import UsageError
from isochunk.storage.files.kinds import is_tiff_name, shortened

IMAGES = (
    *(".png", ".jpg", ".jpeg", ".jp2", ".jxl", ".bmp", ".gif", ".webp", ".pgm"),
    *(".dm3", ".dm4", ".mrc", ".rec", ".h5", ".hdf5", ".czi", ".nrrd"),
)
"""Ends of names of other images: which of them were sections nobody could tell."""

_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Numbering:
    """The sections of a folder, in the order of their numbers."""

    names: tuple[str | None, ...]
    """File of each section; None where the numbering leaves one out."""
    absent: tuple[str, ...]
    """What the files of those left out would be called."""

    @property
    def present(self) -> tuple[str, ...]:
        """The files that are there."""
        return tuple(name for name in self.names if name is not None)


def number_sections(folder: str, listed: Sequence[str]) -> Numbering:
    """Put the TIFF files of a folder in order.

    All names must be alike but for one number; that is the section's, counted from the least. A
    number that no file has is a lost section. Files that are no images are not looked at.

    Args:
        folder: as it is called in messages.
        listed: names of all its files.

    Raises:
        UsageError: images of other formats, names of several patterns or with several numbers, two
            files of one section, or more sections lost than there.
    """
    names = sorted(name for name in listed if is_tiff_name(name))
    others = sorted(n for n in listed if n[0] != "." and PurePath(n).suffix.lower() in IMAGES)
    if others:
        raise UsageError(
            f"{folder} holds {len(names)} TIFF files and other images ({shortened(others)}); keep "
            "the TIFF sections in a folder of their own"
        )
    place = _place_of_number(folder, names)
    by_number: dict[int, str] = {}
    for name in names:
        number = int((_DIGITS.findall(PurePath(name).stem) or "0")[place])
        if number in by_number:
            raise UsageError(
                f"{folder} holds section {number} twice: {by_number[number]} and {name}; keep one"
            )
        by_number[number] = name
    first, last = min(by_number), max(by_number)
    if last - first + 1 > 2 * len(names):
        raise UsageError(
            f"of the section numbers {first} to {last} of {folder} only {len(names)} are there; "
            "an absent number is a lost section, so number them one by one (links will do)"
        )
    numbers = range(first, last + 1)
    like = by_number[first]
    absent = tuple(_renumbered(like, place, n) for n in numbers if n not in by_number)
    return Numbering(tuple(by_number.get(n) for n in numbers), absent)


def _place_of_number(folder: str, names: Sequence[str]) -> int:
    """Return which of the numbers in each name counts sections; the last where none differs."""
    examples: dict[str, list[str]] = {}
    for name in names:
        examples.setdefault(_DIGITS.sub("#", PurePath(name).stem), []).append(name)
    if len(examples) > 1:
        told = [f"{alike[0]} ({len(alike)} files)" for alike in examples.values()]
        raise UsageError(
            f"{folder} holds files of {len(examples)} numberings, as {shortened(told, 3)}; give "
            "each a folder of its own"
        )
    numbers = [[int(n) for n in _DIGITS.findall(PurePath(name).stem)] for name in names]
    varying = [i for i, column in enumerate(zip(*numbers, strict=True)) if len(set(column)) > 1]
    if len(varying) > 1:
        raise UsageError(
            f"names in {folder} differ by {len(varying)} numbers, as {names[0]} and {names[-1]}; "
            "keep one numbering, that of the sections (links will do)"
        )
    return varying[0] if varying else -1


def _renumbered(name: str, place: int, number: int) -> str:
    """Return a file's name with the number of another section, as wide."""
    path = PurePath(name)
    parts = _DIGITS.split(path.stem)
    at = 1 + 2 * place
    parts[at] = str(number).zfill(len(parts[at]))
    return "".join(parts) + path.suffix
