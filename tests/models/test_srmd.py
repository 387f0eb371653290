"""What SRMD is told of how sections came about."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from isochunk.errors import ModelError
from isochunk.models.registry import make
from isochunk.models.srmd import SRMDConfig, basis, blur, box_kernel
from isochunk.models.swinir import SwinIRConfig

RATIOS = [Fraction(2), Fraction(5, 2), Fraction(225, 23), Fraction(10)]


def test_kernels_are_means_over_the_thickness() -> None:
    assert box_kernel(3)[9:12] == pytest.approx([1 / 3] * 3)
    assert box_kernel(2.5)[8:13] == pytest.approx([0, 0.3, 0.4, 0.3, 0])
    assert box_kernel(0)[10] == box_kernel(1)[10] == 1
    for width in (0, 1.7, 4, 9.78):
        kernel = box_kernel(width)
        assert kernel.sum() == pytest.approx(1)
        assert np.array_equal(kernel, kernel[::-1])


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_components_hold_all_of_a_kernel(ratio: Fraction) -> None:
    axes = basis(6)
    assert np.allclose(axes @ axes.T, np.eye(6))
    assert np.allclose(axes.T @ blur(ratio, "mean", 6), box_kernel(float(ratio)), atol=1e-6)


def test_what_it_is_told_changes_the_answer() -> None:
    torch.manual_seed(0)
    network = make(SRMDConfig(width=8, layers=4)).eval()
    told = {(r, p): blur(r, p, 6) for r in RATIOS for p in ("mean", "sample")}
    assert len(set(told.values())) == len(RATIOS) + 1, "samples are alike at all ratios"
    x = torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        answers = [network.refine(x, *key) for key in told]
    assert float((answers[0] - answers[2]).abs().max()) > 1e-4
    assert torch.equal(answers[1], answers[3])


@pytest.mark.parametrize(
    "config",
    [
        lambda: SRMDConfig(layers=2),
        lambda: SRMDConfig(noise=-1),
        lambda: SRMDConfig(components=22),
        lambda: SwinIRConfig(window=7),
        lambda: SwinIRConfig(width=10, heads=4),
        lambda: SwinIRConfig(depth=0),
    ],
)
def test_what_cannot_be_built_is_refused(config) -> None:
    with pytest.raises(ModelError, match=r"srmd needs|no 22 components|swinir needs"):
        config()
