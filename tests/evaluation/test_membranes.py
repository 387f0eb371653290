"""Membranes along the axis that was made up: where they fade, and where they are misplaced."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from isochunk.core.geometry import Box
from isochunk.errors import UsageError
from isochunk.evaluation.ground_truth import degrade_voxels
from isochunk.evaluation.membranes import (
    across,
    membrane_figures,
    membrane_isotropy,
    response,
    responses,
)
from isochunk.storage.open import open_volume


def line(width: float = 3, slope: float = 0.5) -> np.ndarray:
    """A dark line across a grey plane."""
    y, x = np.mgrid[:60, :80]
    distance = (y - 10 - slope * x) / np.hypot(1, slope)
    return (180 - 100 * np.exp(-0.5 * (distance / (width / 2)) ** 2)).astype(np.uint8)


@pytest.fixture(scope="module")
def tissue(shared_data: Path) -> np.ndarray:
    return open_volume(str(shared_data / "medulla_fibsem_250.ome.zarr")).read(
        Box((60, 60, 60), (140, 140, 140))
    )


@pytest.mark.parametrize("slope", [0.0, 0.5, 2.0])
def test_a_dark_line_answers_whatever_its_direction(slope: float) -> None:
    plane = line(slope=slope)
    found = response(plane)
    ridge = plane == plane.min()
    assert found[ridge].min() > 8
    assert found[plane == plane.max()].max() < 1
    assert response(255 - plane)[ridge].max() < 1, "a bright line is none"
    assert not response(np.full((20, 20), 7, np.uint8)).any()


def test_response_does_not_depend_on_the_plane_it_is_seen_in(tissue: np.ndarray) -> None:
    turned = np.ascontiguousarray(tissue.transpose(2, 0, 1))
    same = [np.sort(responses(tissue, ("xy",))), np.sort(responses(turned, ("xz",)))]
    assert np.allclose(*same, atol=1e-4)
    assert across("z") == ("xz", "yz")
    assert across("x") == ("xy", "xz")


def test_membranes_fade_where_sections_are_thick(tissue: np.ndarray) -> None:
    same = membrane_figures(tissue, tissue, "z")
    assert (same.strength, same.dice) == (1.0, 1.0)
    one = Fraction(1)
    faded = []
    for factor in (2, 4, 8):
        sections = degrade_voxels(tissue, (Fraction(factor), one, one), "avg")
        repeated = sections.repeat(factor, 0)
        smooth = ndimage.gaussian_filter1d(repeated.astype(np.float32), factor / 2, 0)
        figures = membrane_figures(tissue, smooth, "z")
        faded.append((figures.strength, figures.dice, membrane_isotropy(smooth)))
    for before, after in pairwise(faded):
        assert all(a < b for a, b in zip(after, before, strict=True))
    assert faded[-1][0] < 0.7
    isotropy = membrane_isotropy(tissue)
    assert isotropy is not None
    assert 0.8 < isotropy < 1.25
    assert faded[-1][2] < isotropy - 0.2


def test_membranes_in_the_wrong_place_do_not_overlap(tissue: np.ndarray) -> None:
    moved = membrane_figures(tissue, np.roll(tissue, 20, 0), "z")
    assert moved.strength == pytest.approx(1, abs=0.1)
    assert moved.dice < 0.4


def test_nothing_to_see_is_no_error() -> None:
    flat = np.full((12, 12, 12), 90, np.uint8)
    assert membrane_isotropy(flat) is None
    figures = membrane_figures(flat, flat, "z")
    assert (figures.strength, figures.dice) == (1.0, 1.0)
    with pytest.raises(UsageError, match="one shape"):
        membrane_figures(flat, flat[1:], "z")
