"""Tables to configs: recipes, and each paper's own as the defaults of its architecture.

A recipe is a TOML file of :class:`isochunk.train.config.TrainConfig` fields. What it leaves out is
its architecture's preset, which is a committed recipe without sources.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

from isochunk.core.degradation import phase_of
from isochunk.core.geometry import Triple, triple
from isochunk.errors import UsageError
from isochunk.models.fsrcnn import FSRCNNConfig
from isochunk.models.registry import CONFIGS, NetworkConfig
from isochunk.models.srunet import SRUNetConfig
from isochunk.train.augment import Augmentation
from isochunk.train.config import Keeping, Loss, Optimisation, Stage, TrainConfig
from isochunk.train.options import NETWORK_OPTIONS, TRAIN_PARTS

PRESETS: Mapping[str, str] = {
    "srunet": "heinrich-srunet",
    "fsrcnn": "heinrich-fsrcnn",
    "a2i": "a2i",
    "niiv": "niiv",
    "pssr": "pssr-em",
    "pssr-mf": "pssr-mf",
}
"""What ``--arch`` takes, and the recipe that says how its paper trains."""

PARTS: Mapping[str, type[Any]] = {
    "augmentation": Augmentation,
    "loss": Loss,
    "optimisation": Optimisation,
    "keeping": Keeping,
}
"""Fields of a config that are tables of their own."""

VARIANTS = ("paper", "compact", "planar")
"""Kernels of srunet and fsrcnn; planar ones are compact and keep xz slices apart."""


WORDS = ("out", "factor", "encoder", "licence", "trained_on")
"""Options that are text, whatever they look like."""


def config_from_table(table: Mapping[str, Any]) -> TrainConfig:
    """Make a config of what a TOML file or the command line says.

    Args:
        table: fields of :class:`TrainConfig`; ``arch`` and ``factor`` beside a table ``network``
            of its hyperparameters. ``factor`` is a number, ``"225/23"`` or a list. Of srunet and
            fsrcnn, ``network.variant`` is ``paper`` (default), ``compact`` or ``planar``; single
            kernels given there replace the variant's. niiv's ``tile`` follows the patch.

    Raises:
        UsageError: a field is unknown or missing, or its value does not fit.
    """
    arch = table.get("arch", "srunet")
    if arch not in PRESETS:
        raise UsageError(f"arch {arch!r} cannot be trained; choose {', '.join(PRESETS)}")
    values = _merged(read_recipe(PRESETS[arch]), table)
    values.pop("arch")
    given = values.pop("factor", None)
    factors = () if given is None else _factors(given)
    hyperparameters = values.pop("network", {})
    if arch == "niiv" and isinstance(values["patch"], list):
        hyperparameters = {"tile": min(values["patch"][::2]), **hyperparameters}
    if arch in ("srunet", "fsrcnn"):
        hyperparameters = {"phase": phase_of(values["degradation"]), **hyperparameters}
    network = _network(arch.partition("-")[0], factors, hyperparameters)
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
        if "averages" in values:
            values["averages"] = tuple(map(triple, values["averages"]))
        values["stages"] = tuple(
            _made(Stage, stage, "stages") for stage in values.get("stages", ())
        )
        values["sources"] = tuple(values["sources"])
        return TrainConfig(network=network, factors=factors, **values)
    except UsageError:
        raise
    except (TypeError, ValueError) as problem:
        raise UsageError(f"training: a field has a value of the wrong kind: {problem}") from None


def read_recipe(name: str) -> dict[str, Any]:
    """Read a recipe as the table that :func:`config_from_table` takes.

    Args:
        name: a committed recipe's name, or the path of a TOML file.

    Raises:
        UsageError: there is no such recipe, or it is no TOML.
    """
    committed = files("isochunk.train").joinpath("recipes")
    found = committed.joinpath(f"{name}.toml")
    path = Path(name)
    try:
        text = (found if found.is_file() else path).read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError:
        have = sorted(Path(entry.name).stem for entry in committed.iterdir())
        raise UsageError(
            f"no recipe {name!r}; there are {', '.join(have)}, or name a TOML file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UsageError(f"recipe {name!r} is no valid TOML: {problem}") from None


def with_options(table: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, Any]:
    """Put options of the command line over a recipe's table.

    Args:
        table: as :func:`config_from_table` takes it.
        options: texts by the names of :mod:`isochunk.cli.options`.
    """
    values = {**table, "network": dict(table.get("network", {}))}
    for name, text in options.items():
        if name in TRAIN_PARTS:
            part, field, _ = TRAIN_PARTS[name]
            values[part] = {**values.get(part, {}), field: parse_value(text)}
        elif name in NETWORK_OPTIONS:
            values["network"][name] = parse_value(text)
        else:
            field = name.replace("-", "_")
            values[field] = text if field in WORDS else parse_value(text)
    return values


def parse_value(text: str) -> Any:
    """Read an option of the command line as TOML would: 32, true, ``1,2,4,8`` or a word."""
    if "," in text:
        return [parse_value(part) for part in text.split(",")]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


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
            f"factor {given!r} is no number; write 4, 9.5 or 225/23, or several for niiv and a2i"
        ) from None


def _network(arch: str, factors: tuple[Fraction, ...], table: Mapping[str, Any]) -> NetworkConfig:
    kind = CONFIGS[arch]
    given = dict(table)
    variant = given.pop("variant", None)
    _refuse_unknown(given, kind, f"network {arch}")
    values = {key: _tuples(value) for key, value in given.items()}
    try:
        if kind is SRUNetConfig or kind is FSRCNNConfig:
            return _three_dimensional(kind, variant or "paper", factors, values)
        if variant is not None:
            raise UsageError(f"network {arch} has no variants; got variant {variant!r}")
        return kind(**values)
    except TypeError as problem:
        raise UsageError(f"network {arch}: a value of the wrong kind: {problem}") from None


def _three_dimensional(
    kind: type[SRUNetConfig | FSRCNNConfig],
    variant: str,
    factors: tuple[Fraction, ...],
    values: dict[str, Any],
) -> SRUNetConfig | FSRCNNConfig:
    if variant not in VARIANTS:
        raise UsageError(f"network variant {variant!r} is unknown; choose {', '.join(VARIANTS)}")
    for factor in factors:
        own = values.setdefault("factor", factor)
        if len(factors) > 1 or factor.denominator != 1 or own != factor:
            raise UsageError(
                f"srunet and fsrcnn have one whole factor; got {', '.join(map(str, factors))}"
                f"{f' and network.factor {own}' if own != factor else ''}; choose a2i or niiv for "
                "any ratio"
            )
    if "factor" in values:
        values["factor"] = int(values["factor"])
    make = kind.paper if variant == "paper" else kind.compact
    sizes = {name: values.pop(name) for name in signature(make).parameters if name in values}
    made: SRUNetConfig | FSRCNNConfig = make(**sizes)
    return replace(planar(made) if variant == "planar" else made, **values)


def planar(network: SRUNetConfig | FSRCNNConfig) -> SRUNetConfig | FSRCNNConfig:
    """Return the variant that keeps xz slices apart: kernels of extent 1 along y."""
    if isinstance(network, FSRCNNConfig):
        feature, mapping, expand = map(_flat, (network.feature, network.mapping, network.expand))
        return replace(network, feature=feature, mapping=mapping, expand=expand)
    return replace(
        network,
        encoder=tuple(map(_flat, network.encoder)),
        decoder=tuple(map(_flat, network.decoder)),
        skip=tuple(map(_flat, network.skip)),
        up=tuple(map(_flat, network.up)),
    )


def _flat(kernel: Triple) -> Triple:
    return (kernel[0], 1, kernel[2])


def _made(kind: type[Any], values: Mapping[str, Any], what: str) -> Any:
    _refuse_unknown(values, kind, what)
    if "patch" in values:
        values = {**values, "patch": triple(values["patch"])}
    return kind(**values)


def _tuples(value: Any) -> Any:
    """Turn TOML's nested lists into tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _refuse_unknown(values: Mapping[str, Any], kind: type[Any], what: str) -> None:
    assert is_dataclass(kind)
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(
            f"{what}: unknown field {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
