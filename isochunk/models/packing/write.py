"""A shipped network or a checkpoint, written as a package for the BioImage Model Zoo."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from isochunk.core.codec import JsonObject
from isochunk.core.geometry import Triple, ceil_div, triple
from isochunk.core.spec import Intensity, ModelSpec
from isochunk.core.tissue import attribution, truth
from isochunk.core.voxels import Voxels
from isochunk.errors import ModelError, UsageError
from isochunk.models.checkpoint import load_module, read_spec
from isochunk.models.degrade import degrade
from isochunk.models.interpolation import INTERPOLATIONS
from isochunk.models.load import checkpoint_folder
from isochunk.models.network import Network
from isochunk.models.packing.script import Script, cells_of, halo_of, script_of

if TYPE_CHECKING:
    from isochunk.models.packing.description import Files

INSIDE = 48
"""Source voxels of a block beside its halo, along each axis, where the user names no block."""
CELL = 8
"""Blocks have multiples of so many."""


@dataclass(frozen=True, slots=True)
class Packing:
    """What a package is to be."""

    out: Path
    """The ``.zip`` to write."""
    factor: Fraction | None = None
    """Target voxels per section; None for the network's own."""
    block: Triple | None = None
    """Source voxels that the network is traced with; None for its halo and some more."""
    intensity: Intensity | None = None
    """What stored values mean to the network; None for those of the tissue."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written."""

    out: str
    """The ``.zip``."""
    name: str
    """The network's."""
    factor: int
    """Target voxels per section."""
    block: Triple
    """Source voxels it takes."""
    halo: Triple
    """Source voxels of it on each side whose answer is to be cropped."""
    mean: float
    """Stored value that the network sees as 0."""
    deviation: float
    """Stored values that it sees as 1."""
    bytes: int
    """Size of the package."""
    warnings: tuple[str, ...]
    """What the zoo's validation remarks."""

    def summary(self) -> JsonObject:
        """Return the JSON object of ``isochunk export``; axes z, y, x."""
        return {
            "out": self.out,
            "name": self.name,
            "factor": self.factor,
            "block": list(self.block),
            "halo": list(self.halo),
            "mean": self.mean,
            "deviation": self.deviation,
            "bytes": self.bytes,
            "warnings": list(self.warnings),
        }


def write_package(name: str, packing: Packing) -> Packed:
    """Write a network as a package of bioimage.io, with a test on a little real tissue.

    Args:
        name: of a shipped network, or a checkpoint folder.
        packing: what the package is to be.

    Raises:
        ModelError: the network cannot be found, has no whole factor, cannot be tiled exactly or
            cannot be made TorchScript; or the extra is not installed.
        UsageError: there is a file already, or its name does not end in ``.zip``.
    """
    try:
        from isochunk.models.packing.description import Files, describe, save
    except ImportError:
        raise ModelError(
            "what writes packages of bioimage.io is not installed; pip install 'isochunk[zoo]'"
        ) from None
    if packing.out.suffix != ".zip":
        raise UsageError(f"{packing.out} is no .zip; name the package like network.zip")
    if packing.out.exists():
        raise UsageError(f"{packing.out} exists; remove it, or choose another name")
    if name in INTERPOLATIONS:
        raise ModelError(f"{name} is an interpolation; export a network, as `isochunk models` says")
    folder = checkpoint_folder(name)
    spec = read_spec(folder)
    network = load_module(folder)
    if network.inexact_because:
        raise ModelError(
            f"model {spec.name!r} cannot be tiled exactly ({network.inexact_because}); export "
            "another network"
        )
    factor, tissue = _factor(spec, packing.factor), truth()
    block = packing.block or _block(network, spec, factor, tissue.shape)
    script = script_of(network, spec, factor, block)
    coarse = _made_coarse(tissue, int(factor), spec)
    intensity = packing.intensity or _measured(spec, coarse)
    with TemporaryDirectory() as scratch:
        files = Files(
            *(
                Path(scratch) / file
                for file in ("weights.pt", "input.npy", "output.npy", "README.md", "cover.png")
            )
        )
        script.save(files.weights)
        _write_test(script, intensity, coarse, files)
        files.card.write_text(_documentation(folder, script, intensity))
        warnings = save(describe(script, intensity, files, torch.__version__), packing.out)
    return Packed(
        str(packing.out),
        spec.name,
        int(factor),
        block,
        script.halo,
        intensity.offset,
        intensity.scale,
        packing.out.stat().st_size,
        warnings,
    )


def _factor(spec: ModelSpec, wanted: Fraction | None) -> Fraction:
    """Return the factor to fix: what is wanted, the network's own, or the one it was trained for.

    Raises:
        ModelError: it takes several and none is given, it has another, or it is not whole.
    """
    low, high = spec.trained_factors or (None, None)
    factor = wanted or spec.factor[0] or (low if low == high else None)
    if factor is None:
        raise ModelError(
            f"model {spec.name!r} takes any factor and a package has one; choose --factor, as "
            "--factor 4"
        )
    if factor.denominator != 1:
        raise ModelError(
            f"factor {factor} is not whole, which a package cannot say; give a whole --factor"
        )
    return factor


def _block(network: Network, spec: ModelSpec, factor: Fraction, tissue: Triple) -> Triple:
    """Choose a block: as much beside the halo as the tissue allows."""
    cells = cells_of(network, spec, factor)
    halo = halo_of(spec, factor, cells)
    sizes = []
    for h, cell, there in zip(halo, cells, (tissue[0] // int(factor), *tissue[1:]), strict=True):
        step = math.lcm(cell, CELL)
        wanted = ceil_div(2 * h + INSIDE, step) * step
        # Tissue beyond its rim is mirrored, so it is preferred to do without.
        sizes.append(min(wanted, there // step * step) if there // step * step > 2 * h else wanted)
    return triple(sizes)


def _made_coarse(fine: Voxels, factor: int, spec: ModelSpec) -> NDArray[np.uint8]:
    """Make thick sections of tissue, as the network was trained for: means, or samples."""
    whole = torch.tensor(fine[: len(fine) // factor * factor], dtype=torch.float32)[None, None]
    made = degrade(whole, factor, "skip" if spec.phase == "sample" else "avg")[0, 0]
    sections: NDArray[np.uint8] = made.round().to(torch.uint8).numpy()
    return sections


def _measured(spec: ModelSpec, coarse: NDArray[np.uint8]) -> Intensity:
    """Return the intensity of tissue, as of a volume: over the voxels that are not 0."""
    if spec.normalisation == "range":
        return Intensity.full_range("uint8")
    seen = coarse[coarse > 0].astype(np.float64)
    return Intensity(float(seen.mean()), float(seen.std()))


@torch.no_grad()
def _write_test(
    script: Script, intensity: Intensity, coarse: NDArray[np.uint8], files: Files
) -> None:
    """Write test input, test output and cover."""
    missing = [max(0, n - have) for n, have in zip(script.block, coarse.shape, strict=True)]
    block = np.pad(coarse, [(0, n) for n in missing], mode="symmetric")
    z, y, x = script.block
    block = np.ascontiguousarray(block[:z, :y, :x])[None, None]
    normal = (torch.from_numpy(block).float() - intensity.offset) / intensity.scale
    answer = (script.module(normal) * intensity.scale + intensity.offset).clamp(0, 255).numpy()
    np.save(files.source, block)
    np.save(files.answer, answer)
    _cover(block[0, 0], answer[0, 0], script).save(files.cover)


def _cover(coarse: NDArray[np.uint8], fine: NDArray[np.float32], script: Script) -> Image.Image:
    """Show a slice along z before and after, side by side, twice as wide as high."""
    z, _, x = (h * f for h, f in zip(script.halo, script.factor, strict=True))
    thick = coarse.repeat(script.factor[0], 0)
    side = min(fine.shape[0] - 2 * z, fine.shape[2] - 2 * x)
    pictures = [
        volume[z : z + side, fine.shape[1] // 2, x : x + side].round().astype(np.uint8)
        for volume in (thick, fine)
    ]
    return Image.fromarray(np.concatenate(pictures, 1)).resize((512, 256), Image.Resampling.NEAREST)


def _documentation(folder: Path, script: Script, intensity: Intensity) -> str:
    """Return the network's card, with what is particular to the package."""
    card = folder / "CARD.md"
    begun = card.read_text() if card.is_file() else f"# {script.spec.name}\n"
    return (
        f"{begun.rstrip()}\n\n"
        f"## As a package\n"
        f"Written by isochunk for a factor of {script.factor[0]}. It takes blocks of "
        f"{script.block} voxels (z, y, x) and is exact inside the halo that its output declares.\n"
        f"Its preprocessing subtracts {intensity.offset:.4f} and divides by "
        f"{intensity.scale:.4f}: mean and deviation of the nonzero voxels of one volume. For "
        "another, put its own into `rdf.yaml`, in preprocessing (mean, std) and postprocessing "
        "(offset, gain).\n\n"
        "## Validation\n"
        "Make an isotropic volume of yours coarse, restore it and compare, with cubic "
        "interpolation beside it: `isochunk evaluate --truth VOLUME --model PACKAGE.zip --factor "
        f"{script.factor[0]}`.\n\n"
        "## Test tissue\n"
        f"{attribution()}"
    )
