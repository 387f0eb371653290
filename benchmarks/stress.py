"""How shipped networks bear sections as serial sectioning makes them: tables of docs/models.md.

    python benchmarks/stress.py [--models NAME ...] [--cases CASE ...] [--mended]

A case is a key of CASES; all by default. Sections of a cube that no network was trained on are
damaged, restored as a run restores them, and compared with the truth, which is not damaged. Each
damage is one draw of a fixed seed. With ``--mended`` each is restored once more as with
``--sections auto``, inspected and mended first. Networks for slices run on xz and yz slices.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias

import numpy as np
from accuracy import CASES as ACCURACY
from accuracy import OTHER, SECTIONS, TRUTH, config_of
from numpy.typing import NDArray
from scipy import ndimage

from isochunk.core.geometry import Box
from isochunk.core.voxels import Voxels, quantise
from isochunk.engine.mended import find_table, mended, mending_of
from isochunk.evaluation.config import EvaluateConfig
from isochunk.evaluation.ground_truth import (
    ArrayVolume,
    choose_region,
    degrade_voxels,
    degraded_spec,
)
from isochunk.evaluation.metrics import psnr
from isochunk.evaluation.restore import describe_models, restore
from isochunk.storage.open import open_volume
from isochunk.storage.volume import Volume

Values: TypeAlias = NDArray[np.float32]
Damage: TypeAlias = Callable[[Values, np.random.Generator], Values]
"""Changes sections (z, y, x) of grey levels; the result is rounded to the volume's dtype."""

SEED = 0
MIDDLE = Box((45, 45, 45), (205, 205, 205))
"""Part of the truth that is damaged."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is restored."""

    truth: Volume
    """What the answer is compared with."""
    box: Box
    """Which part of it."""
    config: EvaluateConfig
    """Factor, degradation, networks and their planes."""


def uneven(percent: float, levels: float) -> Damage:
    """Give each section a gain and an offset of its own, of these deviations."""

    def damage(sections: Values, rng: np.random.Generator) -> Values:
        gain, offset = rng.standard_normal((2, len(sections), 1, 1))
        return sections * (1 + percent / 100 * gain) + levels * offset

    return damage


def shifted(pixels: float) -> Damage:
    """Shift each section by itself; deviation along y and along x, by parts of pixels."""

    def damage(sections: Values, rng: np.random.Generator) -> Values:
        steps = pixels * rng.standard_normal((len(sections), 2))
        return np.stack(
            [
                ndimage.shift(section, step, order=3, mode="mirror")
                for section, step in zip(sections, steps, strict=True)
            ]
        )

    return damage


def noisy(most: float) -> Damage:
    """Add noise, to each section of a deviation of its own, uniform up to the most."""

    def damage(sections: Values, rng: np.random.Generator) -> Values:
        sigmas = most * rng.random((len(sections), 1, 1))
        return sections + sigmas * rng.standard_normal(sections.shape)

    return damage


def blurred(most: float) -> Damage:
    """Blur within sections, each by a Gaussian of its own; deviation uniform up to the most."""

    def damage(sections: Values, rng: np.random.Generator) -> Values:
        sigmas = most * rng.random(len(sections))
        return np.stack(
            [
                ndimage.gaussian_filter(section, sigma, mode="mirror")
                for section, sigma in zip(sections, sigmas, strict=True)
            ]
        )

    return damage


def untouched(sections: Values, rng: np.random.Generator) -> Values:
    return sections


def blank(sections: Values, rng: np.random.Generator) -> Values:
    """Lose the middle section: nothing is stored."""
    found = sections.copy()
    found[lost(len(sections))] = 0
    return found


def filled(sections: Values, rng: np.random.Generator) -> Values:
    """Lose the middle section, and put the mean of its neighbours there."""
    middle, found = lost(len(sections)), sections.copy()
    found[middle] = (sections[middle - 1] + sections[middle + 1]) / 2
    return found


def lost(sections: int) -> int:
    """Return which section is lost."""
    return sections // 2


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    name: str
    damage: Damage
    beside: tuple[int, int] | None = None
    """Sections from the lost one that are compared, least and most; None for all there are."""


ROWS = (
    Row("clean", untouched),
    Row("gain of 8 %, offset of 8 grey levels", uneven(8, 8)),
    Row("gain of 2 %, offset of 2 grey levels", uneven(2, 2)),
    Row("shifted by 0.5 px", shifted(0.5)),
    Row("shifted by 1 px", shifted(1)),
    Row("shifted by 2 px", shifted(2)),
    Row("noise of up to 20 grey levels", noisy(20)),
    Row("blur of up to 2 px", blurred(2)),
    Row("one section blank: in it", blank, (0, 0)),
    Row("one section blank: next to it", blank, (1, 1)),
    Row("one section blank: 2 to 4 away", blank, (2, 4)),
    Row("one section its neighbours' mean: in it", filled, (0, 0)),
    Row("one section its neighbours' mean: next to it", filled, (1, 1)),
    Row("one section its neighbours' mean: 2 to 4 away", filled, (2, 4)),
)


def cases() -> dict[str, Case]:
    """Return what can be restored; the data must lie beside the project."""
    truth, other = open_volume(str(TRUTH)), open_volume(str(OTHER))
    # As in accuracy.py: sections of ssTEM are too far apart for yz slices and for 3D networks.
    lateral = ArrayVolume(truth.spec, np.ascontiguousarray(other.read(SECTIONS).swapaxes(0, 1)))
    inside = Box.from_shape(lateral.voxels.shape)
    means = without_references("avg4")
    return {
        "avg4": Case(truth, MIDDLE, means),
        "skip8": Case(truth, MIDDLE, without_references("skip8")),
        "sstem": Case(lateral, inside, replace(means, plane="xz")),
    }


def without_references(name: str) -> EvaluateConfig:
    return replace(config_of(ACCURACY[name]), references=(), learn_from=None)


def damaged(sections: Voxels, damage: Damage) -> Voxels:
    """Damage sections, and store them again."""
    changed = damage(sections.astype(np.float32), np.random.default_rng(SEED))
    return quantise(changed, sections.dtype)


def inspected(volume: Volume) -> Volume:
    """Return a volume as ``--sections auto`` has it used."""
    return mended(volume, mending_of(find_table("auto", volume), volume.spec))


def measure(
    case: Case, rows: tuple[Row, ...], *, mend: bool
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield for each line its name and PSNR in dB by model; rows of one damage share its answers.

    Args:
        case: what is restored, and by which models.
        rows: damages, and where the answers are compared.
        mend: whether each is also restored after it was inspected and mended.
    """
    specs, factor = describe_models(case.config)
    region = choose_region(case.truth.spec, case.box, factor, case.config.degradation)
    true = case.truth.read(region.degraded)
    sections = degrade_voxels(true, factor, case.config.degradation)
    spec = degraded_spec(case.truth.spec, region.degraded, factor)
    names = ("cubic", *case.config.models)
    answers: dict[bool, dict[str, Voxels]] = {}
    last: Damage | None = None
    for row, mending in product(rows, (False, True) if mend else (False,)):
        if row.damage is not last:
            answers, last = {}, row.damage
        if mending not in answers:
            source: Volume = ArrayVolume(spec, damaged(sections, row.damage))
            source = inspected(source) if mending else source
            answers[mending] = {n: restore(n, specs[n], source, case.config) for n in names}
        z = compared_along_z(row, region.inner[0], len(sections), int(factor[0]))
        inner = (z, *region.inner[1:])
        found = {n: psnr(true[inner], answers[mending][n][inner], 255.0) for n in names}
        yield row.name + (", mended" if mending else ""), found


def compared_along_z(
    row: Row, inner: slice, sections: int, factor: int
) -> slice | NDArray[np.int64]:
    """Return the target voxels along z that a row compares: those that its sections cover."""
    if row.beside is None:
        return inner
    least, most = row.beside
    away = abs(np.arange(inner.start, inner.stop) // factor - lost(sections))
    return inner.start + np.flatnonzero((least <= away) & (away <= most))


def table(case: Case, found: Iterator[tuple[str, dict[str, float]]]) -> Iterator[str]:
    """Write what networks gain over cubic, in dB."""
    names = case.config.models
    yield f"\nx{case.config.factor} along z, {case.config.degradation.upper()}, box {case.box}\n"
    yield f"| sections | cubic, dB | {' | '.join(names)} |"
    yield f"|{'---|' * (len(names) + 2)}"
    for row, figures in found:
        gains = " | ".join(f"{figures[name] - figures['cubic']:+.2f}" for name in names)
        yield f"| {row} | {figures['cubic']:.2f} | {gains} |"


def main() -> None:
    """Print a table per case."""
    known = cases()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=[*known], choices=[*known])
    parser.add_argument("--models", nargs="*", help="instead of all that are shipped")
    parser.add_argument("--mended", action="store_true", help="also inspect and mend first")
    options = parser.parse_args()
    for name in options.cases:
        case = known[name]
        models = case.config.models
        if options.models is not None:
            models = tuple(m for m in models if m in options.models)
        case = replace(case, config=replace(case.config, models=models))
        rows = ROWS if name != "sstem" else ROWS[:1]
        for line in table(case, measure(case, rows, mend=options.mended)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
