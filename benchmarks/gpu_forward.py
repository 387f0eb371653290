"""Bare forward passes on a device: how fast, and in how much of the memory that was planned."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from gpu_machine import GIB, Line, Setting, extents, first_line, median_s, memory_peak, timed
from gpu_networks import Subject

import isochunk
from isochunk.core.geometry import Box, Triple
from isochunk.core.job import Precision
from isochunk.models.load import Runtime, load
from isochunk.models.predictor import TorchPredictor, out_of_memory
from isochunk.planning.plan import Plan

LONG_S = 5.0
"""Seconds from which on a pass is not done again."""

SOURCE = "source.zarr"
"""What networks make isotropic."""


@cache
def planned(setting: Setting, model: str, precision: Precision, **options: Any) -> Plan:
    """Plan the conversion of the source, as a user states it: zarr v3, raw, the rest default."""
    options.setdefault("source", f"{setting.work}/{SOURCE}")
    return isochunk.plan(
        isochunk.Job(
            target=f"zarr3://{setting.work}/target",
            model=model,
            precision=precision,
            device=setting.device_name,
            encoding="raw",
            overwrite=True,  # what a run that was killed left
            **options,
        )
    )


def forward(setting: Setting, subject: Subject, precision: Precision) -> list[Line]:
    """Time a network on a tile as planned, and on a cube."""
    model = subject.model(setting.work)
    plan = planned(setting, model, precision)
    runtime = Runtime(
        plan.model.resolved_factor,
        device=setting.device_name,
        precision=precision,
        tile=plan.tile,
    )
    predictor = load(model, runtime)
    assert isinstance(predictor, TorchPredictor)
    side = 32 if setting.small else 256
    lines = []
    for kind, tile in (("planned", plan.tile), ("cube", (side,) * 3)):
        line: Line = {"network": subject.name, "precision": precision, "tile_is": kind}
        line |= {"tile": extents(tile), "planned_gib": plan.tile_bytes(tile) / GIB}
        try:
            line |= of_tile(setting, predictor, tile)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            line["error"] = first_line(error)
        lines.append(line)
    return lines


def of_tile(setting: Setting, predictor: TorchPredictor, tile: Triple) -> Line:
    """Time a network on a tile, and see what memory it takes."""
    engine, want = predictor.engine, Box.from_shape(tile)
    shape = engine.needs(want).shape
    first: list[float] = []

    @torch.inference_mode()
    def answer() -> None:
        engine(source, want)

    @torch.inference_mode()
    def with_source() -> None:
        engine(torch.rand(1, 1, *shape, device=setting.device), want)

    tensors, taken = memory_peak(setting, lambda: first.append(timed(setting, with_source)))
    source = torch.rand(1, 1, *shape, device=setting.device)
    seconds = median_s(setting, answer) if first[0] < LONG_S else first[0]
    line: Line = {"seconds": seconds, "mvox_s": math.prod(tile) / seconds / 1e6}
    if tensors is not None:
        line |= {"peak_gib": tensors, "taken_gib": taken}
    return line
