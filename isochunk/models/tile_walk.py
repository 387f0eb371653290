"""What tiles of any shape cost a network, found by walking it on a few."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import torch

from isochunk.core.geometry import Box, ceil_div, triple
from isochunk.core.limits import PIXELS_AT_ONCE
from isochunk.core.spec import ModelSpec
from isochunk.core.tile_costs import Slices, TileCosts, Walk
from isochunk.models.counting import Recorder
from isochunk.models.network import in_format
from isochunk.models.tiling import Engine, PlanesEngine

WALKED = 64
"""Target voxels of the smallest tile that is walked, before alignment."""

SAME = 0.02
"""Largest share by which a direct walk may differ: windows and taps come in whole numbers."""

GROWN = 1024
"""Target voxels, about, by which it is made longer along each axis in turn: many times what windows
of attention are rounded to, and tensors without data cost nothing."""

GROWN_MULTIPLE = 4
"""Cells come in such multiples, so that slabs grow alike."""


def tile_costs(engine: Engine, spec: ModelSpec, dtype: torch.dtype) -> TileCosts | None:
    """Walk a network on four tiles.

    Args:
        engine: the network; it is left as it is.
        spec: its spec with factor and plane fixed.
        dtype: of its layers.

    Returns:
        Costs of any tile, or None where they do not grow in step with it: of networks that look at
        values.
    """
    if isinstance(engine, PlanesEngine) and "+" in engine.plane:
        # One plane after the other.
        one, other = (
            tile_costs(replace(engine, plane=plane), spec.on_plane(plane), dtype)
            for plane in ("xz", "yz")
        )
        return None if one is None or other is None else replace(one, then=other)
    slices = _slices(engine, spec)
    cell = triple(
        max(1, int(g * r)) for g, r in zip(spec.alignment, spec.resolved_factor, strict=True)
    )
    base = [ceil_div(WALKED, c) * c for c in cell]
    grown = (ceil_div(GROWN, GROWN_MULTIPLE * c) * GROWN_MULTIPLE * c for c in cell)
    long = [n + more for n, more in zip(base, grown, strict=True)]
    if slices is not None:
        base[slices.axis] = long[slices.axis] = 1
    tiles = [
        triple(base),
        *(triple(long[a] if a == axis else base[a] for a in range(3)) for axis in range(3)),
    ]
    try:
        hollow = _hollow(engine, dtype)
        walks = [_walk(hollow, Box.from_shape(tile)) for tile in tiles]
        check = _walk(hollow, Box.from_shape(triple(long)))
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError):
        return None  # it cannot be run without data, as TorchScript, of which torch asserts
    costs = TileCosts.of_walks(tiles, walks, slices)
    if costs is None or not np.isclose(costs.of(triple(long)).macs, sum(check.macs), rtol=SAME):
        return None
    return costs


def _slices(engine: Engine, spec: ModelSpec) -> Slices | None:
    """Return how a network for slices is passed those of a tile; None for one in 3D."""
    if not getattr(engine.module, "passes_slices", False):
        return None
    rim = triple(2 * h * r for h, r in zip(spec.halo, spec.resolved_factor, strict=True))
    return Slices("zyx".index(_normal(spec.plane)), rim, PIXELS_AT_ONCE)


def _normal(plane: str) -> str:
    """Return the axis that a plane does not hold."""
    return next(axis for axis in "zyx" if axis not in plane)


def _hollow(engine: Engine, dtype: torch.dtype) -> Engine:
    """Return an engine whose network holds no data."""
    if isinstance(engine, PlanesEngine):
        return replace(engine, engine=_hollow(engine.engine, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of graphs that are copied
        module = in_format(copy.deepcopy(engine.module).to("meta"), dtype)
    hollow: Engine = replace(engine, module=module)  # type: ignore[type-var]
    return hollow


@torch.no_grad()
def _walk(engine: Engine, want: Box) -> Walk:
    """Do to a tile what a predictor does."""
    with Recorder() as recorder:
        source = torch.empty(1, 1, *engine.needs(want).shape, device="meta")
        answer = engine(source, want)
        del source
        answer = answer.float()
        values = answer * 1.0
        values.to(torch.uint8)
    walk: Walk = recorder.walk
    return walk
