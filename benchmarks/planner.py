"""What the planner chooses: for shipped networks and for those of the papers, by memory.

    python benchmarks/planner.py [--memory 4GiB,16GiB,64GiB] [--gpu 16GiB,80GiB,141GiB]
        [--network NAME]...

The source has 4096 x 8192 x 8192 voxels of 40 x 8 x 8 nm, of which only those are stored by which a
plan measures the intensity; nothing is computed. Networks of the papers have random weights. For a
GPU, which need not be there, a block is planned for a host of 64 GiB, and its tile for the share of
the GPU's memory that a job takes.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

import isochunk
from isochunk.core.geometry import Box, Spacing, Triple
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.text_forms import read_bytes
from isochunk.errors import UsageError
from isochunk.models.a2i import A2IConfig
from isochunk.models.checkpoint import Card, save
from isochunk.models.fsrcnn import FSRCNNConfig
from isochunk.models.load import baselines, shipped
from isochunk.models.network import NetworkConfig
from isochunk.models.niiv import NIIVConfig
from isochunk.models.pssr import PSSRConfig
from isochunk.models.registry import make
from isochunk.models.srunet import SRUNetConfig
from isochunk.planning.intensity import SAMPLE_BYTES, sample_boxes
from isochunk.planning.plan import Plan
from isochunk.planning.tiles import device_tile
from isochunk.storage.open import create_volume

SHAPE: Triple = (4096, 8192, 8192)
SPACING = "40,8,8"
GIB = 1 << 30
HOST = 64 * GIB
"""Memory beside a GPU."""

PAPERS: Mapping[str, NetworkConfig] = {
    "3D-FSRCNN d240 s64 m4": FSRCNNConfig.paper(240, 64, 4),
    "3D-SRU-Net h2 w32 d2": SRUNetConfig.paper(32, 2, 2),
    "3D-SRU-Net h3 w64 d3": SRUNetConfig.paper(64, 3, 3),
    "3D-SRU-Net h4 w64 d3": SRUNetConfig.paper(64, 4, 3),
    "A2I": A2IConfig(),
    "PSSR": PSSRConfig(),
    "PSSR, 5 sections": PSSRConfig(sections=2),
    "niiv": NIIVConfig(),
}
"""Networks as their papers have them."""

COLUMNS = (
    "network",
    "memory",
    "block",
    "tile",
    "depth",
    "work / ideal",
    "read / needed",
    "planned GiB",
)


def sparse_source(folder: Path) -> str:
    """Create the volume that is planned for, with noise where a plan looks."""
    level = LevelSpec("s0", Box.from_shape(SHAPE), Spacing.parse(SPACING), (64, 64, 64), None)
    zero = (Fraction(0), Fraction(0), Fraction(0))
    url = f"file://{folder}/source.zarr"
    volume = create_volume(VolumeSpec(url, "zarr3", "uint8", "raw", zero, (level,)))
    left = SAMPLE_BYTES
    for box in sample_boxes(level.box, level.chunk):
        volume.write(box, np.random.default_rng(0).integers(1, 256, box.shape, np.uint8))
        left -= box.size
        if left <= 0:
            break
    return url


def networks(folder: Path, wanted: list[str] | None) -> Iterator[tuple[str, str]]:
    """Yield names of networks and what a job calls them; those of papers are written first."""
    for name, _ in (*shipped(), *baselines()):
        if not wanted or name in wanted:
            yield name, name
    for number, (name, config) in enumerate(PAPERS.items()):
        if not wanted or name in wanted:
            torch.manual_seed(0)
            path = folder / f"network{number}"
            save(path, make(config), Card(name, "none", "random weights"))
            yield name, str(path)


def plan_of(source: str, model: str, **options: Any) -> Plan | str:
    """Plan, or say what would be needed.

    Returns:
        The plan; or, where nothing fits, the least memory that the error names, or the error.
    """
    job = isochunk.Job(source=source, target=f"{source}-out", model=model, **options)
    try:
        return isochunk.plan(job)
    except UsageError as error:
        least = re.search(r"need (\d+ \w+)", str(error))
        return f"does not fit: needs {least[1]}" if least else f"refused: {error}"


def on_a_cpu(source: str, model: str, memory: int) -> Plan | str:
    """Plan for a worker of so much memory."""
    return plan_of(source, model, device="cpu", memory=memory)


def on_a_gpu(host: Plan, size: int) -> tuple[Plan, float]:
    """Take the tile for a GPU of so many bytes.

    Returns:
        The plan with that tile, and the GiB it is expected to take of the GPU.
    """
    tile = device_tile(host, int(host.job.device_memory * size))
    return replace(host, tile=tile), host.tile_bytes(tile) / GIB


def line(name: str, memory: str, plan: Plan | str, gib: float | None = None) -> str:
    """Write one row.

    Args:
        name: of the network.
        memory: planned for.
        plan: the plan, or why there is none.
        gib: planned memory, where it is not that of the worker.
    """
    if isinstance(plan, str):
        return cells((name, memory, plan, *[""] * (len(COLUMNS) - 3)))
    read, needed = plan.read_bytes()
    planned = plan.worker_memory_bytes() / GIB if gib is None else gib
    return cells(
        (
            name,
            memory,
            extents(plan.stages[0].block),
            extents(plan.tile),
            str(plan.depth),
            f"{1 + plan.compute_overhead():.2f}",
            f"{read / needed:.2f}",
            f"{planned:.1f}",
        )
    )


def extents(shape: Triple) -> str:
    """Write a shape."""
    return " x ".join(map(str, shape))


def cells(values: Iterable[str]) -> str:
    """Write one line of a table."""
    return f"| {' | '.join(values)} |"


def rows(source: str, name: str, model: str, memory: list[int], gpus: list[int]) -> Iterator[str]:
    """Yield the rows of a network."""
    for size in memory:
        yield line(name, f"{size / GIB:g} GiB", on_a_cpu(source, model, size))
    if not gpus:
        return
    host = plan_of(source, model, device="cuda", memory=HOST)
    for size in gpus:
        what = f"GPU of {size / GIB:g} GiB"
        if isinstance(host, str):
            yield line(name, what, host)
            continue
        plan, gib = on_a_gpu(host, size)
        fits = gib * GIB <= host.job.device_memory * size
        yield line(name, what, plan if fits else f"does not fit: needs {gib:.1f} GiB", gib)


def sizes(text: str) -> list[int]:
    """Read sizes as ``4GiB,16GiB``."""
    return [read_bytes(part, "memory") for part in text.split(",") if part]


def main() -> None:
    """Plan and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--memory", type=sizes, default="4GiB,16GiB,64GiB")
    options.add_argument("--gpu", type=sizes, default="16GiB,80GiB,141GiB")
    names = [*(name for name, _ in (*shipped(), *baselines())), *PAPERS]
    options.add_argument("--network", action="append", choices=names)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = sparse_source(Path(folder))
        print(cells(COLUMNS), cells(["---"] * len(COLUMNS)), sep="\n")
        for name, model in networks(Path(folder), chosen.network):
            for row in rows(source, name, model, chosen.memory, chosen.gpu):
                print(row, flush=True)


if __name__ == "__main__":
    main()
