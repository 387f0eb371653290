"""Defects of single sections: what they do to the input, how often, and what they spare."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import write_source
from scipy import ndimage
from trainings import config, write_em

from isochunk.core.geometry import Box
from isochunk.core.spec import Intensity
from isochunk.errors import UsageError
from isochunk.models.degrade import degrade
from isochunk.storage.open import open_volume
from isochunk.train.augment import Augmentation, input_noise, turn, vary_intensity
from isochunk.train.crappify import JitteredSections, MissingSections, crappify
from isochunk.train.data import (
    IN_PLACE,
    UPRIGHT,
    Crops,
    Sampling,
    Source,
    read_crop,
    validation_crops,
)
from isochunk.train.defects import (
    BlurredSections,
    FilledSections,
    NoisySections,
    Sometimes,
    UnevenSections,
    defects,
)
from isochunk.train.fingerprint import fingerprint
from isochunk.train.pairs import Sectioned

SHAPE = (40, 64, 64)
ALL = Augmentation(
    gain=0.1, offset=0.5, section_noise=0.3, blur=1.5, jitter=1.0, filled=0.2, blank=0.2
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tissue(sections: int = 300, side: int = 24) -> np.ndarray:
    """Structure that is smooth along all axes, of mean 0 and deviation 1."""
    made = ndimage.gaussian_filter(rng(5).normal(size=(sections, side, side)), 1.5)
    return (made / made.std()).astype(np.float32)


def test_uneven_sections_have_gains_and_offsets_of_their_own() -> None:
    voxels = tissue()
    gains, offsets, shares = [], [], []
    for seed in range(60):
        seen = UnevenSections(0.2, 0.7)(voxels, rng(seed))
        fits = [np.polyfit(v.ravel(), s.ravel(), 1) for v, s in zip(voxels, seen, strict=True)]
        gain, offset = np.transpose(fits)
        np.testing.assert_allclose(
            seen, voxels * gain[:, None, None] + offset[:, None, None], atol=1e-5
        )
        hit = abs(gain - 1) + abs(offset) > 1e-5
        shares.append(hit.mean())
        if hit.sum() > 20:
            gains.append(np.log(gain[hit]).std())
            offsets.append(offset[hit].std())
    # Deviations are uniform up to the largest, and so are the shares of sections.
    for found, largest in ((gains, 0.2), (offsets, 0.7), (shares, 1.0)):
        assert max(found) < 1.25 * largest
        assert np.mean(found) == pytest.approx(largest / 2, rel=0.25)
        assert np.std(found) == pytest.approx(largest / np.sqrt(12), rel=0.3)


def test_sections_are_noisy_each_by_itself() -> None:
    voxels = tissue()
    sigmas = [(NoisySections(0.4)(voxels, rng(s)) - voxels).std((1, 2)) for s in range(40)]
    spared = [float((sigma == 0).mean()) for sigma in sigmas]
    noisy = np.concatenate(sigmas)[np.concatenate(sigmas) > 0]
    assert noisy.max() < 0.45
    assert noisy.mean() == pytest.approx(0.2, rel=0.05)
    assert np.percentile(noisy, 25) == pytest.approx(0.1, rel=0.1)
    assert np.ptp(spared) > 0.8


def test_sections_are_blurred_each_by_itself_and_only_within() -> None:
    voxels = tissue()
    share = voxels.copy()
    seen = BlurredSections(2.0)(voxels, rng(1))
    hit = (seen != voxels).any((1, 2))
    assert 0 < hit.mean() < 1
    ratio = seen.std((1, 2))[hit] / voxels.std((1, 2))[hit]
    assert ratio.max() <= 1
    assert np.ptp(ratio) > 0.3
    # A section does not see those beside it.
    share[::2] = 0
    alone = BlurredSections(2.0)(share, rng(1))
    assert np.array_equal(alone[1::2], seen[1::2])
    np.testing.assert_allclose(seen.mean((1, 2)), voxels.mean((1, 2)), atol=0.05)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.0, 1.0), st.integers(0, 999), st.integers(1, 30))
def test_lost_sections_are_filled_along_z(share: float, seed: int, sections: int) -> None:
    voxels = rng(seed).normal(size=(sections, 3, 3)).astype(np.float32)
    lost = rng(seed).random(sections) < share
    seen = FilledSections(share)(voxels, rng(seed))
    good = np.flatnonzero(~lost)
    if not len(good):
        assert np.array_equal(seen, voxels)
        return
    assert np.array_equal(seen[good], voxels[good])
    for y, x in np.ndindex(3, 3):
        expected = np.interp(np.arange(sections), good, voxels[good, y, x])
        np.testing.assert_allclose(seen[:, y, x], expected, atol=1e-5)


def test_a_defect_that_happens_sometimes_happens_as_often_as_declared() -> None:
    voxels = tissue(4, 4)
    step = Sometimes(NoisySections(1e9), 0.3)
    hits = [not np.array_equal(step(voxels, rng(seed)), voxels) for seed in range(1000)]
    # A share of the sections that is near 0 leaves all four alone: 1/5 of the time.
    assert np.mean(hits) == pytest.approx(0.3 * 0.8, abs=0.04)


def test_those_that_are_zero_draw_nothing() -> None:
    assert defects(Augmentation(0.3, 0.3, 0.1, 5.0, 0.2), -3.0) == ()
    assert defects(Augmentation(jitter=0.7, missing=0.4), -3.0) == (
        JitteredSections(0.7),
        MissingSections(0.4),
    )
    assert not Augmentation(0.3, 0.3, 0.1, 5.0, 0.2, chance=0.5, margin=3).damages
    for name in ("jitter", "missing", "gain", "offset", "section_noise", "blur", "filled", "blank"):
        one = Augmentation(**{name: 0.5})
        assert one.damages
        (step,) = defects(one, -3.0)
        assert defects(replace(one, chance=0.2), -3.0) == (Sometimes(step, 0.2),)
    voxels = tissue(6, 8)
    for step in (UnevenSections(0, 0), NoisySections(0), BlurredSections(0), FilledSections(0)):
        assert np.array_equal(step(voxels, rng()), voxels)


def crops_of(tmp_path, augmentation: Augmentation, orders=IN_PLACE, patch=(16, 16, 16)) -> Crops:
    voxels = rng().integers(1, 255, SHAPE).astype(np.uint8)
    source = Source(open_volume(write_source(f"{tmp_path}/v", voxels)), Intensity(120.0, 60.0))
    pairing = Sectioned("avg", augmentation)
    factors = (Fraction(4),)
    sampling = Sampling(patch, 2, factors, ((1, 1, 1),), augmentation, 3, (pairing,), orders)
    return Crops((source,), (Box.from_shape(SHAPE),), sampling)


def test_crops_without_defects_are_those_of_always(tmp_path) -> None:
    """The draws, one after the other, that trainings had before there were defects."""
    augmentation = Augmentation(0.3, 0.2, 0.1, jitter=0.5, missing=0.3)
    crops = crops_of(tmp_path, augmentation)
    for step in range(4):
        batch = crops.batch(step)
        for place in (0, 1):
            own = np.random.default_rng([3, step, place])
            own.choice(1, p=[1.0]), own.integers(1), own.integers(1)
            lo = tuple(int(own.integers(n - 16 + 1)) for n in SHAPE)
            patch = read_crop(crops.sources[0], lo, (16, 16, 16), (1, 1, 1))
            patch = np.ascontiguousarray(vary_intensity(turn(patch, own), augmentation, own))
            coarse = degrade(torch.from_numpy(patch)[None, None], Fraction(4), "avg")[0, 0].numpy()
            coarse = coarse + input_noise(coarse.shape, augmentation, own)
            coarse = crappify(coarse, (JitteredSections(0.5), MissingSections(0.3)), own)
            assert np.array_equal(batch.target[place, 0].numpy(), patch)
            assert np.array_equal(batch.coarse[place, 0].numpy(), coarse)


@pytest.mark.parametrize(("orders", "patch"), [(IN_PLACE, (16, 16, 16)), (UPRIGHT, (32, 1, 16))])
def test_the_target_is_spared_and_a_margin_is_cut_off(tmp_path, orders, patch) -> None:
    wide = replace(ALL, margin=4)
    plain = crops_of(tmp_path, Augmentation(margin=4), orders, patch)
    crops = Crops(plain.sources, plain.parts, replace(plain.sampling, augmentation=wide))
    changed = []
    for step in range(8):
        good, bad = plain.batch(step), crops.batch(step)
        assert good.target.shape == (2, 1, *patch)
        assert bad.coarse.shape == (2, 1, patch[0] // 4, *patch[1:])
        assert torch.equal(good.target, bad.target)
        torch.testing.assert_close(good.coarse, degrade(good.target, Fraction(4), "avg"))
        changed.append(float((good.coarse != bad.coarse).float().mean()))
        blank = (bad.coarse == -2.0).flatten(3).all(3)  # a stored 0, at mean 120 and deviation 60
        changed.append(float(blank.float().mean()))
    assert min(changed[::2]) > 0.5
    assert 0.1 < np.mean(changed[1::2]) < 0.3


def test_a_margin_brings_in_what_lies_beside_a_slice(tmp_path) -> None:
    """One row of pixels cannot be shifted across itself; with what lies beside it, it can."""
    plain = crops_of(tmp_path, Augmentation(), UPRIGHT, (32, 1, 16))
    across = []
    for margin in (0, 4):
        seen = Augmentation(jitter=1.0, margin=margin)
        batch = Crops(plain.sources, plain.parts, replace(plain.sampling, augmentation=seen)).batch(
            0
        )
        # Of white noise, a shift along the row alone keeps the section's sum but for its ends.
        sums = degrade(batch.target, Fraction(4), "avg").sum((3, 4)), batch.coarse.sum((3, 4))
        across.append(float(np.corrcoef(sums[0].ravel(), sums[1].ravel())[0, 1]))
    assert across[0] > across[1] + 0.1


def test_validation_crops_have_defects_where_asked(tmp_path) -> None:
    plain = crops_of(tmp_path, Augmentation(0.3, 0.3, 0.5))
    alone = replace(ALL, contrast=0.3, noise=0.5, margin=4).defects_alone
    assert alone == replace(ALL, margin=4)
    parts = plain.parts
    clean, damaged, again = (
        validation_crops(
            plain.sources,
            parts,
            replace(plain.sampling, augmentation=a, pairings=(Sectioned("avg", a),)),
            6,
        )
        for a in (Augmentation(margin=4), alone, alone)
    )
    for one, other, third in zip(clean, damaged, again, strict=True):
        assert torch.equal(one.target, other.target)
        assert not torch.equal(one.coarse, other.coarse)
        assert torch.equal(other.coarse, third.coarse)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"blank": 1.5}, "filled, blank and chance of at most 1"),
        ({"chance": -0.5}, "numbers of at least 0"),
        ({"gain": -1.0}, "numbers of at least 0"),
        ({"margin": 2}, "margin is for crops .* mode supervised"),
    ],
)
def test_numbers_that_vary_nothing_are_refused(tmp_path, changes, says) -> None:
    with pytest.raises(UsageError, match=says):
        config("niiv", "a", tmp_path / "out", augmentation=changes)


def test_sections_that_pssr_does_not_make_have_no_defects(tmp_path) -> None:
    for changes in ({"gain": 0.1}, {"filled": 0.1}, {"margin": 2}):
        with pytest.raises(UsageError, match="which pssr does not make"):
            config("pssr", "a", tmp_path / "out", augmentation=changes)


def test_records_of_trainings_without_them_are_as_they_were(tmp_path) -> None:
    """Else a training begun before there were defects could not go on."""
    told = fingerprint(config("niiv", "a", tmp_path / "out", augmentation={"noise": 0.1}))
    assert set(told["augmentation"]) == {
        *("contrast", "brightness", "noise", "rotation", "zoom", "jitter", "missing")
    }
    assert "start" not in told
    damaged = fingerprint(config("niiv", "a", tmp_path / "out", augmentation={"blur": 1.0}))
    assert damaged["augmentation"]["blur"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["a2i", "niiv", "srunet", "fsrcnn"])
def test_every_network_trains_with_them(tmp_path, arch) -> None:
    from isochunk.train.training import train

    table = {
        "augmentation": {
            **{"gain": 0.1, "offset": 0.3, "section_noise": 0.2, "blur": 1.0, "jitter": 0.5},
            **{"filled": 0.1, "blank": 0.1, "chance": 0.5},
        },
        "keeping": {"validate_every": 10, "crops": 4, "save_every": 5, "defects": True},
        "steps": 10,
    }
    report = train(config(arch, write_em(tmp_path), tmp_path / "out", **table))
    assert report.stopped == "finished"
    assert np.isfinite(report.best_psnr)
