"""Options of ``isochunk train``: which there are, what ``--help`` says of them, and how they act.

All are fields: those of a training and of its tables that are marked ``OPTION``, and those of
networks that are not ``RECIPE_ONLY``. Their help is the docstring below the field.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from isochunk.core.fields import documented, help_text
from isochunk.models.registry import NETWORKS, config_type
from isochunk.train.config import TrainConfig
from isochunk.train.presets import PARTS, PRESETS


def _marked(cls: type[Any]) -> dict[str, str]:
    """Return the fields of a dataclass that are options, with their help."""
    texts = documented(cls)
    return {f.name: help_text(texts[f.name]) for f in fields(cls) if f.metadata.get("option")}


def _train_options() -> dict[str, str]:
    marked = {name.replace("_", "-"): text for name, text in _marked(TrainConfig).items()}
    factor = marked.pop("factors")
    arch = f"{', '.join(PRESETS)}; trained as its paper says by default"
    return {"arch": arch, "factor": factor, **marked}


def _train_parts() -> dict[str, tuple[str, str, str]]:
    return {
        field.replace("_", "-"): (part, field, text)
        for part, cls in PARTS.items()
        for field, text in _marked(cls).items()
    }


def _network_options() -> dict[str, str]:
    """Return hyperparameters; one that several networks have tells of each what it is there."""
    owners: dict[str, dict[str, list[str]]] = {}
    for arch in NETWORKS:
        cls: type[Any] = config_type(arch)
        told = documented(cls)
        texts = {f.name: told[f.name] for f in fields(cls) if f.name not in cls.RECIPE_ONLY}
        if cls.VARIANTS:
            kernels = f"Kernels: {', '.join(cls.VARIANTS)}; planar ones are for mode self"
            texts = {"variant": kernels, **texts}
        for name, text in texts.items():
            owners.setdefault(name, {}).setdefault(help_text(text), []).append(arch)
    return {
        name: "; ".join(f"{', '.join(archs)}: {text}" for text, archs in texts.items())
        for name, texts in owners.items()
    }


TRAIN_OPTIONS: Mapping[str, str] = _train_options()
"""Options that are fields of TrainConfig; ``arch`` and ``factor`` choose its network."""

TRAIN_PARTS: Mapping[str, tuple[str, str, str]] = _train_parts()
"""Options that are fields of its tables: which table, which field, and the help."""

NETWORK_OPTIONS: Mapping[str, str] = _network_options()
"""Options that are hyperparameters of an architecture."""


def _texts(cls: type[Any]) -> set[str]:
    return {name for name, hint in get_type_hints(cls).items() if hint is str}


TEXTS = {"factor", *_texts(TrainConfig)}.union(*map(_texts, PARTS.values()))
"""Fields whose options are text, whatever they look like."""


def with_sources(table: Mapping[str, Any], sources: Sequence[str]) -> dict[str, Any]:
    """Put other volumes into a recipe; its name and what it says of its own volumes go.

    Args:
        table: as :func:`isochunk.train.presets.config_from_table` takes it.
        sources: URLs of volumes.
    """
    words = ("name", "licence", "trained_on")
    kept = {key: value for key, value in table.items() if key not in words}
    return {**kept, "sources": list(sources)}


def with_options(table: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, Any]:
    """Put options of the command line over a recipe's table.

    Args:
        table: as :func:`isochunk.train.presets.config_from_table` takes it.
        options: texts by the names of options.
    """
    values = {**table, "network": dict(table.get("network", {}))}
    for name, text in options.items():
        if name in TRAIN_PARTS:
            part, field, _ = TRAIN_PARTS[name]
            values[part] = {**values.get(part, {}), field: _value(field, text)}
        elif name in NETWORK_OPTIONS:
            values["network"][name] = parse_value(text)
        else:
            field = name.replace("-", "_")
            values[field] = _value(field, text)
    return values


def _value(field: str, text: str) -> Any:
    return text if field in TEXTS else parse_value(text)


def parse_value(text: str) -> Any:
    """Read an option of the command line as TOML would: 32, true, ``1,2,4,8`` or a word."""
    if "," in text:
        return [parse_value(part) for part in text.split(",")]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
