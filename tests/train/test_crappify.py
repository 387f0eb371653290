"""Noise, coarse pixels and bad sections: as declared, seeded, and one after the other."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.util import random_noise

from isochunk.errors import UsageError
from isochunk.train.crappify import (
    CRAPPIFIERS,
    Coarser,
    GaussianNoise,
    JitteredSections,
    LocalGaussianNoise,
    MissingSections,
    PoissonNoise,
    SaltAndPepper,
    Sections,
    crappify,
)

pytestmark = pytest.mark.slow

STEPS = [
    GaussianNoise(0.1),
    LocalGaussianNoise(0.05, 3.0),
    PoissonNoise(40.0),
    SaltAndPepper(0.1),
    Coarser(2),
    Sections(Fraction(3, 2)),
    MissingSections(0.3),
    JitteredSections(0.7),
]
CHANCE = [step for step in STEPS if not isinstance(step, Coarser | Sections)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def grey(value: float, shape: tuple[int, int, int] = (40, 64, 64)) -> np.ndarray:
    return np.full(shape, value, np.float32)


def blobs(seed: int = 0, shape: tuple[int, int, int] = (6, 48, 48)) -> np.ndarray:
    smooth = ndimage.gaussian_filter(rng(seed).standard_normal(shape), (0, 2, 2))
    return (0.5 + 0.15 * smooth / smooth.std()).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_steps_are_pure_and_seeded(step):
    voxels = blobs()
    before = voxels.copy()
    once, again = step(voxels, rng(5)), step(voxels, rng(5))
    assert once.dtype == np.float32
    assert np.array_equal(once, again)
    assert np.array_equal(voxels, before)
    assert not np.shares_memory(once, voxels) or np.array_equal(once, voxels)


@pytest.mark.parametrize("step", CHANCE, ids=lambda step: type(step).__name__)
def test_other_seeds_make_other_voxels(step):
    assert not np.array_equal(step(blobs(), rng(1)), step(blobs(), rng(2)))


@settings(deadline=None, max_examples=20)
@given(st.floats(0.35, 0.65), st.floats(0.0, 0.08), st.integers(0, 99))
def test_gaussian_noise_has_its_deviation(value, sigma, seed):
    noise = GaussianNoise(sigma)(grey(value), rng(seed)) - np.float32(value)
    assert noise.std() == pytest.approx(sigma, rel=0.02, abs=1e-6)
    assert noise.mean() == pytest.approx(0, abs=5 * sigma / 400 + 1e-6)  # 400**2 < voxels


@settings(deadline=None, max_examples=20)
@given(st.floats(0.3, 0.7), st.floats(0.0, 0.01), st.integers(0, 99))
def test_local_noise_has_the_variance_of_its_surroundings(value, gain, seed):
    noise = LocalGaussianNoise(gain, 3.0)(grey(value), rng(seed)) - np.float32(value)
    assert noise.var() == pytest.approx(gain * value, rel=0.04, abs=1e-9)


def test_local_noise_follows_the_blurred_section_and_no_other():
    voxels = grey(0.2, (2, 64, 64))
    voxels[0, :, 32:] = 0.8
    seen = [LocalGaussianNoise(0.01, 4.0)(voxels, rng(seed)) for seed in range(400)]
    variance = np.var(seen, 0)
    expected = 0.01 * ndimage.gaussian_filter(voxels, (0, 4, 4), mode="nearest")
    np.testing.assert_allclose(variance.mean(1), expected.mean(1), rtol=0.08)


def test_local_noise_is_that_of_scikit_image():
    # PSSR's own crappifiers call this; the draws differ, the distributions do not.
    section = blobs()[0]
    around = ndimage.gaussian_filter(section, 3, mode="nearest")
    ours = LocalGaussianNoise(0.05, 3.0)(np.broadcast_to(section, (300, 48, 48)), rng())
    theirs = np.stack(
        [
            random_noise(section, "localvar", rng=seed, local_vars=0.05 * around)
            for seed in range(300)
        ]
    )
    np.testing.assert_allclose(ours.mean(), theirs.mean(), rtol=2e-3)
    np.testing.assert_allclose(ours.std(0).mean(), theirs.std(0).mean(), rtol=5e-3)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.1, 0.6), st.floats(50, 500), st.integers(0, 99))
def test_poisson_noise_has_the_variance_of_counts(value, counts, seed):
    seen = PoissonNoise(counts)(grey(value), rng(seed))
    assert seen.mean() == pytest.approx(value, rel=0.01)
    assert seen.var() == pytest.approx(value / counts, rel=0.04)
    steps = seen[seen < 1].astype(np.float64) * counts  # White is where it clips, count or not.
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.001, 0.2), st.integers(0, 99))
def test_salt_and_pepper_are_as_frequent_as_declared(share, seed):
    seen = SaltAndPepper(share)(grey(0.5), rng(seed))
    most = 6 * np.sqrt(share / seen.size)
    assert (seen == 0).mean() == pytest.approx(share, abs=most)
    assert (seen == 1).mean() == pytest.approx(share * (1 - share), abs=most)
    assert set(np.unique(seen)) <= {0.0, 0.5, 1.0}


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_coarser_pixels_lie_in_the_middle_of_the_old(factor):
    voxels = blobs()
    expected = ndimage.zoom(
        voxels, (1, 1 / factor, 1 / factor), order=1, grid_mode=True, mode="nearest"
    )
    np.testing.assert_allclose(Coarser(factor)(voxels, rng()), expected, atol=1e-6)
    ramp = np.broadcast_to(np.arange(48, dtype=np.float32), (1, 48, 48))
    places = Coarser(factor)(ramp, rng())[0, 0]
    np.testing.assert_allclose(places, (np.arange(48 // factor) + 0.5) * factor - 0.5)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.0, 1.0), st.integers(0, 99))
def test_missing_sections_are_lost_whole_and_as_often_as_declared(share, seed):
    voxels = grey(0.7, (2000, 2, 2))
    seen = MissingSections(share, value=0.1)(voxels, rng(seed))
    lost = (seen == np.float32(0.1)).all((1, 2))
    assert (seen[~lost] == np.float32(0.7)).all()
    assert lost.mean() == pytest.approx(share, abs=6 * 0.5 / np.sqrt(2000))


def test_jittered_sections_are_shifted_each_by_itself_and_by_parts_of_pixels():
    y, x = np.mgrid[:64, :64].astype(np.float32)
    wave = 0.5 + 0.4 * np.sin(2 * np.pi * x / 16) * np.cos(2 * np.pi * y / 16)
    seen = JitteredSections(0.8)(np.broadcast_to(wave, (300, 64, 64)), rng(3))
    carrier = np.exp(2j * np.pi * x / 16) * np.exp(2j * np.pi * y / 16)
    phases = np.angle(
        (seen[:, 16:48, 16:48] - 0.5).reshape(300, -1) @ carrier[16:48, 16:48].ravel()
    )
    shifts = (
        (phases - np.angle((wave - 0.5)[16:48, 16:48].ravel() @ carrier[16:48, 16:48].ravel()))
        * 16
        / (2 * np.pi)
    )
    assert shifts.std() == pytest.approx(0.8 * np.sqrt(2), rel=0.15)  # dy + dx
    assert len(np.unique(np.round(shifts, 3))) > 250
    assert seen.std() == pytest.approx(wave.std(), rel=0.01)  # detail is kept


def test_no_jitter_changes_nothing():
    np.testing.assert_allclose(JitteredSections(0.0)(blobs(), rng()), blobs(), atol=1e-5)


@pytest.mark.parametrize("name", CRAPPIFIERS)
def test_crappifiers_make_sections_four_times_coarser(name):
    seen = crappify(blobs(), CRAPPIFIERS[name], rng(7))
    assert seen.shape == (6, 12, 12)
    assert seen.dtype == np.float32
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert np.array_equal(seen, crappify(blobs(), CRAPPIFIERS[name], rng(7)))


def test_steps_happen_in_their_order():
    voxels = blobs()
    steps = (Sections(Fraction(2)), MissingSections(0.5), GaussianNoise(0.05))
    source = rng(1)
    expected = voxels
    for step in steps:
        expected = step(expected, source)
    seen = crappify(voxels, steps, rng(1))
    assert seen.shape == (3, 48, 48)
    assert np.array_equal(seen, expected)
    assert np.array_equal(crappify(voxels, (), rng(1)), voxels)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GaussianNoise(-0.1), "-0.1"),
        (lambda: LocalGaussianNoise(0.1, -1), "blur >= 0"),
        (lambda: PoissonNoise(0), "counts > 0"),
        (lambda: SaltAndPepper(1.5), r"1\.5 is no share of voxels"),
        (lambda: MissingSections(-0.5), "no share of sections"),
        (lambda: JitteredSections(-1), "at least 0"),
        (lambda: Coarser(0), "at least 1"),
        (lambda: Coarser(5)(blobs(), rng()), "crop to 45 x 45"),
        (lambda: Sections(Fraction(7))(blobs(), rng()), r"whole sections of 7"),
    ],
)
def test_what_cannot_be_is_refused(make, said):
    with pytest.raises(UsageError, match=said):
        make()
