"""Whether crops are made fast enough not to starve a GPU: the table of docs/training.md.

    python benchmarks/crops.py [--steps 20] [RECIPE ...]

Crops a second of one core, read from the recipe's volume and made coarse, beside those that its
network would take at a rate of arithmetic which no card of today exceeds here; so many cores keep
it busy.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from accuracy import LEARN_FROM

from isochunk.models.registry import make
from isochunk.storage.open import open_volume
from isochunk.train.config import TrainConfig
from isochunk.train.data import split
from isochunk.train.loop import Batches
from isochunk.train.presets import config_from_table, read_recipe
from isochunk.train.ranks import Ranks
from isochunk.train.sources import use_volume, with_factors

RECIPES = ("srunet-large", "fsrcnn-large", "anyz-large", "niiv-large", "a2i-large")
RATE = 60e12
"""Operations a second that large networks reach in bf16: what recipes are sized by."""
PASSES = 3
"""Forward and backward, in forward passes."""
HARDEST_OF = 3
"""Places drawn for hard crops."""


def rows(names: list[str], steps: int) -> Iterator[str]:
    """Write a row for each recipe."""
    yield "| recipe | crop | crops/s of a core | hardest of 3 | crops/s taken | cores |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        table = read_recipe(name) | {"sources": [str(LEARN_FROM)], "out": "unused"}
        config = config_from_table(table)
        made = crops_per_s(config, steps)
        hard = crops_per_s(replace(config, hardest_of=HARDEST_OF), steps)
        operations = 2 * PASSES * make(config.network).cost().macs * math.prod(config.patch)
        taken = RATE / operations
        crop = " x ".join(map(str, config.patch))
        yield f"| `{name}` | {crop} | {made:.0f} | {hard:.0f} | {taken:.0f} | {taken / made:.1f} |"


def crops_per_s(config: TrainConfig, steps: int) -> float:
    """Make the crops of some steps in this thread."""
    volume = open_volume(config.sources[0])
    config = with_factors(config, (volume,))
    part = split(volume.spec.box, config.split_axis)[0]
    batches = Batches(config, (use_volume(volume, config),), (part,), Ranks(torch.device("cpu")))
    batches(0)
    started = time.process_time()  # storage's threads count too
    for step in range(1, steps + 1):
        batches(step)
    return steps * config.batch / (time.process_time() - started)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for line in rows(options.recipes, options.steps):
        print(line, flush=True)


if __name__ == "__main__":
    main()
