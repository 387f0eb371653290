"""The section table: which sections of a volume are lost or uneven, as people edit it in TOML."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from isochunk.errors import UsageError

HEAD = "differ; those not named are used as they are"
"""What the first line of a written table says, after the count."""

_FORMAT = re.compile(r"^[a-z0-9-]+://(?=[a-z0-9+]+://|/)")
"""A format's name before a URL that says by itself where it leads."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section that is not used as it is stored: used is ``gain * v + offset``, or it is lost."""

    z: int
    """Source voxel coordinate."""
    lost: bool = False
    """Whether it is to be filled from its neighbours."""
    gain: float = 1.0
    """Factor of its grey levels."""
    offset: float = 0.0
    """Grey levels added after that."""
    why: str = ""
    """What was seen, for people."""

    def __post_init__(self) -> None:
        """Check what people may have written.

        Raises:
            UsageError: a value of another kind, a gain that is no positive finite number, an
                offset that is not finite, or a lost section with a gain or an offset.
        """
        if not isinstance(self.z, int) or isinstance(self.z, bool):
            raise UsageError(f"z of a section is {self.z!r}; write a whole number, as z = 41")
        if not isinstance(self.lost, bool):
            raise UsageError(f"section {self.z}: lost is {self.lost!r}; write true or false")
        if not _number(self.gain) or not 0 < self.gain < math.inf:
            raise UsageError(
                f"section {self.z}: gain is {self.gain!r}; write a finite number above 0, as 1.08, "
                "or lost = true for a section that holds nothing"
            )
        if not _number(self.offset) or not math.isfinite(self.offset):
            raise UsageError(
                f"section {self.z}: offset is {self.offset!r}; write finite grey levels, as -6.2"
            )
        if not isinstance(self.why, str):
            raise UsageError(f'section {self.z}: why is {self.why!r}; write text, as "98% black"')
        if self.lost and (self.gain, self.offset) != (1, 0):
            raise UsageError(
                f"section {self.z} is lost and has gain {self.gain} and offset {self.offset}; a "
                "lost section is filled from its neighbours, so leave out one or the other"
            )

    def text(self) -> str:
        """Write the section as TOML; a lost one without gain and offset."""
        lines = ["[[section]]", f"z = {self.z}"]
        if self.lost:
            lines.append("lost = true")
        if self.gain != 1:
            lines.append(f"gain = {float(self.gain)!r}")
        if self.offset != 0:
            lines.append(f"offset = {float(self.offset)!r}")
        if self.why:
            lines.append(f"why = {_quoted(self.why)}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class SectionTable:
    """The sections of one volume that are not used as they are stored, by rising z."""

    source: str
    """URL of the volume."""
    sections: tuple[Section, ...] = ()
    """At most one for each z."""

    def __post_init__(self) -> None:
        """Check that no section is named twice.

        Raises:
            UsageError: one is, or the source is no text.
        """
        if not isinstance(self.source, str) or not self.source:
            raise UsageError(
                f"source of a section table is {self.source!r}; write the volume's URL"
            )
        twice = [z for z, n in Counter(s.z for s in self.sections).items() if n > 1]
        if twice:
            raise UsageError(
                f"section {twice[0]} is named more than once; write one [[section]] for each z"
            )

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> SectionTable:
        """Read what a TOML file holds.

        Raises:
            UsageError: a key is unknown or missing, or holds what cannot be.
        """
        _check_keys(table, {"source", "section"}, {"source"}, "a section table")
        rows = table.get("section", [])
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise UsageError(f"section is {rows!r}; write each section below a line [[section]]")
        names = {f.name for f in fields(Section)}
        for row in rows:
            _check_keys(row, names, {"z"}, f"section {row.get('z', '?')}")
        sections = sorted((Section(**row) for row in rows), key=lambda s: s.z)
        return cls(table["source"], tuple(sections))

    @classmethod
    def parse(cls, text: str) -> SectionTable:
        """Read a table that :meth:`text` or a person has written.

        Raises:
            UsageError: it is not TOML, or not a section table.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"the section table is not TOML: {error}; correct that line") from None
        return cls.from_mapping(table)

    def text(self, count: int | None = None) -> str:
        """Write the table as TOML.

        Args:
            count: sections that the volume has, for the comment at the head.
        """
        total = "" if count is None else f" of {count}"
        head = (
            f"# {len(self.sections)}{total} sections {HEAD}\n"
            "# lost: filled from its neighbours; else used is gain * v + offset\n"
            f"source = {_quoted(self.source)}\n"
        )
        return "".join((head, *(f"\n{section.text()}" for section in self.sections)))

    def effects(self) -> dict[str, dict[str, float | bool]]:
        """Return what the table changes, by section, as JSON; words and what is as it was left out.

        Tables that change the same have the same effects, and so the same digest.
        """
        changes: dict[str, dict[str, float | bool]] = {}
        for s in self.sections:
            if s.lost:
                changes[str(s.z)] = {"lost": True}
            elif (s.gain, s.offset) != (1, 0):
                changes[str(s.z)] = {"gain": float(s.gain), "offset": float(s.offset)}
        return changes

    @property
    def digest(self) -> str:
        """SHA-256 of what the table changes."""
        text = json.dumps(self.effects(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def is_of(self, url: str) -> bool:
        """Tell whether the table is that of a volume, whatever its format is called in the URL."""
        return _place(self.source) == _place(url)

    def check_source(self, url: str) -> None:
        """Check that the table is that of a volume.

        Raises:
            UsageError: it is that of another.
        """
        if not self.is_of(url):
            raise UsageError(
                f"the section table is that of {self.source}, not of {url}; inspect that volume, "
                "or correct the table's source where the volume was only moved"
            )

    def check_inside(self, start: int, stop: int) -> None:
        """Check that the sections exist in a volume whose z runs from ``start`` to ``stop - 1``.

        Raises:
            UsageError: one does not.
        """
        outside = [s.z for s in self.sections if not start <= s.z < stop]
        if outside:
            raise UsageError(
                f"section {outside[0]} does not exist: z of {self.source} runs from {start} to "
                f"{stop - 1}; z is the source's voxel coordinate, its offset included"
            )


def _check_keys(table: Mapping[str, Any], known: set[str], needed: set[str], what: str) -> None:
    unknown, missing = sorted(table.keys() - known), sorted(needed - table.keys())
    if unknown:
        raise UsageError(
            f"{what} has the unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}"
        )
    if missing:
        raise UsageError(f"{what} has no {missing[0]!r}; add it")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _quoted(text: str) -> str:
    """Write a TOML string, whose escapes are those of JSON but for DEL, which JSON leaves."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _place(url: str) -> str:
    """Return where a URL leads, without the format, which may be named or left out."""
    bare = _FORMAT.sub("", url.strip().partition("|")[0]).rstrip("/")
    return bare if "://" in bare else f"file://{bare}"
