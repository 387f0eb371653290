"""What every contender of ``efficiency.py`` is given: one volume, and one network in three forms.

The network is the 3D-SRU-Net of ``user_network.py``, with random weights. The same weights lie
beside that file, in an exported program, and in a checkpoint folder of isochunk's own SRU-Net of
the same layers, so that the outputs of all contenders can be compared.
"""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
import torch
from safetensors.torch import save_file

from isochunk.core.geometry import Box, Spacing, Triple
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.synthetic import synthetic_em
from isochunk.models.checkpoint import Card, save
from isochunk.models.srunet import SRUNet, SRUNetConfig
from isochunk.storage.open import create_volume

FACTOR = 4
HALO: Triple = (9, 28, 28)
"""Source voxels that the network looks beyond its own, in whole cells of its pooling."""
CELL = 4
"""Pixels of such a cell, along y and x."""
SHARD, CHUNK = 128, 64

SOURCE = "source.zarr"
PYTHON_FILE = "user_network.py"
PROGRAM = "network.pt2"
CHECKPOINT = "checkpoint"


def prepare(work: Path, shape: Triple) -> None:
    """Write the source, and the network in its three forms."""
    spacing = Spacing.parse("40,10,10")
    voxels = synthetic_em(shape, seed=0, spacing=spacing)
    level = LevelSpec("s0", Box.from_shape(shape), spacing, (32, 128, 128), None)
    zero = (Fraction(0), Fraction(0), Fraction(0))
    spec = VolumeSpec(f"file://{work}/{SOURCE}", "zarr3", "uint8", "raw", zero, (level,))
    create_volume(spec).write(level.box, voxels)
    network = random_network(voxels[:32, :128, :128])
    save(work / CHECKPOINT, network, Card("benchmark", "none", "random weights"))
    shutil.copy(Path(__file__).with_name(PYTHON_FILE), work)
    save_file(network.state_dict(), work / "weights.safetensors")
    export(users_network(work), work / PROGRAM)


def random_network(voxels: np.ndarray) -> SRUNet:
    """Return a network whose answers spread over the grey range, so that they can be compared."""
    torch.manual_seed(0)
    network = SRUNet(SRUNetConfig.compact(width=8, levels=3, convs=2))
    with torch.no_grad():
        answer = network(torch.from_numpy(voxels).float()[None, None] / 255)
        scale = 0.15 / answer.std()
        network.last.bias.sub_(answer.mean()).mul_(scale).add_(0.5)
        network.last.weight.mul_(scale)
    return network


def users_network(work: Path) -> torch.nn.Module:
    """Load the user's Python file, as plain torch."""
    spec = spec_from_file_location("user_network", work / PYTHON_FILE)
    assert spec is not None
    assert spec.loader is not None
    code = module_from_spec(spec)
    spec.loader.exec_module(code)
    network: torch.nn.Module = code.make()
    return network.eval()


def export(network: torch.nn.Module, path: Path) -> None:
    """Export a program that takes any multiple of the network's cells, and say its factor."""
    z, y, x = (torch.export.Dim(axis, min=2, max=4096) for axis in "zyx")
    sizes = {2: z, 3: CELL * y, 4: CELL * x}
    program = torch.export.export(network, (torch.rand(1, 1, 12, 32, 40),), dynamic_shapes=(sizes,))
    torch.export.save(program, path)
    path.with_name(f"{path.name}.json").write_text(json.dumps({"factor": [FACTOR, 1, 1]}))


def fast_network(work: Path) -> torch.nn.Module:
    """Load the user's network in the memory layout that a CPU computes fastest."""
    return users_network(work).to(memory_format=torch.channels_last_3d)


def forward(network: torch.nn.Module, voxels: np.ndarray) -> np.ndarray:
    """Run a padded forward pass on uint8 voxels."""
    with torch.inference_mode():
        x = torch.from_numpy(voxels).float().div_(255)[None, None]
        y = network(x.to(memory_format=torch.channels_last_3d))
        return y[0, 0].mul_(255).round_().clamp_(0, 255).to(torch.uint8).numpy()


def without_halo(answer: np.ndarray) -> np.ndarray:
    """Crop what a padded forward pass makes of the halo."""
    z, y, x = (h * f for h, f in zip(HALO, (FACTOR, 1, 1), strict=True))
    return answer[z : answer.shape[0] - z, y : answer.shape[1] - y, x : answer.shape[2] - x]


def create_output(target: Path, shape: Triple) -> Any:
    """Create the store that isochunk is asked for too, with tensorstore."""
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{target}/s0/"},
        "metadata": {
            "shape": list(shape),
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD] * 3}},
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [CHUNK] * 3,
                        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
                    },
                }
            ],
        },
    }
    return ts.open(spec, create=True, open=True).result()


def stored(target: Path) -> np.ndarray | None:
    """Read a contender's output; None where it writes none."""
    if not (target / "s0").exists():
        return None
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{target}/s0/"}}
    return np.asarray(ts.open(spec).result().read().result())


def check_same(reference: np.ndarray, other: np.ndarray, name: str) -> None:
    """Fail unless two outputs differ by at most one grey level almost nowhere.

    Raises:
        ValueError: they differ more.
    """
    if reference.shape != other.shape:
        raise ValueError(f"{name} wrote {other.shape}, not {reference.shape}")
    difference = np.abs(reference.astype(np.int16) - other)
    same = (difference == 0).mean()
    if difference.max() > 1 or same < 0.9999:
        raise ValueError(
            f"{name} differs by up to {difference.max()} grey levels; {same:.4%} are the same"
        )
