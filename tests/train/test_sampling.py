"""Crops are drawn where detail is lost, and from volumes of unequal size as often as is asked."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import write_source
from trainings import config, weights

from isochunk.core.geometry import Box
from isochunk.core.spec import Intensity
from isochunk.core.synthetic import synthetic_pair
from isochunk.errors import UsageError
from isochunk.storage.open import open_volume
from isochunk.train.augment import Augmentation
from isochunk.train.data import ANY, IN_PLACE, Crops, Sampling, Source, in_room, lost_detail
from isochunk.train.loop import Batches, sampling_of
from isochunk.train.pairs import Sectioned
from isochunk.train.ranks import Ranks
from isochunk.train.training import train

torch.set_num_threads(1)

FACTOR = Fraction(4)
VOLUMES = {"variant": "compact", "width": 4, "levels": 2, "convs": 1, "factor": 4}
PLAIN = Sampling((16, 16, 16), 4, (FACTOR,), ((1, 1, 1),), Augmentation(), 5, (Sectioned("avg"),))


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """Tissue of which the half of low x is blank."""
    _, fine = synthetic_pair((16, 48, 128), 4)
    fine[..., :64] = 128
    return fine


def source(folder: Path, voxels: np.ndarray) -> Source:
    folder.mkdir()
    return Source(open_volume(write_source(f"{folder}/em", voxels, "8,8,8")), Intensity(0.0, 1.0))


def crops(sampling: Sampling, *sources: Source) -> Crops:
    return Crops(sources, tuple(source.volume.spec.box for source in sources), sampling)


def test_of_several_places_the_hardest_is_taken(tissue: np.ndarray, tmp_path: Path) -> None:
    volume = source(tmp_path / "a", tissue)
    found = {}
    for count in (1, 4):
        drawn = crops(replace(PLAIN, hardest_of=count), volume)
        targets = [t for step in range(20) for t in drawn.batch(step).target[:, 0].numpy()]
        found[count] = np.array([lost_detail(target, FACTOR) for target in targets])
    assert np.mean(found[1] == 0) > 0.2
    assert np.mean(found[4] == 0) < 0.1
    assert found[4].mean() > 1.3 * found[1].mean()


def test_detail_is_what_sections_lose() -> None:
    steps = np.repeat(np.arange(6, dtype=np.float32), 4)[:, None, None] * np.ones((1, 5, 5))
    assert lost_detail(steps, FACTOR) == 0
    assert lost_detail(steps[2:], FACTOR) == pytest.approx(0.25)
    assert lost_detail(steps[2:], Fraction(7, 2)) == pytest.approx(0.25)
    assert lost_detail(steps[2:5], Fraction(8)) > 0  # thinner than a section


def test_hard_crops_are_the_same_after_a_resume(tissue: np.ndarray, tmp_path: Path) -> None:
    volume = source(tmp_path / "a", tissue)
    drawn, again = (crops(replace(PLAIN, hardest_of=3), volume) for _ in range(2))
    drawn.batch(0)
    assert torch.equal(drawn.batch(7).target, again.batch(7).target)


@pytest.mark.parametrize(("balance", "share"), [(1.0, 1 / 9), (0.5, 0.26), (0.0, 0.5)])
def test_small_volumes_are_seen_as_often_as_is_asked(
    balance: float, share: float, tmp_path: Path
) -> None:
    small = source(tmp_path / "small", np.full((16, 16, 32), 1, np.uint8))
    large = source(tmp_path / "large", np.full((16, 64, 64), 2, np.uint8))
    drawn = crops(replace(PLAIN, balance=balance, batch=8), small, large)
    seen = torch.cat([drawn.batch(step).target[:, 0, 0, 0, 0] for step in range(60)])
    assert float((seen == 1).float().mean()) == pytest.approx(share, abs=0.08)


def test_two_passes_also_learn_from_sections_as_they_lie_if_there_are_enough() -> None:
    any_axis = replace(PLAIN, patch=(32, 16, 16), orders=ANY)
    enough, few = Box.from_shape((32, 64, 64)), Box.from_shape((31, 64, 64))
    assert in_room(any_axis, [enough, enough]).orders == ANY
    assert {order[0] for order in in_room(any_axis, [enough, few]).orders} == {1, 2}
    assert {
        order[0] for order in in_room(replace(any_axis, averages=((2, 1, 1),)), [enough]).orders
    } == {1, 2}
    assert in_room(replace(any_axis, orders=IN_PLACE), [few]).orders == IN_PLACE
    cube = config(
        "srunet", "unused", Path("out"), mode="self3d", patch=[32, 32, 32], network=VOLUMES
    )
    assert sampling_of(cube).orders == ANY


def test_two_passes_ask_for_recorded_detail_alone_until_the_last_fifth(tmp_path: Path) -> None:
    across = np.random.default_rng(0).integers(0, 255, (1, 64, 64), np.uint8)
    volume = source(tmp_path / "a", np.repeat(across, 48, 0))  # nothing changes along z
    cube = config(
        "srunet",
        volume.volume.spec.url,
        tmp_path / "out",
        mode="self3d",
        patch=[32, 32, 32],
        network=VOLUMES,
        steps=100,
    )
    batches = Batches(cube, (volume,), (volume.volume.spec.box,), Ranks(torch.device("cpu")))

    def along_z(steps: range) -> list[bool]:
        return [
            bool((crop == crop[:, :1]).all()) for step in steps for crop in batches(step).target
        ]

    assert not any(along_z(range(80)))
    assert 0.1 < np.mean(along_z(range(80, 100))) < 0.6


def test_training_takes_both_and_refuses_what_makes_no_sense(
    tissue: np.ndarray, tmp_path: Path
) -> None:
    url = source(tmp_path / "a", np.tile(tissue, (2, 1, 4))).volume.spec.url
    usual = {"mode": "supervised", "factor": 4, "steps": 1}
    plain = config("niiv", url, tmp_path / "plain", **usual)
    hard = config("niiv", url, tmp_path / "hard", hardest_of=4, **usual)
    train(plain)
    train(hard)
    one, other = (weights(tmp_path / name) for name in ("plain", "hard"))
    assert any(not torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(UsageError, match="hardest_of 0 must be at least 1"):
        replace(plain, hardest_of=0)
    with pytest.raises(UsageError, match=r"balance 1.5 must be in 0 <= balance <= 1"):
        replace(plain, balance=1.5)
    with pytest.raises(UsageError, match="pssr restores none; leave it out"):
        config("pssr", url, tmp_path / "pssr", mode="supervised", hardest_of=2)
