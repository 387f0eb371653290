"""The diffusion model: noise of a place, its sampler, and what it learns."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from networks import tissue
from torch.nn import functional

from isochunk.errors import ModelError
from isochunk.models.diffusion import Diffusion, DiffusionConfig, noise_at, shares
from isochunk.models.registry import make

torch.set_num_threads(1)

SMALL = DiffusionConfig(width=8, blocks=2, rounds=4)


def test_noise_is_normal_and_a_function_of_the_place() -> None:
    noise = noise_at((-30, 5, 7), torch.zeros(40, 1, 60, 50))
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    assert float(noise.abs().max()) < 6
    assert float((noise.abs() < 1).double().mean()) == pytest.approx(0.683, abs=0.01)
    part = noise_at((-20, 15, 12), torch.zeros(10, 1, 30, 20))
    assert torch.equal(part, noise[10:20, :, 10:40, 5:25])
    for axis in (0, 2, 3):
        for step in (1, 2, 3):
            pair = noise.narrow(axis, 0, 30), noise.narrow(axis, step, 30)
            alike = np.corrcoef(*(v.flatten().numpy() for v in pair))[0, 1]
            assert abs(alike) < 0.02, (axis, step)


def test_sampling_with_the_truth_as_prediction_gives_the_truth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the noise it began with: DDIM moves along the line to what is predicted."""
    network = make(SMALL)
    truth = torch.from_numpy(tissue((1, 20, 20), "uint8"))[None] / 255
    seen: list[torch.Tensor] = []

    def clean(self: Diffusion, noisy: torch.Tensor, x: torch.Tensor, time: torch.Tensor):
        seen.append(noisy)
        return (truth - x) / self.config.scale

    monkeypatch.setattr(Diffusion, "clean", clean)
    x = truth + 0.1
    answer = network.refine(x, Fraction(4), "mean", (3, 2, 1))
    assert torch.allclose(answer, truth, atol=1e-5)
    noise = noise_at((3, 2, 1), x)
    assert torch.allclose(seen[0], noise, atol=1e-6)
    signal, share = shares(3 / 4)
    difference = (truth - x) / SMALL.scale
    assert torch.allclose(seen[1], signal * difference + share * noise, atol=1e-5)


def test_it_learns_to_take_noise_off_what_interpolation_lacks() -> None:
    torch.manual_seed(0)
    network = make(SMALL)
    target = torch.from_numpy(tissue((32, 2, 32), "uint8") / np.float32(128) - 1)[None, None]
    coarse = functional.avg_pool3d(target, (4, 1, 1))
    adam = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for step in range(80):
        answer = network.learn_crops(coarse, target, Fraction(4), "mean", (97 * step, 31 * step))
        assert answer.shape == target.shape
        loss = functional.mse_loss(answer, target)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
    network.eval()
    with torch.inference_mode():
        here, again, there = (
            network.restore_crops(coarse, Fraction(4), "mean", corner)
            for corner in ((0, 0), (0, 0), (5, 5))
        )
    assert torch.equal(here, again)
    assert not torch.equal(here, there)


@pytest.mark.parametrize("change", [{"rounds": 0}, {"scale": 0.0}, {"residual": False}])
def test_what_cannot_be_sampled_is_refused(change) -> None:
    with pytest.raises(ModelError, match="diffusion needs"):
        DiffusionConfig(**change)
