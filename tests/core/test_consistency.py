"""Sections made again of target voxels, by another road: the degradation that training uses."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from isochunk.core.consistency import (
    Consistency,
    add_back,
    compare_sections,
    require_consistent,
    sections_of,
    span_of_sections,
)
from isochunk.core.geometry import Box
from isochunk.errors import ModelError
from isochunk.models.degrade import degrade
from isochunk.models.interpolation import interpolation_spec

ONE = Fraction(1)
FACTORS = [Fraction(4), Fraction(5, 2), Fraction(225, 23)]
KINDS = [("mean", "avg"), ("sample", "skip")]


@pytest.mark.parametrize("factor", FACTORS, ids=str)
@pytest.mark.parametrize(("phase", "degradation"), KINDS)
def test_sections_are_those_that_degradation_makes(factor, phase, degradation) -> None:
    voxels = np.random.default_rng(0).integers(0, 256, (40, 3, 5)).astype(np.uint8)
    count = int(40 // factor)
    wanted = degrade(torch.from_numpy(voxels.astype(np.float32))[None, None], factor, degradation)
    made = sections_of(voxels, 0, range(count), factor, phase)
    np.testing.assert_allclose(made, wanted[0, 0].numpy(), atol=1e-4)
    # A part, which starts on some target voxel of its own, gives the same sections.
    lo, hi = span_of_sections(1, count - 1, factor, phase)
    part = sections_of(voxels[lo:hi], lo, range(1, count - 1), factor, phase)
    np.testing.assert_array_equal(part, made[1:-1])


def test_shifted_sections_lie_between_others() -> None:
    ramp = np.arange(40, dtype=np.float32)[:, None, None]
    made = sections_of(ramp, 0, range(2, 5), Fraction(5), "mean", Fraction(5, 2))
    np.testing.assert_allclose(made.ravel(), [14.5, 19.5, 24.5])


def test_figures_of_boxes_add_up() -> None:
    read = np.zeros((2, 4, 4), np.uint8)
    made = np.zeros((2, 4, 4), np.float32)
    made[1] = 3
    near = compare_sections(made, read, Box((5, 0, 0), (7, 4, 4)))
    far = compare_sections(made + 1, read, Box((9, 0, 0), (11, 4, 4)))
    both = sum((near, far), Consistency())
    assert both.voxels == 64
    assert both.rms == pytest.approx(np.sqrt((0 + 9 + 1 + 16) / 4))
    assert (both.worst_box, both.worst_section) == (Box((9, 0, 0), (11, 4, 4)), 10)
    assert both.worst_section_rms == pytest.approx(4)
    assert both.summary()["worst_box"] == "9:11,0:4,0:4"
    assert Consistency().summary()["rms"] == 0


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_what_was_added_back_is_consistent(kind) -> None:
    rng = np.random.default_rng(1)
    answer = rng.normal(0, 1, (12, 3, 2)).astype(np.float32)
    sections = rng.normal(0, 1, (3, 3, 2)).astype(np.float32)
    if kind == "torch":
        found = add_back(torch.from_numpy(answer), torch.from_numpy(sections), 4).numpy()
    else:
        found = add_back(answer, sections, 4)
    np.testing.assert_allclose(found.reshape(3, 4, 3, 2).mean(1), sections, atol=1e-6)
    detail = answer.reshape(3, 4, 3, 2) - answer.reshape(3, 4, 3, 2).mean(1, keepdims=True)
    kept = found.reshape(3, 4, 3, 2) - sections[:, None]
    np.testing.assert_allclose(kept, detail, atol=1e-6)


@pytest.mark.parametrize(
    ("phase", "factor", "says"),
    [
        ("sample", (Fraction(4), ONE, ONE), "samples"),
        ("mean", (Fraction(5, 2), ONE, ONE), "factor along z is 5/2"),
        ("mean", (ONE, ONE, ONE), "factor along z is 1"),
        ("mean", (Fraction(4), Fraction(2), ONE), "changes y and x too, by 2 and 1"),
    ],
)
def test_what_cannot_be_made_consistent_is_refused(phase, factor, says) -> None:
    require_consistent(interpolation_spec("cubic").for_factor((Fraction(4), ONE, ONE)))
    with pytest.raises(ModelError, match=f"--consistent cannot .* 'cubic': .*{says}.* leave it"):
        require_consistent(interpolation_spec("cubic", phase).for_factor(factor))
