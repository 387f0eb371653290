"""What the parts of anyz are worth: variants of it, each trained alike for a short time.

    python benchmarks/ablations.py [--steps 600] [--variants NAME ...] [--any-ratio]

All learn x4 AVG from the same crops, in the same order, in bf16 on one thread, and restore the
middle of a cube that none has seen; with ``--any-ratio`` all ratios, means and samples, by the
recipe. Short trainings tell what learns fast, and not all of what is best at last.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from accuracy import LEARN_FROM, TRUTH
from torch import Tensor, nn
from torch.nn import functional

from isochunk.core.degradation import PHASES, Degradation
from isochunk.core.geometry import Box, Triple
from isochunk.evaluation.spread import gain, squared_errors
from isochunk.models.anyz import LEAK, AnyZ, AnyZConfig, Block, Told, ToldConv
from isochunk.models.counting import Recorder
from isochunk.models.degrade import degrade
from isochunk.models.interpolation import Taps, whole_axis_taps
from isochunk.models.placed import Placed
from isochunk.models.tiled_layers import Padding
from isochunk.models.torch_interpolation import blended
from isochunk.planning.intensity import measure_intensity
from isochunk.storage.open import open_volume
from isochunk.train.apply import Criterion
from isochunk.train.config import Loss, Optimiser, Pixel, TrainConfig
from isochunk.train.data import Shades, Source, read_ahead, split
from isochunk.train.loop import READ_AHEAD, Batches
from isochunk.train.muon import optimisers
from isochunk.train.presets import config_from_table, read_recipe
from isochunk.train.ranks import Ranks
from isochunk.train.run import inner

FACTOR = Fraction(4)
MIDDLE = Box((45, 45, 45), (205, 205, 205))
RIM = (48, 12, 12)
"""Voxels of the middle that are not compared on either side: crops are padded."""
CONFIG = AnyZConfig()


class Separable(Block):
    """Each convolution within sections, then along z."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.first = ToldConv(width, width, (1, 3, 3), 0)
        self.second = ToldConv(width, width, (1, 3, 3), 0)
        self.along = nn.ModuleList(nn.Conv3d(width, width, (3, 1, 1)) for _ in range(2))

    def run(self, x: Placed, told: Told, padding: Padding) -> Placed:
        one, two = self.along
        assert isinstance(one, nn.Conv3d)
        assert isinstance(two, nn.Conv3d)
        y = padding.conv(padding.conv(x, self.first.at(None)), one)
        shift = self.told(told.numbers).view(1, -1, 1, 1, 1)
        y = Placed(functional.prelu(y.data + shift, self.slope), y.origin)
        y = padding.conv(padding.conv(y, self.second.at(None)), two)
        return Placed(x.crop(y.box).data + y.data, y.origin)


class Gated(Block):
    """Channels weighted by what is seen at each place: attention without global pooling."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gate = nn.Conv3d(width, width, 1)

    def run(self, x: Placed, told: Told, padding: Padding) -> Placed:
        y = super().run(x, told, padding)
        same = x.crop(y.box).data
        change = y.data - same
        return Placed(same + change * self.gate(change).sigmoid(), y.origin)


class Shuffle(nn.Module):
    """Four answers of the features of each section: pixel shuffle along z."""

    def __init__(self, config: AnyZConfig) -> None:
        super().__init__()
        self.first = nn.Conv3d(config.width, 2 * config.decoded, 1)
        self.last = nn.Conv3d(2 * config.decoded, int(FACTOR), 1)
        nn.init.zeros_(self.last.weight)

    def forward(self, features: Tensor, _taps: Taps, _told: Tensor) -> Tensor:
        y = self.last(functional.leaky_relu(self.first(features[:, :, 1:-1]), LEAK))
        b, r, z, h, w = y.shape
        answer: Tensor = y.transpose(1, 2).reshape(b, 1, z * r, h, w)
        return answer


def with_blocks(kind: Callable[[int], Block]) -> Callable[[], AnyZ]:
    def make() -> AnyZ:
        network = AnyZ(CONFIG)
        network.body = nn.ModuleList(kind(CONFIG.width) for _ in range(CONFIG.blocks))
        return network

    return make


def shuffled() -> AnyZ:
    network = AnyZ(CONFIG)
    network.decoder = Shuffle(CONFIG)  # type: ignore[assignment]
    return network


def of(config: AnyZConfig) -> Callable[[], AnyZ]:
    return lambda: AnyZ(config)


def plain() -> AnyZ:
    return AnyZ(CONFIG)


@dataclass(frozen=True, slots=True)
class Variant:
    """A row: what differs from the recipe."""

    network: Callable[[], AnyZ] = plain
    """Makes the network."""
    optimiser: Optimiser = "muon"
    """What changes its weights."""
    pixel: Pixel = "psnr"
    """What is made small."""
    clip: float = 3.0
    """Longest gradient; that of a logarithm is as long as the error is small."""
    hardest_of: int = 1
    """Places drawn for a crop."""
    patch: Triple | None = None
    """Target voxels of a crop, one in a step; by default two of the recipe's size."""


ONE_RATIO: Mapping[str, Variant] = {
    "anyz, 24 maps, 3 blocks": Variant(),
    "separable kernels": Variant(with_blocks(Separable)),
    "channel attention, no pooling": Variant(with_blocks(Gated)),
    "pixel shuffle along z": Variant(shuffled),
    "one kernel for all places": Variant(of(replace(CONFIG, bases=1))),
    "no residual over cubic": Variant(of(replace(CONFIG, residual="none"))),
    "residual over linear": Variant(of(replace(CONFIG, residual="linear"))),
    "32 maps, 2 blocks": Variant(of(replace(CONFIG, width=32, blocks=2))),
    "16 maps, 7 blocks": Variant(of(replace(CONFIG, width=16, blocks=7))),
    "32 maps, 6 blocks": Variant(of(replace(CONFIG, width=32, blocks=6, decoded=48))),
    "squared error": Variant(pixel="mse", clip=0.2),
    "Adam": Variant(optimiser="adam"),
    "crops: hardest of 3": Variant(hardest_of=3),
}
"""Rows for one ratio."""
ANY_RATIO: Mapping[str, Variant] = {
    "kernels by ratio": Variant(of(replace(CONFIG, changes=3))),
    "one encoder": Variant(),
    "kernels by ratio, squared error": Variant(of(replace(CONFIG, changes=3)), "muon", "mse", 0.2),
    "kernels by ratio, Adam": Variant(of(replace(CONFIG, changes=3)), "adam"),
    "kernels by ratio, one crop twice as long": Variant(
        of(replace(CONFIG, changes=3)), patch=(160, 40, 40)
    ),
}
"""Rows for all ratios."""
JUDGED: tuple[tuple[Fraction, Degradation], ...] = (
    (Fraction(2), "avg"),
    (Fraction(4), "avg"),
    (Fraction(8), "avg"),
    (Fraction(8), "skip"),
)
"""What a network for all ratios restores."""


def config_of(steps: int, *, any_ratio: bool = False) -> TrainConfig:
    """Return the recipe of anyz, by default for one ratio and one kind of section."""
    table = read_recipe("anyz-z2-10-first")
    if not any_ratio:
        table.update(factor=4, degradation="avg", patch=[48, 48, 48], border=[8, 4, 4])
    table.update(sources=[str(LEARN_FROM)], out="unused", steps=steps)
    table["optimisation"] = {**table["optimisation"], "anneal": steps // 2}
    return config_from_table(table)


def trained(variant: Variant, config: TrainConfig) -> AnyZ:
    """Train a network by a config's crops, and a rate that falls to zero."""
    torch.manual_seed(0)
    network = variant.network().in_fastest_layout()
    config = replace(config, hardest_of=variant.hardest_of)
    if variant.patch:
        config = replace(config, patch=variant.patch, batch=1)
    volume = open_volume(config.sources[0])
    source = Source(volume, measure_intensity(volume, "standard"))
    parts = (split(volume.spec.box, config.split_axis)[0],)
    batches = Batches(config, (source,), parts, Ranks(torch.device("cpu")))
    rates = config.optimisation
    steppers = optimisers([list(network.parameters())], variant.optimiser)
    criterion = Criterion(Loss(variant.pixel), Shades(0, 1), torch.device("cpu"))
    for step, batch in enumerate(read_ahead(batches, range(config.steps), READ_AHEAD)):
        with torch.autocast("cpu", torch.bfloat16):
            answer = network.restore_crops(batch.coarse, batch.factor, batch.phase).float()
        loss = criterion(inner(answer, config.border), inner(batch.target, config.border))
        network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), variant.clip)
        left = min(1.0, (config.steps - step) / rates.anneal, (step + 1) / rates.warmup)
        for stepper in steppers:
            stepper.param_groups[0]["lr"] = rates.lr * left
            stepper.step()
    return network


@torch.inference_mode()
def judged(
    network: AnyZ, factor: Fraction = FACTOR, degradation: Degradation = "avg"
) -> tuple[float, float, float, float]:
    """Return the gain over cubic in dB with its 95 %, and seconds for a million voxels."""
    volume = open_volume(str(TRUTH))
    intensity = measure_intensity(volume, "standard")
    stored = torch.from_numpy(volume.read(MIDDLE).astype("float32"))[None, None]
    truth = (stored - intensity.offset) / intensity.scale
    coarse = degrade(truth, factor, degradation)
    phase = PHASES[degradation]
    started = time.perf_counter()
    answer = network.eval().restore_crops(coarse, factor, phase)
    seconds = (time.perf_counter() - started) / (answer.numel() / 1e6)
    cubic = blended(coarse, whole_axis_taps("cubic", coarse.shape[2], factor, phase))
    true, own, reference = (inner(v, RIM)[0, 0].numpy() for v in (truth, answer, cubic))
    found = gain(squared_errors(true, own), squared_errors(true, reference))
    return found.db, found.low, found.high, seconds


def multiply_adds(network: AnyZ) -> float:
    """Return those of a target voxel, rims left out."""
    shape = (1, 1, 64, 256, 256)
    with torch.no_grad(), Recorder() as counted:
        copy.deepcopy(network).to("meta").restore_crops(
            torch.empty(shape, device="meta"), FACTOR, "mean"
        )
    return float(counted.macs) / (float(FACTOR) * math.prod(shape))


def table(steps: int, names: list[str]) -> Iterator[str]:
    """Write a row for each variant."""
    yield f"\n{steps} steps, x4 along z, AVG\n"
    yield (
        "| variant | parameters | multiply-adds a voxel | over cubic, dB | 95 % "
        "| s per 10^6 voxels |"
    )
    yield "|---|---|---|---|---|---|"
    config = config_of(steps)
    for name in names:
        network = trained(ONE_RATIO[name], config)
        db, low, high, seconds = judged(network)
        yield (
            f"| {name} | {size(network):,} | {multiply_adds(network):,.0f} | {db:+.2f} "
            f"| {low:+.2f} to {high:+.2f} | {seconds:.2f} |"
        )


def table_of_any_ratio(steps: int, names: list[str]) -> Iterator[str]:
    """Write a row for each variant, dB over cubic of each kind of sections."""
    yield f"\n{steps} steps, all ratios, means and samples\n"
    heads = [f"x{factor} {degradation.upper()}" for factor, degradation in JUDGED]
    yield f"| variant | parameters | {' | '.join(heads)} |"
    yield f"|---|---|{'---|' * len(heads)}"
    config = config_of(steps, any_ratio=True)
    for name in names:
        network = trained(ANY_RATIO[name], config)
        gains = (judged(network, *case)[:3] for case in JUDGED)
        cells = (f"{db:+.2f} ({low:+.2f} to {high:+.2f})" for db, low, high in gains)
        yield f"| {name} | {size(network):,} | {' | '.join(cells)} |"


def size(network: AnyZ) -> int:
    """Count parameters."""
    return sum(p.numel() for p in network.parameters())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--variants", nargs="*", choices=[*ONE_RATIO, *ANY_RATIO])
    parser.add_argument("--any-ratio", action="store_true", help="train for all ratios")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = table_of_any_ratio if options.any_ratio else table
    names = options.variants or [*(ANY_RATIO if options.any_ratio else ONE_RATIO)]
    for line in rows(options.steps, names):
        print(line, flush=True)


if __name__ == "__main__":
    main()
