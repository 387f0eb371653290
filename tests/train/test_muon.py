"""Muon: steps of kernels are orthogonal and as long as Adam's, and a resumed training goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from trainings import config, weights, write_em

from isochunk.errors import UsageError
from isochunk.models.anyz import AnyZ, AnyZConfig
from isochunk.train.muon import BOUND, LENGTH, MOMENTUM, joins_maps, optimisers, orthogonalised
from isochunk.train.training import train

torch.set_num_threads(1)


@pytest.mark.parametrize("shape", [(3, 16, 144), (1, 100, 8), (2, 12, 30)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape) @ torch.diag(torch.logspace(-0.5, 0.5, shape[2]))
    made = orthogonalised(x)
    assert torch.linalg.svdvals(made).sub(1).abs().max() < 0.5
    # It is the nearest orthogonal matrix that it comes near: the same singular vectors.
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    inner = u.mT @ made @ v.mT
    assert inner.diagonal(dim1=1, dim2=2).min() > 0.5
    assert (inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3


def test_a_step_is_as_long_as_one_of_adam_and_follows_momentum() -> None:
    kernel = nn.Parameter(torch.zeros(24, 16, 3, 3, 3))
    _, muon = optimisers([[nn.Parameter(torch.zeros(3)), kernel]], "muon")
    muon.param_groups[0]["lr"] = 0.01
    torch.manual_seed(1)
    first, second = torch.randn_like(kernel), torch.randn_like(kernel)
    kernel.grad = first.clone()
    muon.step()
    step = -kernel.detach()
    assert float(step.square().mean().sqrt()) == pytest.approx(0.01 * LENGTH, rel=0.3)
    assert (
        torch.linalg.svdvals(step.flatten(1)).max()
        < 3 * torch.linalg.svdvals(step.flatten(1)).min()
    )

    kernel.grad = second.clone()
    length = 0.01 * LENGTH * (16 * 27) ** 0.5
    decayed = kernel.detach() * (1 - length / BOUND)
    muon.step()
    mean = (1 - MOMENTUM) * (MOMENTUM * first + second)
    nesterov = (1 - MOMENTUM) * second + MOMENTUM * mean
    cosine = torch.nn.functional.cosine_similarity(
        (decayed - kernel.detach()).flatten(),
        orthogonalised(nesterov.flatten(1)[None]).flatten(),
        dim=0,
    )
    assert float(cosine) > 0.9999


def test_kernels_do_not_grow_without_bound() -> None:
    torch.manual_seed(3)
    kernel = nn.Parameter(torch.randn(16, 16, 3, 3, 3) / 20)
    _, muon = optimisers([[nn.Parameter(torch.zeros(3)), kernel]], "muon")
    muon.param_groups[0]["lr"] = 0.02
    kernel.grad = torch.randn_like(kernel)  # for ever the same
    for _ in range(300):
        muon.step()
    largest = torch.linalg.svdvals(kernel.detach().flatten(1)).max()
    assert BOUND / 2 < float(largest) < 1.25 * BOUND


def test_kernels_between_maps_are_muons_and_the_rest_adams() -> None:
    network = AnyZ(AnyZConfig(width=8, blocks=1, changes=2))
    adam, muon = optimisers(network.parameter_groups(), "muon")
    taken = {id(p) for p in muon.param_groups[0]["params"]}
    names = {name for name, p in network.named_parameters() if id(p) in taken}
    assert names == {
        f"body.0.{layer}.{part}" for layer in ("first", "second") for part in ("weight", "changes")
    }
    others = {id(p) for p in adam.param_groups[0]["params"]}
    assert not others & taken
    assert len(others) + len(taken) == len(list(network.parameters()))
    assert not joins_maps(network.head.changes)  # one map in


def test_each_of_a_list_of_kernels_steps_by_itself() -> None:
    many = nn.Parameter(torch.zeros(3, 8, 6, 3, 3, 3))
    torch.manual_seed(2)
    many.grad = torch.randn_like(many)
    alone = nn.Parameter(torch.zeros(8, 6, 3, 3, 3))
    alone.grad = 5 * many.grad[1]
    for kernel in (many, alone):
        _, muon = optimisers([[nn.Parameter(torch.zeros(3)), kernel]], "muon")
        muon.param_groups[0]["lr"] = 1.0
        muon.step()
    assert torch.allclose(many[1], alone, atol=1e-5)


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    source = write_em(tmp_path)
    whole = config("niiv", source, tmp_path / "whole", steps=6)
    muon = replace(whole, optimisation=replace(whole.optimisation, optimiser="muon", clip=1.0))
    train(whole)
    train(replace(muon, out=str(tmp_path / "muon")))
    train(replace(muon, out=str(tmp_path / "parts"), steps=3))
    train(replace(muon, out=str(tmp_path / "parts")))
    adam, once, twice = (weights(tmp_path / name) for name in ("whole", "muon", "parts"))
    assert all(torch.equal(once[key], twice[key]) for key in once)
    assert any(not torch.equal(adam[key], once[key]) for key in adam)


def test_unknown_optimisers_are_refused(tmp_path: Path) -> None:
    usual = config("niiv", "unused", tmp_path)
    with pytest.raises(UsageError, match="optimiser 'sgd' is unknown; choose one of adam, muon"):
        replace(usual.optimisation, optimiser="sgd")
