"""What `isochunk inspect` finds of damage made on purpose, and what it finds where there is none.

``python benchmarks/inspect_sections.py`` prints the table of docs/real-volumes.md. It takes the two
medulla cubes beside the project, as means of four sections; without them, synthetic tissue alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, shift

import isochunk
from isochunk.core.section_judging import Findings, judge_sections
from isochunk.core.section_profile import LAGS, SectionProfile, profile_sections
from isochunk.core.synthetic import synthetic_pair

DATA = Path(__file__).parents[2] / "shared" / "data"
FACTOR = 4
"""Native sections of the cubes in one: 40 nm in pixels of 10 nm."""
EVERY, FIRST = 9, 7
"""Which sections are damaged; where two in a row are, every eighteenth."""

Stack = np.ndarray
Damage = Callable[[Stack, int, np.random.Generator], None]


@dataclass(frozen=True)
class Kind:
    """Damage to sections, done in place, and what inspect should call it."""

    name: str
    wanted: str
    """``lost``, ``corrected`` or ``shifts``."""
    damage: Damage
    sections: int = 1
    """Sections in a row that are damaged."""
    place: str = "inside"
    """``inside`` at even distances, ``first`` or ``last``."""


def clipped(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def fill(value: int, share: float = 1.0) -> Damage:
    def damage(stack: Stack, z: int, rng: np.random.Generator) -> None:
        stack[z, : round(share * stack.shape[1])] = value

    return damage


def change(values: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Damage:
    def damage(stack: Stack, z: int, rng: np.random.Generator) -> None:
        stack[z] = clipped(values(stack[z].astype(float), rng))

    return damage


def fold(share: float, sections: int = 1) -> Damage:
    """Put tissue from elsewhere over a wedge of a section."""

    def damage(stack: Stack, z: int, rng: np.random.Generator) -> None:
        height, width = stack.shape[1:]
        y, x = np.mgrid[:height, :width]
        wedge = x / width < share * (0.6 + 0.8 * y / height)
        for i in range(sections):
            elsewhere = np.rot90(stack[z + i], 2)
            stack[z + i][wedge] = elsewhere[wedge]

    return damage


def swap(stack: Stack, z: int, rng: np.random.Generator) -> None:
    stack[[z, z + 1]] = stack[[z + 1, z]]


def move(pixels: float) -> Damage:
    return change(lambda v, _: shift(v, (0, pixels), order=3, mode="mirror"))


INSIDE = (
    Kind("blank, 0", "lost", fill(0)),
    Kind("blank, one grey level", "lost", fill(90)),
    Kind("saturated", "lost", fill(255)),
    Kind("half of it 0", "lost", fill(0, 0.5)),
    Kind("half of it saturated", "lost", fill(255, 0.5)),
    Kind("a wedge of a quarter replaced", "lost", fold(0.25)),
    Kind("a wedge of a half replaced", "lost", fold(0.5)),
    Kind("two in a row replaced", "lost", fold(1.7, 2), 2),
    Kind("changed places with the next", "lost", swap, 2),
    Kind("noise of 60 grey levels", "lost", change(lambda v, r: v + r.normal(0, 60, v.shape))),
    Kind("noise of 120 grey levels", "lost", change(lambda v, r: v + r.normal(0, 120, v.shape))),
    Kind("blur of 4 pixels", "lost", change(lambda v, _: gaussian_filter(v, 4))),
    Kind("blur of 16 pixels", "lost", change(lambda v, _: gaussian_filter(v, 16))),
    Kind("gain 0.92, around the mean", "corrected", change(lambda v, _: (v - 130) * 0.92 + 130)),
    Kind("gain 0.85, around the mean", "corrected", change(lambda v, _: (v - 130) * 0.85 + 130)),
    Kind("8 grey levels brighter", "corrected", change(lambda v, _: v + 8)),
    Kind("12 grey levels brighter", "corrected", change(lambda v, _: v + 12)),
    Kind("displaced by 1 pixel", "shifts", move(1)),
    Kind("displaced by 2 pixels", "shifts", move(2)),
    Kind("displaced by 3 pixels", "shifts", move(3)),
    Kind("displaced by 4 pixels", "shifts", move(4)),
)
AT_THE_ENDS = (
    "saturated",
    "half of it saturated",
    "a wedge of a half replaced",
    "replaced",
    "noise of 60 grey levels",
    "blur of 4 pixels",
    "12 grey levels brighter",
)
ALL_OF_IT = Kind("replaced", "lost", fold(1.7))
KINDS = INSIDE + tuple(
    replace(kind, name=f"{place}: {kind.name}", place=place)
    for place in ("first", "last")
    for kind in (*INSIDE, ALL_OF_IT)
    if kind.name in AT_THE_ENDS
)


@dataclass(frozen=True)
class Score:
    """What was found of one kind of damage in one stack."""

    damaged: int
    hits: int
    otherwise: int
    """Damaged sections that are found as something else."""
    false_alarms: int
    """Sections named without a reason."""


def profiled(stack: Stack, pool: int = FACTOR) -> tuple[SectionProfile, ...]:
    """Measure a stack of whole sections that lies in memory."""
    return tuple(profile_sections(enumerate(stack), pool))


def judge(stack: Stack, pool: int = FACTOR) -> Findings:
    """Inspect a stack of whole sections that lies in memory."""
    return judge_sections(profiled(stack, pool))


def again(clean: tuple[SectionProfile, ...], stack: Stack, changed: set[int]) -> Findings:
    """Inspect a stack of which some sections are no longer those that were measured before."""
    profiles = list(clean)
    near = {z + after for z in changed for after in range(LAGS + 1)} & set(range(len(stack)))
    for z in near:
        part = range(max(0, z - LAGS), z + 1)
        *_, profiles[z] = profile_sections(((i, stack[i]) for i in part), FACTOR)
    return judge_sections(profiles)


def score(kind: Kind, stack: Stack, clean: tuple[SectionProfile, ...], seed: int = 0) -> Score:
    """Damage sections at even distances, or at an end, and see what is found."""
    rng = np.random.default_rng(seed)
    damaged = stack.copy()
    places = {
        "inside": range(FIRST, len(stack) - 4, EVERY * kind.sections),
        "first": range(1),
        "last": range(len(stack) - 1, len(stack)),
    }[kind.place]
    for z in places:
        kind.damage(damaged, z, rng)
    wanted = {z + i for z in places for i in range(kind.sections)}
    found = again(clean, damaged, wanted)
    named = {what: {s.z for s in getattr(found, what)} for what in ("lost", "corrected", "shifts")}
    hits = named.pop(kind.wanted)
    back = {z + kind.sections for z in places}  # the next one steps back
    others = set.union(*named.values())
    return Score(
        len(wanted),
        len(hits & wanted),
        len((others & wanted) - hits),
        len((hits | others) - wanted - (back if kind.wanted == "shifts" else set())),
    )


def medulla(cube: int) -> Stack:
    """Return a cube as means of four sections, rounded."""
    volume = isochunk.open(f"{DATA}/medulla_fibsem_{cube}.ome.zarr")
    voxels = volume.read(volume.spec.box)
    voxels = voxels[: len(voxels) // FACTOR * FACTOR]
    return clipped(voxels.reshape(-1, FACTOR, *voxels.shape[1:]).mean(1))


def stacks() -> Iterator[tuple[str, Stack]]:
    """Yield what is inspected."""
    if DATA.is_dir():
        yield "medulla 448", medulla(448)
        yield "medulla 250", medulla(250)
    yield "synthetic", synthetic_pair((60, 320, 320), FACTOR, seed=3)[0]


def table(volumes: list[tuple[str, Stack]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| damage | found as | " + " | ".join(name for name, _ in volumes) + " |"
    yield "|---|---|" + "---|" * len(volumes)
    clean, profiles = [], [profiled(stack) for _, stack in volumes]
    for own, (_, stack) in zip(profiles, volumes, strict=True):
        found = judge_sections(own)
        named = len(found.lost) + len(found.corrected) + len(found.shifts)
        clean.append(f"{named} of {len(stack)} named")
    yield "| none | | " + " | ".join(clean) + " |"
    for kind in KINDS:
        cells = []
        for own, (_, stack) in zip(profiles, volumes, strict=True):
            s = score(kind, stack, own)
            cell = f"{s.hits}/{s.damaged}"
            cell += f", {s.otherwise} as something else" if s.otherwise else ""
            cells.append(cell + (f", {s.false_alarms} false" if s.false_alarms else ""))
        yield f"| {kind.name} | {kind.wanted} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for line in table(list(stacks())):
        print(line, flush=True)
