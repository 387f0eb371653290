"""What a resumed training must have in common with the one that is continued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isochunk.core.codec import to_json
from isochunk.train.config import TrainConfig


def fingerprint(config: TrainConfig) -> dict[str, Any]:
    """Return what a resumed run must have in common with the one that is continued, as JSON values.

    Everything but where it runs, how often it is looked at, what is only words, and its end:
    with the ``sqrt`` and ``constant`` schedules, ``steps`` and ``anneal`` may be chosen while it
    runs.
    """
    found: dict[str, Any] = to_json(config)
    found["arch"] = config.arch
    for name in ("out", "name", "device", "keeping", "licence", "trained_on"):
        del found[name]
    for table, name in ((found["loss"], "vgg"), (found["loss"], "dists"), (found, "encoder")):
        table[name] = "given" if table[name] else "none given"
    if not config.grey_window:  # as it was before there were any
        del found["grey_window"]
    if config.optimisation.schedule in ("sqrt", "constant") and not config.stages:
        del found["steps"], found["optimisation"]["anneal"]
    return found


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Name the fields of two fingerprints that differ, architecture first; empty if none do."""
    names = sorted({*mine, *theirs}, key=lambda name: (name != "arch", name))
    return "; ".join(
        f"{name}: {theirs.get(name)} there, {mine.get(name)} now"
        for name in names
        if mine.get(name) != theirs.get(name)
    )
