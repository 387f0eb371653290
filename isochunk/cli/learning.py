"""Networks: train them, and measure them."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import Any, get_args

from isochunk.cli.options import (
    DONE,
    INCOMPLETE,
    READING,
    Command,
    Result,
    access_arguments,
    add_fields,
    given,
)
from isochunk.cli.words import learning as words
from isochunk.core.job import Job, Precision
from isochunk.core.option_names import option_of
from isochunk.errors import UsageError
from isochunk.evaluation.config import Baseline, EvaluateConfig

EVALUATED = (
    "factor",
    "degradation",
    "plane",
    "average",
    "learn_from",
    "box",
    "window",
    "sections",
    "background",
    "device",
    "report",
    "trust",
    "consistent",
)
"""Fields of an evaluation that take one value."""

JUDGED = (
    "factor",
    "degradation",
    "plane",
    "box",
    "window",
    "sections",
    "device",
    "report",
    "trust",
    "consistent",
)
"""Those that an evaluation without a truth takes, too."""

REPEATED = ("predictions", "references", "precisions")
"""Those that may be given several times, and need a truth."""

CHOICES = {"reference": get_args(Baseline), "precision": get_args(Precision)[1:]}
"""Words that options which may be repeated take; fp32 is always evaluated."""


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk train``."""
    from isochunk.train.options import NETWORK_OPTIONS, TRAIN_OPTIONS, TRAIN_PARTS

    parser.add_argument("--recipe", help="a committed recipe's name, or a TOML file")
    parser.add_argument("--source", dest="sources", action="append", help="volume; repeat for more")
    parts = {name: text for name, (_, _, text) in TRAIN_PARTS.items()}
    for name, text in {**TRAIN_OPTIONS, **parts, **NETWORK_OPTIONS}.items():
        parser.add_argument(f"--{name}", help=text)
    add_fields(parser, Job, READING)


def train(options: argparse.Namespace) -> Result:
    """``isochunk train``."""
    from isochunk.storage.access import Access
    from isochunk.train.options import (
        NETWORK_OPTIONS,
        TRAIN_OPTIONS,
        TRAIN_PARTS,
        with_options,
        with_sources,
    )
    from isochunk.train.presets import config_from_table, read_recipe
    from isochunk.train.training import train as fit

    table = read_recipe(options.recipe) if options.recipe else {}
    if options.sources:
        table = with_sources(table, options.sources)
    names = (*TRAIN_OPTIONS, *TRAIN_PARTS, *NETWORK_OPTIONS)
    told = {name: getattr(options, name.replace("-", "_")) for name in names}
    table = with_options(table, {name: text for name, text in told.items() if text is not None})
    report = fit(config_from_table(table), Access(**access_arguments(options)))
    if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun one speaks
        return None, DONE
    return asdict(report), DONE if report.stopped == "finished" else INCOMPLETE


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk evaluate``."""
    parser.add_argument("--truth", help="isotropic volume, to be made coarse and restored")
    parser.add_argument("--source", help="anisotropic volume without a truth, instead of --truth")
    for name, text in (
        ("model", "repeat for more"),
        ("prediction", "volume restored elsewhere, on the truth's grid; repeat for more"),
        ("reference", "published method; repeat for more"),
        ("precision", "arithmetic that networks are evaluated in besides fp32; repeat for more"),
    ):
        parser.add_argument(
            f"--{name}",
            dest=f"{name}s",
            action="append",
            default=[],
            choices=CHOICES.get(name),
            help=text,
        )
    add_fields(parser, EvaluateConfig, EVALUATED)
    add_fields(parser, Job, READING)


def evaluate(options: argparse.Namespace) -> Result:
    """``isochunk evaluate``."""
    from isochunk.evaluation.evaluate import evaluate as measure
    from isochunk.storage.access import Access

    if (options.truth is None) == (options.source is None):
        raise UsageError(
            "give either --truth, an isotropic volume that is made coarse and restored, or "
            "--source, an anisotropic one whose truth nobody knows"
        )
    if options.source is not None:
        return judge(options), DONE
    config = EvaluateConfig(
        options.truth,
        tuple(options.models),
        tuple(options.predictions),
        tuple(options.references),
        tuple(options.precisions),
        **given(options, EvaluateConfig, EVALUATED),
    )
    return measure(config, Access(**access_arguments(options))).summary(), DONE


def judge(options: argparse.Namespace) -> dict[str, Any]:
    """``isochunk evaluate --source``."""
    from isochunk.evaluation.without_truth.config import JudgeConfig
    from isochunk.evaluation.without_truth.judge import judge as measure
    from isochunk.storage.access import Access

    told = [name for name in (*EVALUATED, *REPEATED) if getattr(options, name, None)]
    if unfit := [name for name in told if name not in JUDGED]:
        raise UsageError(
            f"{option_of(unfit[0].removesuffix('s'))} compares with a truth, which --source has "
            "none of; leave it out, or give --truth"
        )
    config = JudgeConfig(
        options.source, tuple(options.models), **given(options, JudgeConfig, JUDGED)
    )
    return measure(config, Access(**access_arguments(options))).summary()


COMMANDS = (
    Command(
        "train", "train a network; the same command resumes", train_arguments, train, words.train
    ),
    Command(
        "evaluate",
        "measure models, against a truth or without",
        evaluate_arguments,
        evaluate,
        words.evaluate,
    ),
)
