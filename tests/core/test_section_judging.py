"""Damage made on purpose is found, and nothing else is: the table of docs/real-volumes.md."""

from __future__ import annotations

from pathlib import Path

import inspect_sections
import numpy as np
import pytest
from inspect_sections import EVERY, KINDS, Kind, clipped, judge, medulla, profiled, score

from isochunk.core.geometry import Box
from isochunk.core.section_judging import Findings
from isochunk.core.section_profile import SectionProfile
from isochunk.core.synthetic import synthetic_pair
from isochunk.storage.open import open_volume

LEAST = {
    "a wedge of a quarter replaced": 0.6,
    "two in a row replaced": 0.6,
    "gain 0.92, around the mean": 0.0,
    "gain 0.85, around the mean": 0.5,
    "8 grey levels brighter": 0.5,
    "displaced by 1 pixel": 0.0,
    "displaced by 2 pixels": 0.0,
    "first: a wedge of a half replaced": 0.0,  # the other half agrees, and there is one neighbour
    "last: a wedge of a half replaced": 0.0,
    "first: 12 grey levels brighter": 0.0,
    "last: 12 grey levels brighter": 0.0,
}
"""Share of hits in the smaller cube; of the other kinds every one is found."""


@pytest.fixture(scope="session")
def cube(shared_data: Path) -> np.ndarray:
    """62 sections of 250 x 250 pixels, means of four."""
    return medulla(250)


@pytest.fixture(scope="session")
def clean(cube: np.ndarray) -> tuple[SectionProfile, ...]:
    """Its profiles."""
    return profiled(cube)


@pytest.fixture(scope="session")
def synthetic() -> np.ndarray:
    """Tissue that is there without the real volumes."""
    return synthetic_pair((30, 224, 224), 4, seed=3)[0]


def named(found: Findings) -> list[object]:
    return [*found.lost, *found.corrected, *found.shifts]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damage_to_real_tissue(
    cube: np.ndarray, clean: tuple[SectionProfile, ...], kind: Kind
) -> None:
    found = score(kind, cube, clean)
    assert found.damaged >= (6 if kind.place == "inside" else 1)
    assert found.hits >= LEAST.get(kind.name, 1.0) * found.damaged
    assert found.false_alarms == 0
    if kind.name.startswith(("blur", "noise")):  # no gain mends them
        assert found.otherwise == 0


EVIDENT = [
    kind
    for kind in KINDS
    if kind.name.startswith(("blank", "saturated", "half", "changed", "12 grey", "displaced by 4"))
]


@pytest.mark.parametrize("kind", EVIDENT, ids=lambda kind: kind.name)
def test_damage_to_synthetic_tissue(synthetic: np.ndarray, kind: Kind) -> None:
    found = score(kind, synthetic, profiled(synthetic))
    assert (found.hits, found.false_alarms) == (found.damaged, 0)


def test_two_in_a_row_where_sections_three_apart_agree(shared_data: Path) -> None:
    volume = open_volume(f"{shared_data}/medulla_fibsem_250.ome.zarr")
    native = volume.read(Box.from_shape((60, 160, 160)))
    (kind,) = (kind for kind in KINDS if kind.name == "two in a row replaced")
    places = range(inspect_sections.FIRST, 56, 2 * EVERY)
    for z in places:
        kind.damage(native, z, np.random.default_rng(0))
    found = judge(native, 1)
    assert {s.z for s in found.lost} == {z + i for z in places for i in range(2)}


@pytest.mark.parametrize("name", ["medulla_fibsem_250", "medulla_fibsem_448"])
@pytest.mark.parametrize("how", ["avg", "skip", "native"])
def test_nothing_is_found_in_clean_cubes(shared_data: Path, name: str, how: str) -> None:
    volume = open_volume(f"{shared_data}/{name}.ome.zarr")
    deep, wide = (90, 160) if how == "native" else (248, 250)
    lo = volume.spec.box.lo
    voxels = volume.read(Box.from_shape((deep, wide, wide), lo))
    if how == "avg":
        voxels = clipped(voxels.reshape(-1, 4, wide, wide).mean(1))
    elif how == "skip":
        voxels = voxels[::4]
    assert named(judge(voxels, 1 if how == "native" else 4)) == []


def test_nothing_is_found_in_synthetic_tissue(synthetic: np.ndarray) -> None:
    assert named(judge(synthetic)) == []


def test_no_lost_section_is_invented_in_real_serial_sections(shared_data: Path) -> None:
    volume = open_volume(f"{shared_data}/vnc_sstem")
    assert judge(volume.read(volume.spec.box), 10).lost == ()


def test_padding_is_neither_lost_nor_a_measure(cube: np.ndarray) -> None:
    """Tissue that fills a slanted tenth of the volume, and no section at its ends."""
    rows, columns = np.mgrid[: cube.shape[1], : cube.shape[2]]
    padded = cube.copy()
    for z, section in enumerate(padded):
        section[(rows + 2 * z > 200) | (columns > 110)] = 0
    padded[:5] = 0
    padded[55:] = 0
    assert np.mean(padded > 0) < 0.25
    clean = judge(padded)
    assert named(clean) == []
    assert clean.padding == (*range(5), *range(55, 62))
    padded[30] = 0
    padded[20][padded[20] > 0] = 140
    found = judge(padded)
    assert [(s.z, s.why) for s in found.lost] == [(20, "one grey level"), (30, "100% black")]
    assert named(found) == list(found.lost)


def test_a_correction_gives_the_contrast_beside_it(cube: np.ndarray) -> None:
    changed = cube.copy()
    changed[30] = clipped((cube[30] - 130.0) * 0.8 + 150)
    (section,) = judge(changed).corrected
    assert section.z == 30
    mended = section.gain * changed[30] + section.offset
    beside = cube[[28, 29, 31, 32]]
    assert mended.mean() == pytest.approx(beside.mean(), abs=2.5)
    assert mended.std() == pytest.approx(beside.std(), rel=0.05)
    assert section.why.startswith("contrast: mean 149 beside 130")


def test_too_few_sections_tell_nothing_but_blank_ones(cube: np.ndarray) -> None:
    few = cube[:4].copy()
    few[2] = 0
    found = judge(few)
    assert [s.z for s in found.lost] == [2]
    assert named(found) == list(found.lost)
    assert judge(np.zeros((3, 64, 64), np.uint8)) == Findings((), (), (), (0, 1, 2))


def test_blank_ends_that_are_not_black_are_lost(cube: np.ndarray) -> None:
    """Volumes are padded with 0; a saturated or painted section at an end was recorded."""
    ends = cube[:30].copy()
    ends[:2] = 255
    ends[29] = 0
    found = judge(ends)
    assert [(s.z, s.why) for s in found.lost] == [(0, "100% saturated"), (1, "100% saturated")]
    assert found.padding == (29,)
    ends[2] = 255
    assert judge(ends).padding == (0, 1, 2, 29)
    assert judge(ends).lost == ()


def test_two_foreign_sections_at_an_end(cube: np.ndarray) -> None:
    ends = cube[:30].copy()
    ends[28], ends[29] = np.rot90(ends[28]), np.rot90(ends[29], 2)
    assert [s.z for s in judge(ends).lost] == [28, 29]


def test_the_ends_of_parts_of_clean_tissue_are_clean(cube: np.ndarray) -> None:
    """Each section is the first or the last of some part."""
    for start in range(0, 50, 2):
        assert named(judge(cube[start : start + 12, :200, :200])) == []


def test_tissue_may_taper_to_an_end(cube: np.ndarray) -> None:
    taper = cube[:20].copy()
    for z in range(6):
        taper[z, : 30 * (6 - z)] = 0
    assert judge(taper).lost == ()
    taper[19, :125] = 0
    assert [s.z for s in judge(taper).lost] == [19]


def test_sections_that_agree_over_any_distance_have_not_changed_places() -> None:
    """Structures are the same in all of them, and noise decides which agree better."""
    rng = np.random.default_rng(0)
    structures = synthetic_pair((1, 128, 128), 4, seed=3)[0].astype(float)
    stack = clipped(structures + rng.normal(0, 25, (120, 128, 128)))
    assert judge(stack, 2).lost == ()


def test_changed_places_are_told_with_the_other(cube: np.ndarray) -> None:
    swapped = cube.copy()
    swapped[[20, 21]] = swapped[[21, 20]]
    assert [(s.z, s.why) for s in judge(swapped).lost] == [
        (20, "seems to have changed places with section 21"),
        (21, "seems to have changed places with section 20"),
    ]
