"""How well shipped networks restore a cube that none was trained on: the tables of docs/models.md.

    python benchmarks/accuracy.py [--report FOLDER] [--box BOX] [CASE ...]

A case is a line of CASES, such as ``avg4``; all by default. Networks for slices run on xz and yz
slices, and the answers are averaged. With ``--report``, each case leaves its page in a folder; with
``--box`` a part of the truth is restored, which takes less time. Last comes how networks bear data
unlike those they were trained on: the case ``changed``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from isochunk.core.degradation import PHASES, Degradation
from isochunk.core.geometry import Box, Triple
from isochunk.core.spec import ModelSpec
from isochunk.core.voxels import Voxels, quantise
from isochunk.evaluation.config import Baseline, EvaluateConfig
from isochunk.evaluation.evaluate import evaluate, evaluate_volume
from isochunk.evaluation.ground_truth import ArrayVolume
from isochunk.evaluation.results import Evaluation
from isochunk.evaluation.tables import (
    describe_average,
    describe_degradation,
    describe_noise_ceiling,
)
from isochunk.models.load import baselines, shipped
from isochunk.storage.open import open_volume

DATA = Path(__file__).parents[2] / "shared" / "data"
TRUTH = DATA / "medulla_fibsem_250.ome.zarr"
LEARN_FROM = DATA / "medulla_fibsem_448.ome.zarr"
"""What the dictionary is learnt from, as the networks were."""
QUICK = ("srunet-z4",)
"""Of the papers' baselines those that are compared in every case."""
BLOCK, SLICES = Box((45, 45, 45), (141, 141, 141)), Box((45, 85, 45), (141, 101, 141))
"""Parts of the truth that are restored where all of them are compared."""
HELD_OUT = Box((0, 0, 380), (448, 448, 448))
"""Part of it that no network saw, nor chose a snapshot by."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is restored."""

    factor: Fraction
    """Truth voxels per section."""
    degradation: Degradation
    """How sections are made."""
    average: Triple = (1, 1, 1)
    """Voxels that are averaged first."""
    references: tuple[Baseline, ...] = ()
    """Published methods that are fitted too, which takes minutes."""
    box: Box | None = None
    """Part of the truth; all of it by default."""
    papers: bool = False
    """Whether all of the papers' baselines are compared: those that are slow, too."""
    held_out: bool = False
    """Whether the truth is the part of the other cube that was kept aside."""


CASES = {
    "avg2": Case(Fraction(2), "avg"),
    "avg3-papers": Case(Fraction(3), "avg", box=BLOCK, papers=True),
    "avg4": Case(Fraction(4), "avg", references=("dictionary",)),
    "avg4-448": Case(Fraction(4), "avg", held_out=True),
    "avg4-half": Case(Fraction(4), "avg", (2, 2, 2), references=("dictionary",)),
    "avg8": Case(Fraction(8), "avg"),
    "avg8-papers": Case(Fraction(8), "avg", references=("siren",), box=SLICES, papers=True),
    "avg225/23": Case(Fraction(225, 23), "avg"),
    "skip8": Case(Fraction(8), "skip"),
}

CHANGED = "changed"
MIDDLE = Box((60, 60, 60), (188, 188, 188))
"""Part of the truth that is changed."""
OTHER = DATA / "vnc_sstem"
SECTIONS = Box((0, 256, 256), (20, 496, 496))
"""Part of it that is evaluated: y takes the place of z, and the sections' own axis that of y."""

CHANGES: Mapping[str, Callable[[Voxels], Voxels]] = {
    "as it is": lambda v: v,
    "darker, 0.4 v + 10": lambda v: quantise(v * np.float32(0.4) + 10, v.dtype),
    "squared": lambda v: quantise((v / np.float32(255)) ** 2 * 255, v.dtype),
    "inverted": lambda v: 255 - v,
    "noise of 10 grey levels": lambda v: quantise(
        v + np.random.default_rng(0).normal(0, 10, v.shape).astype(np.float32), v.dtype
    ),
    "x taken as z": lambda v: v.transpose(2, 1, 0),
    "y taken as z": lambda v: v.transpose(1, 0, 2),
}


def main() -> None:
    """Print a table per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=[*CASES, CHANGED], metavar="CASE")
    parser.add_argument("--report", type=Path, help="folder for a page of each case")
    parser.add_argument("--box", type=Box.parse, help="part of the truth, z0:z1,y0:y1,x0:x1")
    options = parser.parse_args()
    for name in options.cases:
        if name == CHANGED:
            print("\n".join(robustness()), flush=True)
            continue
        config = config_of(CASES[name])
        if options.box is not None:
            config = replace(config, box=options.box)
        if options.report is not None:
            config = replace(config, report=str(options.report / name.replace("/", "-")))
        print("\n".join(table(evaluate(config))), flush=True)


def config_of(case: Case) -> EvaluateConfig:
    """Return how a case is evaluated."""
    compared = (model for model in baselines() if case.papers or model[0] in QUICK)
    networks = [*shipped(), *compared]
    return EvaluateConfig(
        str(LEARN_FROM if case.held_out else TRUTH),
        tuple(name for name, spec in networks if suits(spec, case)),
        references=case.references,
        learn_from=str(LEARN_FROM) if "dictionary" in case.references else None,
        factor=case.factor,
        degradation=case.degradation,
        plane="xz" if case.box == SLICES else "xz+yz",
        average=case.average,
        box=HELD_OUT if case.held_out else case.box,
        block=(256, 256, 256),  # halos cost less
    )


def suits(spec: ModelSpec, case: Case) -> bool:
    """Tell whether a network restores such sections."""
    least, most = spec.trained_factors or (case.factor, case.factor)
    takes = spec.factor[0] in (None, case.factor) and least <= case.factor <= most
    return takes and spec.phase == PHASES[case.degradation]


def table(found: Evaluation) -> Iterator[str]:
    """Write the figures, best last."""
    yield f"\n{describe_degradation(found)}{describe_average(found)}"
    if ceiling := describe_noise_ceiling(found):
        yield ceiling
    yield (
        "\n| model | PSNR dB | over cubic | 95 % | SSIM | wPSNR dB | CF-PSNR dB | FRC along z nm "
        "| membranes, Dice | seconds |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in sorted(found.figures, key=lambda row: row.psnr):
        yield (
            f"| {row.model} | {row.psnr:.2f} | {row.over_cubic:+.2f} "
            f"| {row.over_cubic_low:+.2f} to {row.over_cubic_high:+.2f} | {row.ssim:.4f} "
            f"| {row.wpsnr:.2f} | {row.cf_psnr:.2f} | {row.frc_along_nm:.1f} "
            f"| {row.membrane_dice:.3f} | {row.seconds:.0f} |"
        )


def robustness() -> Iterator[str]:
    """Write what networks gain over cubic on data unlike those they were trained on."""
    case = CASES["avg4"]
    truth, other = open_volume(str(TRUTH)), open_volume(str(OTHER))
    voxels = truth.read(MIDDLE)
    config = replace(config_of(case), references=(), learn_from=None)
    found = {}
    for name, change in CHANGES.items():
        volume = ArrayVolume(truth.spec, np.ascontiguousarray(change(voxels)))
        whole = replace(config, box=Box.from_shape(MIDDLE.shape))
        found[name] = evaluate_volume(whole, volume)
    # The sections of ssTEM are too far apart for yz slices, and for 3D networks no fair test.
    lateral = ArrayVolume(truth.spec, np.ascontiguousarray(other.read(SECTIONS).swapaxes(0, 1)))
    box = Box.from_shape(lateral.voxels.shape)
    found["ssTEM, y taken as z"] = evaluate_volume(replace(config, box=box, plane="xz"), lateral)
    yield f"\nPSNR over cubic, x4 along z, AVG, box {MIDDLE}"
    yield f"\n| | cubic, dB | {' | '.join(config.models)} |"
    yield f"|{'---|' * (len(config.models) + 2)}"
    for name, evaluation in found.items():
        psnr = {row.model: row.psnr for row in evaluation.figures}
        gains = " | ".join(f"{psnr[model] - psnr['cubic']:+.2f}" for model in config.models)
        yield f"| {name} | {psnr['cubic']:.2f} | {gains} |"


if __name__ == "__main__":
    main()
