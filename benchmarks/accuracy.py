"""How well shipped networks restore a cube that none was trained on: the tables of docs/models.md.

    python benchmarks/accuracy.py [--report FOLDER] [CASE ...]

A case is a line of CASES, such as ``avg4``; all by default. Networks for slices run on xz and yz
slices, and the answers are averaged. With ``--report``, each case leaves its page in a folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from isochunk.evaluate import EvaluateConfig, evaluate
from isochunk.evaluation import Evaluation, degraded
from isochunk.geometry import Triple
from isochunk.models.load import shipped
from isochunk.spec import ModelSpec
from isochunk.train.degrade import PHASES, Degradation

DATA = Path(__file__).parents[2] / "shared" / "data"
TRUTH = DATA / "medulla_fibsem_250.ome.zarr"
LEARN_FROM = DATA / "medulla_fibsem_448.ome.zarr"
"""What the dictionary is learnt from, as the networks were."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is restored."""

    factor: Fraction
    """Truth voxels per section."""
    degradation: Degradation
    """How sections are made."""
    average: Triple = (1, 1, 1)
    """Voxels that are averaged first."""
    dictionary: bool = False
    """Whether a dictionary is learnt too, which takes minutes."""


CASES = {
    "avg2": Case(Fraction(2), "avg"),
    "avg4": Case(Fraction(4), "avg", dictionary=True),
    "avg4-half": Case(Fraction(4), "avg", (2, 2, 2), dictionary=True),
    "avg8": Case(Fraction(8), "avg"),
    "avg225/23": Case(Fraction(225, 23), "avg"),
    "skip4": Case(Fraction(4), "skip"),
    "skip8": Case(Fraction(8), "skip"),
}


def main() -> None:
    """Print a table per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help="of CASES")
    parser.add_argument("--report", type=Path, help="folder for a page of each case")
    options = parser.parse_args()
    for name in options.cases:
        config = config_of(CASES[name])
        if options.report is not None:
            config = replace(config, report=str(options.report / name.replace("/", "-")))
        print("\n".join(table(evaluate(config))), flush=True)


def config_of(case: Case) -> EvaluateConfig:
    """Return how a case is judged."""
    return EvaluateConfig(
        str(TRUTH),
        tuple(name for name, spec in shipped() if suits(spec, case)),
        references=("dictionary",) if case.dictionary else (),
        learn_from=str(LEARN_FROM) if case.dictionary else None,
        factor=case.factor,
        degradation=case.degradation,
        plane="xz+yz",
        average=case.average,
    )


def suits(spec: ModelSpec, case: Case) -> bool:
    """Tell whether a network restores such sections."""
    return spec.factor[0] in (None, case.factor) and spec.phase == PHASES[case.degradation]


def table(found: Evaluation) -> Iterator[str]:
    """Write the figures, best last."""
    cubic = next(row.psnr for row in found.rows if row.model == "cubic")
    first = "" if found.average == (1, 1, 1) else " after averaging 2 x 2 x 2"
    yield f"\n{degraded(found)}{first}"
    if found.ceiling_db is not None:
        yield "(noise lets no method exceed {:.1f} to {:.1f} dB)".format(*found.ceiling_db)
    yield "\n| model | PSNR dB | over cubic | SSIM | wPSNR dB | CF-PSNR dB | FRC along z nm |"
    yield "|---|---|---|---|---|---|---|"
    for row in sorted(found.rows, key=lambda row: row.psnr):
        yield (
            f"| {row.model} | {row.psnr:.2f} | {row.psnr - cubic:+.2f} | {row.ssim:.4f} "
            f"| {row.wpsnr:.2f} | {row.cf_psnr:.2f} | {row.frc_along_nm:.1f} |"
        )


if __name__ == "__main__":
    main()
