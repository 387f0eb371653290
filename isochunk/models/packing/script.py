"""A network as TorchScript for blocks of one shape, and proof that it answers as isochunk does."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from isochunk.core.geometry import Box, Triple, add, ceil_div, sub, triple
from isochunk.core.spec import AXIAL, ModelSpec, Phase, Plane
from isochunk.errors import ModelError
from isochunk.models.network import Network

TOLERANCE = 1e-3
"""Largest difference from isochunk's own answer, in what the network calls one: the range of
voxels, or their deviation. A grey level is at least four times as much."""

PLACE = 3
"""Cells of the alignment by which a block is moved when its answer is compared: what it answers
must not depend on where it lies."""


class OnBlock(nn.Module):
    """A network on whole blocks, padded as in its training; only the inside is exact."""

    def __init__(self, network: Network, factor: Fraction, phase: Phase, plane: Plane) -> None:
        """Fix what the network is told.

        Args:
            network: for volumes, or for slices along z.
            factor: target voxels per section.
            phase: where a section lies.
            plane: 3d, or the slices that it runs on.
        """
        super().__init__()
        self.network = network
        self.factor = factor
        self.phase = phase
        self.planes = () if plane == "3d" else tuple(plane.split("+"))

    def forward(self, block: Tensor) -> Tensor:
        """Restore (1, 1, z, y, x) of normalised voxels."""
        if not self.planes:
            return self._restored(block)
        answers = [
            self._restored(block)
            if plane == "xz"
            else self._restored(block.transpose(3, 4)).transpose(3, 4)
            for plane in self.planes
        ]
        return answers[0] if len(answers) == 1 else (answers[0] + answers[1]) / 2

    def _restored(self, block: Tensor) -> Tensor:
        return self.network.restore_crops(block, self.factor, self.phase)


@dataclass(frozen=True, slots=True)
class Script:
    """A network as TorchScript."""

    module: torch.jit.ScriptModule
    """Maps normalised float32 (1, 1, *block) to (1, 1, *block * factor)."""
    spec: ModelSpec
    """The network's, its factor resolved."""
    block: Triple
    """Source voxels that it takes, no more and no less."""
    halo: Triple
    """Source voxels of it on each side whose answer is to be cropped; whole cells."""

    @property
    def factor(self) -> Triple:
        """Target voxels per source voxel."""
        return triple(int(f) for f in self.spec.resolved_factor)

    def save(self, path: Path) -> None:
        """Write it to a file."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is old
            torch.jit.save(self.module, str(path))


def cells_of(network: Network, spec: ModelSpec, factor: Fraction) -> Triple:
    """Return the source voxels of which blocks are made, and on whose grid they answer alike."""
    z, y, x = spec.alignment
    alike = (z // math.gcd(z, int(factor)), y, x) if spec.grid == "target" else (z, y, x)
    crops = network.crop_multiple
    crops = (crops[0] // math.gcd(crops[0], int(factor)), *crops[1:])
    return triple(map(math.lcm, alike, crops))


def halo_of(spec: ModelSpec, factor: Fraction, cells: Triple) -> Triple:
    """Return the source voxels to crop, in whole cells: so that what is left starts on them."""
    halo = spec.for_factor((factor, Fraction(1), Fraction(1))).halo
    return triple(ceil_div(h, g) * g for h, g in zip(halo, cells, strict=True))


def script_of(network: Network, spec: ModelSpec, factor: Fraction, block: Triple) -> Script:
    """Make TorchScript of a network.

    Args:
        network: on the CPU, in eval mode.
        spec: its spec with the factor open.
        factor: target voxels per section; whole.
        block: source voxels; whole cells of its grid, and more than its halo on both sides.

    Raises:
        ModelError: the network is for single sections, does not fit the block, answers otherwise
            where it lies elsewhere, or cannot be traced.
    """
    cells = cells_of(network, spec, factor)
    halo = halo_of(spec, factor, cells)
    spec = spec.for_factor((factor, Fraction(1), Fraction(1)))
    _require_fit(spec, block, cells, halo)
    example = torch.rand(1, 1, *block, generator=torch.Generator().manual_seed(0))
    whole = OnBlock(network, factor, spec.phase, spec.plane).eval()
    with torch.no_grad():
        answer = whole(example)
    _require_alike(network, spec, (cells, halo), example, answer)
    module = _traced(whole, example, spec.name)
    with torch.no_grad():
        again = module(example)
    if not torch.allclose(again, answer, atol=TOLERANCE):
        raise ModelError(
            f"model {spec.name!r} answers otherwise as TorchScript, so it cannot be a package; "
            "export another network"
        )
    return Script(module, spec, block, halo)


def _traced(whole: OnBlock, example: Tensor, name: str) -> torch.jit.ScriptModule:
    """Trace a network at the shape of an example."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is old
        try:
            # The arithmetic of factors is done by torch.export; torch.jit.trace would see tensors.
            graph = torch.export.export(whole, (example,)).module()
            traced: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
                graph, example, check_trace=False
            )
        except Exception as error:  # torch raises many kinds here
            said = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"model {name!r} cannot be made TorchScript: {type(error).__name__}: {said}"
            ) from error
    return traced


def _require_fit(spec: ModelSpec, block: Triple, cells: Triple, halo: Triple) -> None:
    if spec.plane not in ("3d", *AXIAL):
        raise ModelError(
            f"model {spec.name!r} makes whole sections finer; packages are written of networks "
            "that make sections thinner"
        )
    if any(n % g for n, g in zip(block, cells, strict=True)):
        raise ModelError(
            f"a block of {block} source voxels is not made of whole cells of {cells}, on which "
            f"{spec.name!r} answers alike; choose multiples of these"
        )
    if any(n <= 2 * h for n, h in zip(block, halo, strict=True)):
        least = add(add(halo, halo), cells)
        raise ModelError(
            f"a block of {block} source voxels holds nothing but the halo of {halo} of "
            f"{spec.name!r}; choose at least {least}"
        )


@torch.no_grad()
def _require_alike(
    network: Network, spec: ModelSpec, lies: tuple[Triple, Triple], block: Tensor, answer: Tensor
) -> None:
    """Compare an answer with what isochunk answers where the block lies elsewhere.

    Args:
        network: that answered.
        spec: its spec with the factor fixed.
        lies: its cells and its halo, in source voxels.
        block: (1, 1, z, y, x).
        answer: to the block.
    """
    cells, halo = lies
    factor = triple(int(f) for f in spec.resolved_factor)
    inner = Box(halo, sub(triple(block.shape[2:]), halo))
    lo, hi = (triple(a * f for a, f in zip(at, factor, strict=True)) for at in (inner.lo, inner.hi))
    corner = triple(PLACE * g for g in cells)
    shift = triple(c * f for c, f in zip(corner, factor, strict=True))
    engine = network.engine(spec)
    want = Box(add(lo, shift), add(hi, shift))
    tile = block[(..., *engine.needs(want).slices(corner))]
    difference = (engine(tile, want) - answer[(..., *Box(lo, hi).slices((0, 0, 0)))]).abs().max()
    if not float(difference) < TOLERANCE:  # NaN is none
        raise ModelError(
            f"model {spec.name!r} answers otherwise where a block lies elsewhere (by "
            f"{float(difference):.2g}), and other programs do not tell where; export another "
            "network, as anyz or fsrcnn"
        )
