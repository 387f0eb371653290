"""Tables to configs: recipes, and each paper's own as the defaults of its architecture.

A recipe is a TOML file of :class:`isochunk.train.config.TrainConfig` fields. What it leaves out is
that of the recipe it is ``like``, then its architecture's preset, which is the committed recipe of
that ``arch`` without sources.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

from isochunk.core.degradation import degradations_of, phase_of
from isochunk.core.geometry import triple
from isochunk.errors import UsageError
from isochunk.models.network import NetworkConfig
from isochunk.models.registry import NETWORKS, as_tuples, config_type
from isochunk.train.augment import Augmentation
from isochunk.train.config import FirstPass, Keeping, Loss, Optimisation, TrainConfig, TrainStage
from isochunk.train.start import config_to_start

PARTS: Mapping[str, type[Any]] = {
    "augmentation": Augmentation,
    "loss": Loss,
    "optimisation": Optimisation,
    "keeping": Keeping,
    "first_pass": FirstPass,
}
"""Fields of a config that are tables of their own."""

RECIPES = files("isochunk.train").joinpath("recipes")
"""Committed recipes."""


def config_from_table(table: Mapping[str, Any]) -> TrainConfig:
    """Make a config of what a TOML file or the command line says.

    Args:
        table: fields of :class:`TrainConfig`; ``arch`` and ``factor`` beside a table ``network``
            of its hyperparameters. ``factor`` is a number, ``"225/23"`` or a list. Of srunet and
            fsrcnn, ``network.variant`` is ``paper`` (default), ``compact`` or ``planar``; single
            kernels given there replace the variant's. niiv's ``tile`` follows the patch. Without
            ``network``, one that starts from a checkpoint has that one's hyperparameters.

    Raises:
        UsageError: a field is unknown or missing, or its value does not fit.
    """
    arch = table.get("arch", "srunet")
    if arch not in PRESETS:
        raise UsageError(f"arch {arch!r} cannot be trained; choose one of {', '.join(PRESETS)}")
    values = _merged(read_recipe(PRESETS[arch]), table)
    values.pop("arch")
    given = values.pop("factor", None)
    factors = () if given is None else _factors(given)
    hyperparameters = values.pop("network", {})
    _refuse_unknown(values, TrainConfig, "training")
    for key in ("sources", "out"):
        if key not in values:
            raise UsageError(f"training needs {key!r}")
    try:
        for key, kind in PARTS.items():
            if key in values:
                values[key] = _made(kind, values[key], key)
        for key in ("patch", "border"):
            if key in values:
                values[key] = triple(values[key])
        # pssr-mf is a pssr, pssr-z a network of its own.
        kind = config_type(arch if arch in NETWORKS else arch.partition("-")[0])
        phase = phase_of(degradations_of(values["degradation"])[0])
        defaults = kind.training_defaults(values["patch"], phase)
        network = _network(kind, arch, factors, {**defaults, **hyperparameters})
        if values.get("start") and not table.get("network"):
            network = config_to_start(values["start"], network)
        if "averages" in values:
            values["averages"] = tuple(map(triple, values["averages"]))
        values["stages"] = tuple(
            _made(TrainStage, stage, "stages") for stage in values.get("stages", ())
        )
        values["sources"] = tuple(values["sources"])
        return TrainConfig(network=network, factors=factors, **values)
    except UsageError:
        raise
    except (TypeError, ValueError) as problem:
        raise UsageError(f"training: a field has a value of the wrong kind: {problem}") from None


def read_recipe(name: str, among: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a recipe as the table that :func:`config_from_table` takes.

    Args:
        name: a committed recipe's name, or the path of a TOML file. What it says goes over the
            recipe that it names with ``like``, if any.
        among: recipes that are like this one, in the order in which they were read.

    Raises:
        UsageError: there is no such recipe, or it is no TOML, or it is like itself.
    """
    if name in among:
        raise UsageError(f"recipe {name!r} is like itself: {' is like '.join([*among, name])}")
    found = RECIPES.joinpath(f"{name}.toml")
    path = Path(name)
    try:
        text = (found if found.is_file() else path).read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except OSError:
        raise UsageError(
            f"no recipe {name!r}; there are {', '.join(_committed())}, or name a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UsageError(f"recipe {name!r} is no valid TOML: {problem}") from None
    other = table.pop("like", None)
    return table if other is None else _merged(read_recipe(str(other), (*among, name)), table)


def _committed() -> list[str]:
    return sorted(Path(entry.name).stem for entry in RECIPES.iterdir())


def _merged(preset: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Put a table over a preset; tables inside are merged too."""
    values = {**preset, **table}
    for key in ("network", *PARTS):
        below, above = preset.get(key, {}), table.get(key, {})
        if not isinstance(above, Mapping):
            raise UsageError(f"training: {key} must be a table; got {above!r}")
        if below or above:
            values[key] = {**below, **above}
    if "patch" in table or "batch" in table:  # those of stages are of the preset's crops
        values["stages"] = table.get("stages", ())
    return values


def _factors(given: Any) -> tuple[Fraction, ...]:
    if isinstance(given, str) and "," in given:
        given = given.split(",")
    try:
        return tuple(Fraction(str(f)) for f in (given if isinstance(given, list) else [given]))
    except (ValueError, ZeroDivisionError):
        raise UsageError(
            f"factor {given!r} is no number; write 4, 9.5 or 225/23, or several for anyz, niiv, a2i"
        ) from None


def _network(
    kind: type[NetworkConfig], arch: str, factors: tuple[Fraction, ...], table: Mapping[str, Any]
) -> NetworkConfig:
    given = dict(table)
    variant = given.pop("variant", None)
    _refuse_unknown(given, kind, f"network {arch}")
    if variant is not None and not kind.VARIANTS:
        raise UsageError(f"network {arch} has no variants; got variant {variant!r}")
    if variant is not None and variant not in kind.VARIANTS:
        raise UsageError(
            f"network variant {variant!r} is unknown; choose one of {', '.join(kind.VARIANTS)}"
        )
    try:
        values = {key: as_tuples(value) for key, value in given.items()}
        return kind.from_table(values, variant, factors)
    except TypeError as problem:
        raise UsageError(f"network {arch}: a value of the wrong kind: {problem}") from None


def _made(kind: type[Any], values: Mapping[str, Any], what: str) -> Any:
    _refuse_unknown(values, kind, what)
    if "patch" in values:
        values = {**values, "patch": triple(values["patch"])}
    return kind(**values)


def _refuse_unknown(values: Mapping[str, Any], kind: type[Any], what: str) -> None:
    assert is_dataclass(kind)
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(
            f"{what}: unknown field {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )


def _presets() -> dict[str, str]:
    tables = {name: read_recipe(name) for name in _committed()}
    return {table["arch"]: name for name, table in tables.items() if "sources" not in table}


PRESETS: Mapping[str, str] = _presets()
"""What ``--arch`` takes, and the recipe that says how its paper trains."""
