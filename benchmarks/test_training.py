"""Whether reading keeps up: a training step on crops read from storage, and on one kept batch.

The two should differ by less than 5 %. On a CPU the network takes one thread, and reading others.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from isochunk.models.load import device_of
from isochunk.storage.open import open_volume
from isochunk.train.data import Batch, read_ahead, split, validation_crops
from isochunk.train.loop import READ_AHEAD, Batches, sampling_of
from isochunk.train.presets import config_from_table, read_recipe
from isochunk.train.ranks import Ranks
from isochunk.train.run import Run
from isochunk.train.sources import use_volume, with_factors

STEPS = 4
VOLUME = Path(__file__).resolve().parents[2] / "shared" / "data" / "medulla_fibsem_448.ome.zarr"
NIIV = {
    "mode": "supervised",
    "factor": "2,5/2,4,8",
    "patch": [64, 1, 64],
    "batch": 4,
    "network": {"blocks": 6},
}


@pytest.mark.parametrize("arch", ["srunet", "niiv"])
@pytest.mark.parametrize("feed", ["kept", "read"])
def test_training_step(benchmark: Any, arch: str, feed: str, tmp_path: Path) -> None:
    if not VOLUME.is_dir():
        pytest.skip(f"the volume is not at {VOLUME}")
    torch.set_num_threads(1)
    source = str(VOLUME)
    table = read_recipe("srunet-z4") if arch == "srunet" else dict(NIIV)
    table |= {"arch": arch, "sources": [source], "out": str(tmp_path / "out"), "device": "auto"}
    volume = open_volume(source)
    config = with_factors(config_from_table(table), (volume,))
    sources = (use_volume(volume, config),)
    parts = split(volume.spec.box, config.split_axis)
    ranks = Ranks(device_of(config.device))
    batches = Batches(config, sources, (parts[0],), ranks)
    held_out = validation_crops(sources, (parts[1],), sampling_of(config), 1)
    run = Run(config, held_out, ranks, sources[0].shades)

    def feeding() -> Iterator[Batch]:
        if feed == "kept":
            return repeat(batches(0))
        return read_ahead(batches, range(1 << 20), READ_AHEAD)

    feeder = feeding()
    run.update(next(feeder))

    def steps() -> None:
        for _ in range(STEPS):
            run.update(next(feeder))

    benchmark.pedantic(steps, rounds=3)
    benchmark.extra_info |= {"steps": STEPS, "device": str(ranks.device)}
