"""The command line: arguments to jobs, reports to text or JSON, errors to exit codes.

Exit codes: 0 done, 1 something is missing or failed, 2 the request cannot be carried out. With
``--json`` standard output holds one JSON object and nothing else; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeAlias

import isochunk
from isochunk.cli.options import (
    EVALUATE_CHOICES,
    EVALUATE_OPTIONS,
    INTEGERS,
    JOB_OPTIONS,
    JOB_SWITCHES,
    RUN_FIELDS,
    SECONDS,
)
from isochunk.cli.text import as_text
from isochunk.core.job import CHOICES, Job, read_box, read_ratio, read_shape, read_toml
from isochunk.errors import IsochunkError, UsageError
from isochunk.host.allocator import keep_memory

DONE, INCOMPLETE, REFUSED = 0, 1, 2

DEMO_MODEL = "srunet-z4-small"

Result: TypeAlias = tuple[dict[str, Any] | None, int]
"""What a command found, or None if it printed by itself, and its exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    keep_memory()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        options = parser().parse_args(words)
    except UsageError as error:
        return refuse(error, as_json="--json" in words)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("isochunk").setLevel(logging.INFO)
    try:
        command: Callable[[argparse.Namespace], Result] = options.command
        result, code = command(options)
    except IsochunkError as error:
        return refuse(error, as_json=options.json)
    except KeyboardInterrupt:
        print("isochunk: interrupted; the same command resumes", file=sys.stderr)
        return INCOMPLETE
    if result is not None:
        print(json.dumps(result) if options.json else as_text(result))
    return code


def refuse(error: IsochunkError, *, as_json: bool) -> int:
    """Say what went wrong and return the exit code."""
    if as_json:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
    print(f"isochunk: {error}", file=sys.stderr)
    return REFUSED if isinstance(error, UsageError) else INCOMPLETE


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are errors like all others."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise UsageError(f"{message}; {self.prog} --help lists what there is")


def parser() -> argparse.ArgumentParser:
    """Describe every command."""
    top = Parser(prog="isochunk", description="Isotropic volumes from anisotropic ones.")
    top.add_argument("--version", action="version", version=isochunk.__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        sub.add_argument("--json", action="store_true", help="one JSON object on standard output")
        sub.add_argument("--verbose", action="store_true", help="say more on standard error")
        sub.add_argument("--endpoint-url", help="S3-compatible server")
        return sub

    add("info", info, "what a volume is").add_argument("url")
    for name, run, text in (
        ("plan", plan, "what a run would do; nothing is written"),
        ("run", run_job, "make a volume isotropic"),
    ):
        sub = add(name, run, text)
        sub.add_argument("source", nargs="?")
        sub.add_argument("target", nargs="?")
        sub.add_argument("--config", help="TOML file with the same fields")
        job_options(sub, (*JOB_OPTIONS, *JOB_SWITCHES))
        if name == "plan":
            sub.add_argument(
                "--calibrate", type=int, metavar="N", help="run N blocks and say what the job costs"
            )
            sub.add_argument("--prices", metavar="FILE", help="TOML file; default: example prices")
    sub = add("status", status, "what is done of a target")
    sub.add_argument("target")
    sub.add_argument("--watch", type=float, metavar="SECONDS", help="again, until its run ends")
    add("audit", audit, "read a target again and prove it complete").add_argument("target")
    sub = add("repair", repair, "audit a target and compute again what is missing or corrupt")
    sub.add_argument("target")
    job_options(sub, RUN_FIELDS[1:])
    add("models", models, "the models that are shipped")
    add_training(add)
    sub = add("view", view, "look at a result, beside its source, in neuroglancer")
    sub.add_argument("target")
    sub.add_argument("source", nargs="?")
    sub = add("serve", serve, "predict chunks as neuroglancer asks for them")
    sub.add_argument("source")
    sub.add_argument("--port", type=int, default=0)
    job_options(sub, ("spacing", "box", "device", "precision", "memory", "trust", "allow-inexact"))
    sub = add("demo", demo, "the whole job on a synthetic volume, on this machine")
    sub.add_argument("--out", default="demo", help="folder to write to")
    sub.add_argument("--workers", type=int, default=2, help="worker processes")
    return top


def job_options(sub: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add options that are fields of Job; those not given stay out of the namespace."""
    sub.add_argument("--model", default=argparse.SUPPRESS, help="name or path of the model")
    for name in names:
        if name in JOB_SWITCHES:
            sub.add_argument(
                f"--{name}",
                action="store_true",
                default=argparse.SUPPRESS,
                help=JOB_SWITCHES[name],
            )
        else:
            sub.add_argument(
                f"--{name}",
                dest=field_of(name),
                default=argparse.SUPPRESS,
                type=int if name in INTEGERS else str,
                choices=CHOICES.get(name),
                help=JOB_OPTIONS[name],
            )


def field_of(option: str) -> str:
    """Return the field of Job that an option sets."""
    return SECONDS.get(option, option.replace("-", "_"))


def given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of Job that were given."""
    fields = map(field_of, names)
    values = {f: getattr(options, f) for f in fields if hasattr(options, f)}
    return {f: v for f, v in values.items() if v is not None}


def job_of(options: argparse.Namespace) -> Job:
    """Make a job of a configuration file and options; options win."""
    names = ("source", "target", "model", "endpoint_url", *JOB_OPTIONS, *JOB_SWITCHES)
    values = read_toml(options.config) if options.config else {}
    return Job.from_mapping({**values, **given(options, names)})


def info(options: argparse.Namespace) -> Result:
    """``isochunk info``."""
    from isochunk.api import open_any
    from isochunk.planning.plan import describe

    return describe(open_any(options.url, options.endpoint_url).spec), DONE


def plan(options: argparse.Namespace) -> Result:
    """``isochunk plan``."""
    if options.calibrate is None:
        if options.prices:
            raise UsageError("--prices says what calibrated blocks cost; add --calibrate N")
        return isochunk.plan(job_of(options)).summary(), DONE
    from isochunk.api import calibrate
    from isochunk.engine.cost import estimate, read_prices

    prices = read_prices(options.prices)
    made = isochunk.plan(job_of(options))
    measured = calibrate(made, options.calibrate)
    cost = estimate(made, measured, prices).summary()
    return {**made.summary(), "calibration": measured.summary(), "cost": cost}, DONE


def run_job(options: argparse.Namespace) -> Result:
    """``isochunk run``."""
    from isochunk.cli.progress import RunProgress

    made = isochunk.plan(job_of(options))
    with RunProgress(made) as progress:
        report = isochunk.run(made, watch=progress)
    return report.summary(), DONE if report.complete else INCOMPLETE


def status(options: argparse.Namespace) -> Result:
    """``isochunk status``."""
    from isochunk.engine import target as results

    if options.watch is None:
        result = results.status(options.target, options.endpoint_url)
    else:
        for result in results.watch(options.target, options.watch, options.endpoint_url):
            print(progress_line(result), file=sys.stderr, flush=True)
    return result, DONE if result["complete"] else INCOMPLETE


def progress_line(status: Mapping[str, Any]) -> str:
    """Write a status on one line."""
    blocks, left = status["blocks"], status.get("left_s")
    line = f"{blocks['done']} of {blocks['total']} blocks"
    if "blocks_per_s" in status:
        line += f", {status['blocks_per_s']:.3g} blocks/s"
    return line if left is None else f"{line}, about {left:.0f} s left"


def audit(options: argparse.Namespace) -> Result:
    """``isochunk audit``."""
    report = isochunk.audit(options.target, options.endpoint_url)
    return report.summary(), DONE if report.complete else INCOMPLETE


def repair(options: argparse.Namespace) -> Result:
    """``isochunk repair``."""
    from isochunk.api import repair as repair_target

    changes = given(options, ("endpoint_url", *RUN_FIELDS))
    found, report = repair_target(options.target, changes)
    result = {"found": found.summary(), **report.summary()}
    return result, DONE if report.complete else INCOMPLETE


def models(options: argparse.Namespace) -> Result:
    """``isochunk models``."""
    from isochunk.models.interpolation import INTERPOLATIONS, interpolation_spec
    from isochunk.models.load import shipped

    specs = [interpolation_spec(name) for name in INTERPOLATIONS] + [s for _, s in shipped()]
    return {
        "rows": [
            {
                "name": s.name,
                "arch": s.arch,
                "factor": ["any" if r is None else float(r) for r in s.factor],
                "trained_factors": None if s.taught is None else [float(r) for r in s.taught],
                "phase": s.phase,
                "plane": s.plane,
                "halo": list(s.halo),
                "exact": s.exact,
                "parameters": s.parameters,
                "trained_on": s.trained_on,
                "licence": s.licence,
            }
            for s in specs
        ]
    }, DONE


def view(options: argparse.Namespace) -> Result:
    """``isochunk view``: prints the link, then serves local volumes until interrupted."""
    from isochunk.api import view_result

    with (
        suppress(KeyboardInterrupt),
        view_result(options.target, options.source, options.endpoint_url) as viewer,
    ):
        announce(options, viewer.url)
        viewer.wait()
    return None, DONE


def serve(options: argparse.Namespace) -> Result:
    """``isochunk serve``: prints the link, then predicts until interrupted."""
    from isochunk.api import preview

    names = ("source", "model", "endpoint_url", *JOB_OPTIONS, *JOB_SWITCHES)
    job = Job.from_mapping({**given(options, names), "target": "preview"})
    with suppress(KeyboardInterrupt), preview(job, options.port) as viewer:
        announce(options, viewer.url)
        viewer.wait()
    return None, DONE


def announce(options: argparse.Namespace, url: str) -> None:
    """Print a link at once, before a command waits."""
    print(json.dumps({"neuroglancer_url": url}) if options.json else url, flush=True)


def demo(options: argparse.Namespace) -> Result:
    """``isochunk demo``."""
    from isochunk.cli.demo import make_source
    from isochunk.cli.progress import RunProgress

    source, target = make_source(options.out), f"{options.out}/isotropic"
    job = Job(
        source=source, target=target, model=DEMO_MODEL, workers=options.workers, overwrite=True
    )
    made = isochunk.plan(job)
    with RunProgress(made) as progress:
        report = isochunk.run(made, watch=progress)
    audited = isochunk.audit(target)
    complete = report.complete and audited.complete
    result = {"plan": made.summary(), "run": report.summary(), "audit": audited.summary()}
    if not options.json:
        result["view"] = {"command": f"isochunk view {target} {source}"}
    return result, DONE if complete else INCOMPLETE


def add_training(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Describe train and evaluate."""
    from isochunk.train.options import NETWORK_OPTIONS, TRAIN_OPTIONS, TRAIN_PARTS

    sub = add("train", train, "train a network; the same command resumes")
    sub.add_argument("--recipe", help="a committed recipe's name, or a TOML file")
    sub.add_argument("--source", dest="sources", action="append", help="volume; repeat for more")
    parts = {name: text for name, (_, _, text) in TRAIN_PARTS.items()}
    for name, text in {**TRAIN_OPTIONS, **parts, **NETWORK_OPTIONS}.items():
        sub.add_argument(f"--{name}", help=text)
    sub = add("evaluate", evaluate, "measure models against an isotropic volume")
    sub.add_argument("--truth", required=True, help="isotropic volume")
    sub.add_argument("--model", dest="models", action="append", default=[], help="repeat for more")
    sub.add_argument(
        "--prediction",
        dest="predictions",
        action="append",
        default=[],
        help="volume restored elsewhere, on the truth's grid; repeat for more",
    )
    sub.add_argument(
        "--reference",
        dest="references",
        action="append",
        default=[],
        choices=("dictionary", "siren", "stitched"),
        help="published method; repeat for more",
    )
    for name, text in EVALUATE_OPTIONS.items():
        sub.add_argument(f"--{name}", help=text, choices=EVALUATE_CHOICES.get(name))
    sub.add_argument("--trust", action="store_true", help=JOB_SWITCHES["trust"])


def use_endpoint(options: argparse.Namespace) -> None:
    """Make all volumes of this process come from the endpoint that was given."""
    if options.endpoint_url:
        os.environ["AWS_ENDPOINT_URL"] = options.endpoint_url


def train(options: argparse.Namespace) -> Result:
    """``isochunk train``."""
    from dataclasses import asdict

    from isochunk.train.loop import train as fit
    from isochunk.train.options import (
        NETWORK_OPTIONS,
        TRAIN_OPTIONS,
        TRAIN_PARTS,
        with_options,
    )
    from isochunk.train.presets import config_from_table, read_recipe

    use_endpoint(options)
    table = read_recipe(options.recipe) if options.recipe else {}
    if options.sources:
        table["sources"] = options.sources
    names = (*TRAIN_OPTIONS, *TRAIN_PARTS, *NETWORK_OPTIONS)
    given = {name: getattr(options, field_of(name)) for name in names}
    table = with_options(table, {name: text for name, text in given.items() if text is not None})
    report = fit(config_from_table(table))
    if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun one speaks
        return None, DONE
    return asdict(report), DONE if report.stopped == "finished" else INCOMPLETE


def evaluate(options: argparse.Namespace) -> Result:
    """``isochunk evaluate``."""
    from isochunk.evaluation.evaluate import EvaluateConfig
    from isochunk.evaluation.evaluate import evaluate as measure

    use_endpoint(options)
    readers = {"factor": read_ratio, "average": read_shape, "box": read_box, "background": read_box}
    given: dict[str, Any] = {}
    for name in EVALUATE_OPTIONS:
        field = field_of(name)
        value = getattr(options, field)
        if value is not None:
            given[field] = readers[name](value, name) if name in readers else value
    config = EvaluateConfig(
        options.truth,
        tuple(options.models),
        tuple(options.predictions),
        tuple(options.references),
        trust=options.trust,
        **given,
    )
    return measure(config).summary(), DONE
