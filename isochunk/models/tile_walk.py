"""What tiles of any shape cost a network, found by walking it on a few."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import torch

from isochunk.core.geometry import Box, Triple, ceil_div, triple
from isochunk.core.tile_costs import TileCosts, Walk
from isochunk.models.counting import Recorder
from isochunk.models.tiling import Engine, PlanesEngine

WALKED = 64
"""Target voxels of the smallest tile that is walked, before alignment."""

GROWN_CELLS = 4
"""Cells by which it is made longer along each axis in turn."""


def tile_costs(engine: Engine, cell: Triple, dtype: torch.dtype) -> TileCosts | None:
    """Walk a network on four tiles.

    Args:
        engine: the network; it is left as it is.
        cell: target voxels by which tiles grow.
        dtype: of its layers.

    Returns:
        Costs of any tile, or None where they do not grow in step with it: of networks that pass a
        few slices at a time, or look at values.
    """
    if not getattr(engine.module, "grows_in_step", True):
        return None
    base = triple(ceil_div(WALKED, c) * c for c in cell)
    long = triple(n + GROWN_CELLS * c for n, c in zip(base, cell, strict=True))
    tiles = [
        base,
        *(triple(long[a] if a == axis else base[a] for a in range(3)) for axis in range(3)),
    ]
    try:
        hollow = _hollow(engine)
        walks = [_walk(hollow, Box.from_shape(tile), dtype) for tile in tiles]
        check = _walk(hollow, Box.from_shape(long), dtype)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None  # it cannot be run without data
    costs = TileCosts.of_walks(tiles, walks)
    if costs is None or not np.isclose(costs.of(long).macs, sum(check.macs), rtol=1e-6):
        return None
    return costs


def _hollow(engine: Engine) -> Engine:
    """Return an engine whose network holds no data."""
    if isinstance(engine, PlanesEngine):
        return replace(engine, engine=_hollow(engine.engine))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of graphs that are copied
        module = copy.deepcopy(engine.module).to("meta")
    hollow: Engine = replace(engine, module=module)  # type: ignore[type-var]
    return hollow


@torch.no_grad()
def _walk(engine: Engine, want: Box, dtype: torch.dtype) -> Walk:
    """Do to a tile what a predictor does."""
    with Recorder() as recorder:
        source = torch.empty(1, 1, *engine.needs(want).shape, device="meta")
        answer = engine(source.to(dtype), want).float()
        del source
        values = answer * 1.0
        values.to(torch.uint8)
    walk: Walk = recorder.walk
    return walk
