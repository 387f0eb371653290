"""Gradients that are too long are shortened, and others are left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from trainings import config, write_em

from isochunk.train.training import train

torch.set_num_threads(1)


def test_gradients_that_are_long_are_shortened(tmp_path: Path) -> None:
    wanted = config("niiv", write_em(tmp_path), tmp_path / "plain", steps=1)
    train(wanted)
    whole = gradient(tmp_path / "plain")
    for name, clip in (("short", float(whole.norm()) / 3), ("long", 3 * float(whole.norm()))):
        clipped = replace(wanted.optimisation, clip=clip)
        train(replace(wanted, out=str(tmp_path / name), optimisation=clipped))
    assert torch.allclose(gradient(tmp_path / "short"), whole / 3, rtol=0.01, atol=1e-9)
    assert torch.equal(gradient(tmp_path / "long"), whole)


def gradient(out: Path) -> torch.Tensor:
    """That of the only step: Adam's first moment is a tenth of it."""
    state = torch.load(out / "training" / "state.pt", weights_only=True)["optimizer"]["state"]
    return 10 * torch.cat([moments["exp_avg"].flatten() for moments in state.values()])
