"""The ways in which sections come about, by name, and where each kind lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from isochunk.core.spec import Phase

Degradation: TypeAlias = Literal["avg", "skip", "psf"]


PHASES: Mapping[str, Phase] = {"avg": "mean", "skip": "sample", "psf": "mean"}
"""Where the sections of a degradation lie."""


def degradations_of(text: str) -> tuple[str, ...]:
    """Return the degradations that a training names, such as ``avg+skip``."""
    return tuple(text.split("+"))


def phase_of(degradation: str) -> Phase:
    """Return where sections lie; those of a crappifier, which makes y and x coarse, are means."""
    return PHASES.get(degradation, "mean")
