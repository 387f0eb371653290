"""Trainings on slices that are small enough for a test."""

from __future__ import annotations

from pathlib import Path

import torch
from jobs import write_source

from isochunk.core.synthetic import synthetic_pair
from isochunk.train.config import TrainConfig
from isochunk.train.presets import config_from_table

SMALL = {
    "a2i": {"width": 8, "levels": 2, "heads": [1, 2], "blocks": 1, "residual": True},
    "niiv": {"blocks": 2, "width": 16, "hidden": 32, "layers": 2, "residual": True},
    "swinir": {"width": 8, "groups": 1, "depth": 2, "heads": 2, "window": 8},
    "srmd": {"width": 16, "layers": 4, "components": 4, "residual": True},
    "pssr-z": {"width": 4, "depths": [1, 1, 1, 1], "residual": True},
    "diffusion": {"width": 8, "blocks": 1, "rounds": 3},
    "srunet": {
        "variant": "planar",
        "width": 4,
        "levels": 2,
        "convs": 1,
        "residual": "cubic",
        "factor": 4,
    },
    "fsrcnn": {
        "variant": "planar",
        "maps": 16,
        "shrunk": 8,
        "mappings": 1,
        "residual": "cubic",
        "factor": 4,
    },
    "pssr": {"width": 4, "depths": [1, 1, 1, 1]},
    "pssr-mf": {"width": 4, "depths": [1, 1, 1, 1]},
}
"""Networks small enough to be trained in a test."""


def write_em(folder: Path) -> str:
    """Write an anisotropic volume, four times coarser along z."""
    coarse, _ = synthetic_pair((8, 96, 440), 4)
    return write_source(f"{folder}/em", coarse, "32,8,8")


def config(arch: str, source: str, out: Path, **changes) -> TrainConfig:
    lateral = arch in ("pssr", "pssr-mf")
    table = {
        "arch": arch,
        "sources": [source],
        "out": str(out),
        "mode": "supervised" if lateral else "self",
        "network": SMALL[arch],
        "steps": 40,
        "patch": [5 if arch == "pssr-mf" else 1, 64, 64] if lateral else [32, 1, 32],
        "batch": 4,
        "device": "cpu",
        "optimisation": {"lr": 3e-3},
        "keeping": {"validate_every": 10, "crops": 4, "save_every": 5},
    }
    return config_from_table({**table, **changes})


def history(out: Path) -> list[dict[str, float]]:
    return torch.load(out / "training" / "state.pt", weights_only=True)["history"]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "training" / "state.pt", weights_only=True)["network"]
