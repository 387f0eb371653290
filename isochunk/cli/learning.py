"""Networks: train them, and measure them."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from typing import Any

from isochunk.cli.options import (
    DONE,
    INCOMPLETE,
    Command,
    Result,
    access_options,
    add_fields,
)
from isochunk.core.job import Job
from isochunk.core.text_forms import read_box, read_ratio, read_shape

READING = ("source_spacing", "timeout_s", "requests")
"""Fields of a job that say how volumes are read."""

EVALUATE_OPTIONS = {
    "factor": "truth voxels that become one, along the axes that models refine; 4, 2.5 or 225/23",
    "degradation": "how: avg is the mean over a section, skip its first voxel",
    "plane": "slices that an axial network runs on; xz+yz: the mean of both",
    "average": "Z,Y,X voxels of the truth averaged to one first; boxes count those",
    "learn-from": "isotropic volume that a dictionary is learnt from",
    "box": "part of the truth, z0:z1,y0:y1,x0:x1",
    "background": "part of the truth without signal, to measure SNR against",
    "device": "where networks run",
    "report": "folder to write index.html, evaluation.json and evaluation.md to",
}
"""Options of evaluate that take one value."""

EVALUATE_CHOICES = {
    "degradation": ("avg", "skip", "psf"),
    "plane": ("xz", "yz", "xz+yz"),
    "device": ("auto", "cpu", "cuda"),
}
"""Values allowed for those of them that take one of a few words."""


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
    from isochunk.train.loop import train as fit
    from isochunk.train.options import NETWORK_OPTIONS, TRAIN_OPTIONS, TRAIN_PARTS
    from isochunk.train.presets import config_from_table, read_recipe, with_options

    table = read_recipe(options.recipe) if options.recipe else {}
    if options.sources:
        table["sources"] = options.sources
    names = (*TRAIN_OPTIONS, *TRAIN_PARTS, *NETWORK_OPTIONS)
    told = {name: getattr(options, name.replace("-", "_")) for name in names}
    table = with_options(table, {name: text for name, text in told.items() if text is not None})
    report = fit(config_from_table(table), Access(**access_options(options)))
    if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun one speaks
        return None, DONE
    return asdict(report), DONE if report.stopped == "finished" else INCOMPLETE


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk evaluate``."""
    parser.add_argument("--truth", required=True, help="isotropic volume")
    parser.add_argument(
        "--model", dest="models", action="append", default=[], help="repeat for more"
    )
    parser.add_argument(
        "--prediction",
        dest="predictions",
        action="append",
        default=[],
        help="volume restored elsewhere, on the truth's grid; repeat for more",
    )
    parser.add_argument(
        "--reference",
        dest="references",
        action="append",
        default=[],
        choices=("dictionary", "siren", "stitched"),
        help="published method; repeat for more",
    )
    for name, text in EVALUATE_OPTIONS.items():
        parser.add_argument(f"--{name}", help=text, choices=EVALUATE_CHOICES.get(name))
    add_fields(parser, Job, ("trust", *READING))


def evaluate(options: argparse.Namespace) -> Result:
    """``isochunk evaluate``."""
    from isochunk.evaluation.evaluate import EvaluateConfig
    from isochunk.evaluation.evaluate import evaluate as measure
    from isochunk.storage.access import Access

    readers = {"factor": read_ratio, "average": read_shape, "box": read_box, "background": read_box}
    told: dict[str, Any] = {}
    for name in EVALUATE_OPTIONS:
        field = name.replace("-", "_")
        value = getattr(options, field)
        if value is not None:
            told[field] = readers[name](value, name) if name in readers else value
    config = EvaluateConfig(
        options.truth,
        tuple(options.models),
        tuple(options.predictions),
        tuple(options.references),
        trust=getattr(options, "trust", False),
        **told,
    )
    return measure(config, Access(**access_options(options))).summary(), DONE


COMMANDS = (
    Command("train", "train a network; the same command resumes", train_arguments, train),
    Command("evaluate", "measure models against an isotropic volume", evaluate_arguments, evaluate),
)
