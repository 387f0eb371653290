"""Baselines that networks are compared with, on real tissue where it matters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, zoom

from isochunk.core.geometry import Box, Triple
from isochunk.core.voxels import quantise
from isochunk.errors import UsageError
from isochunk.evaluation.baselines import dictionary, siren
from isochunk.evaluation.baselines.dictionary import DictionaryConfig
from isochunk.evaluation.baselines.siren import SirenConfig
from isochunk.evaluation.baselines.stitched import StitchConfig, restore_stitched, seams
from isochunk.evaluation.metrics import psnr
from isochunk.models.pssr import PSSR, PSSRConfig
from isochunk.storage.open import open_volume

pytestmark = pytest.mark.slow

torch.set_num_threads(1)

FACTOR = 4
SMALL = DictionaryConfig(atoms=64, pairs=6000, epochs=1, patch=(8, 8, 8), nonzero=6)


@pytest.fixture(scope="module")
def tissue(shared_data):
    """Read a crop of one of the medulla cubes."""

    def read(cube: int, lo: Triple, shape: Triple) -> np.ndarray:
        url = f"{shared_data}/medulla_fibsem_{cube}.ome.zarr"
        return open_volume(url).read(Box.from_shape(shape, lo))

    return read


def averaged(truth: np.ndarray, factor: int = FACTOR) -> np.ndarray:
    means = truth.reshape(-1, factor, *truth.shape[1:]).mean(1)
    return quantise(means, truth.dtype)


def test_a_dictionary_learned_elsewhere_beats_cubic_on_real_tissue(tissue):
    learned = dictionary.learn(tissue(448, (0, 0, 0), (96, 128, 128)), FACTOR, SMALL)
    assert learned.coarse.shape == (64, 2 * 8 * 8)
    assert learned.fine.shape == (64, 8 * 8 * 8)
    assert np.linalg.norm(learned.coarse, axis=1) == pytest.approx(1, abs=1e-4)
    truth = tissue(250, (100, 100, 100), (64, 48, 48))
    sections = averaged(truth)
    inner = slice(8, -8)
    nothing = replace(learned, fine=np.zeros_like(learned.fine))  # leaves cubic
    found, cubic = (
        psnr(truth[inner], quantise(dictionary.restore(d, sections), truth.dtype)[inner])
        for d in (learned, nothing)
    )
    assert found > cubic + 0.05


def test_a_dictionary_is_a_function_of_crop_and_seed(tissue):
    crop = tissue(448, (0, 0, 0), (32, 48, 48))
    few = replace(SMALL, pairs=800, atoms=16)
    one, same, other = (dictionary.learn(crop, FACTOR, few, seed).fine for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_codes_do_not_depend_on_contrast(tissue):
    crop = tissue(448, (0, 0, 0), (32, 48, 48))
    learned = dictionary.learn(crop, FACTOR, replace(SMALL, pairs=800, atoms=16))
    sections = averaged(crop).astype(np.float32)
    plain = dictionary.restore(learned, sections)
    changed = dictionary.restore(learned, 20 * sections + 1000)
    assert np.allclose(changed, 20 * plain + 1000, atol=0.5)


def test_skipped_sections_are_learned_in_their_own_phase(tissue):
    crop = tissue(448, (0, 0, 0), (64, 64, 64))
    config = replace(SMALL, pairs=2000, atoms=32, degradation="skip")
    learned = dictionary.learn(crop, FACTOR, config)
    restored = dictionary.restore(learned, crop[::FACTOR])
    # Were the phase wrong, known sections would be as far off as those between.
    error = np.abs(restored - crop).mean((1, 2))[8:-8]
    assert error[::FACTOR].mean() < 0.6 * error[2::FACTOR].mean()


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((4, 48, 48), SMALL, "4 voxels along z, but a patch of the dictionary has 8"),
        ((32, 48, 48), replace(SMALL, patch=(6, 8, 8)), "no whole sections of 4"),
        ((32, 48, 48), replace(SMALL, atoms=0), "at least 1"),
        ((32, 48, 48), SMALL, "one value"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(shape, config, message):
    with pytest.raises(UsageError, match=message):
        dictionary.learn(np.full(shape, 7, np.uint8), FACTOR, config)


def test_a_volume_smaller_than_a_patch_is_refused(tissue):
    crop = tissue(448, (0, 0, 0), (32, 48, 48))
    learned = dictionary.learn(crop, FACTOR, replace(SMALL, pairs=800, atoms=16))
    with pytest.raises(UsageError, match="coarse volume has 1 voxels along z"):
        dictionary.restore(learned, crop[:1])


def smooth_slice(n: int = 64) -> np.ndarray:
    """Waves that sections of four pixels still show, 30 to 220."""
    z, x = np.mgrid[:n, :n]
    return 125 + 50 * np.sin(z / 7 + x / 11) + 45 * np.cos(x / 6 - z / 9)


@pytest.mark.parametrize("phase", ["mean", "sample"])
def test_a_siren_continues_a_smooth_slice_between_its_sections(phase):
    # Sections as samples at their centres: a shift of half a section would cost 20 grey levels.
    fine = smooth_slice()
    sections = fine.reshape(-1, FACTOR, 64).mean(1) if phase == "mean" else fine[::FACTOR]
    config = SirenConfig(width=48, layers=2, omega=10.0, lr=1e-3, steps=300)
    restored = siren.restore(sections, FACTOR, phase, config)
    assert restored.shape == fine.shape
    assert np.abs(restored - fine)[4:-4].mean() < 3


def test_a_siren_is_a_function_of_its_seed_and_takes_volumes():
    sections = np.stack([smooth_slice(24)[::FACTOR]] * 3, 1)
    config = SirenConfig(width=16, layers=1, steps=5, batch=100)
    one, same, other = (siren.restore(sections, FACTOR, "mean", config, s) for s in (1, 1, 2))
    assert one.shape == (24, 3, 24)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    with pytest.raises(UsageError, match="voxels that differ"):
        siren.restore(np.zeros((4, 4)), FACTOR)


def interpolate(frames: np.ndarray) -> np.ndarray:
    """Four times finer by splines; looks a few pixels around, as a network with a small halo."""
    return zoom(frames[0], 4, order=1, grid_mode=True, mode="nearest")


def blur(frames: np.ndarray) -> np.ndarray:
    """Look far: half of the answer comes from twelve pixels away."""
    return gaussian_filter(interpolate(frames), 48, mode="constant")


@dataclass
class SeamError:
    """How far a stitched section is from the one restored whole: root mean squares, and most."""

    at_seams: float
    elsewhere: float
    largest: float


def seam_error(sharpen, section: np.ndarray, config: StitchConfig) -> SeamError:
    error = np.abs(restore_stitched(sharpen, section, 4, config) - sharpen(section))
    rows, columns = seams(section.shape[1:], 4, config)
    near = np.zeros(error.shape, bool)
    for row in rows:
        near[row - config.reach : row + config.reach] = True
    for column in columns:
        near[:, column - config.reach : column + config.reach] = True
    at_seams, elsewhere = (
        np.sqrt((e**2).sum() / max(1, e.size)) for e in (error[near], error[~near])
    )
    return SeamError(at_seams, elsewhere, error.max())


def test_tiles_that_overlap_by_more_than_is_looked_at_join_exactly(tissue):
    section = tissue(448, (10, 0, 0), (1, 150, 170)).astype(np.float32)
    config = StitchConfig(tile=256, sigma=0)
    assert seam_error(interpolate, section, config).largest == 0
    rows, columns = seams((150, 170), 4, config)
    assert rows == columns == [4 * 63, 4 * 125]


def test_blurred_seams_cost_what_the_blur_takes_away(tissue):
    section = tissue(448, (10, 0, 0), (1, 150, 170)).astype(np.float32)
    config = StitchConfig(tile=256)
    error = seam_error(interpolate, section, config)
    assert error.elsewhere == 0
    assert 0.2 < error.at_seams < 5
    joined = restore_stitched(interpolate, section, 4, config)
    strip = slice(63 * 4 - 5, 63 * 4 + 5)
    whole = interpolate(section)
    assert np.array_equal(joined[: strip.start, : strip.start], whole[: strip.start, : strip.start])
    by_hand = gaussian_filter(whole[:, strip], 1, mode="nearest")
    free = slice(0, 63 * 4 - 5)  # no row of seams crosses there
    assert np.allclose(joined[free, strip], by_hand[free], atol=1e-3)


def test_tiles_that_see_less_than_the_whole_differ_far_from_seams():
    section = np.random.default_rng(0).normal(100, 30, (1, 150, 170)).astype(np.float32)
    error = seam_error(blur, section, StitchConfig(tile=256))
    assert error.at_seams > 5
    assert error.elsewhere > 1


def test_pssr_stitched_as_its_authors_do_has_seams_that_a_halo_does_not_have(tissue):
    torch.manual_seed(0)
    network = PSSR(PSSRConfig(width=8, depths=(1, 1, 1, 1))).eval()

    def sharpen(frames: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network.sharpen(torch.from_numpy(frames / 255)[None])[0, 0].numpy()

    section = tissue(448, (10, 0, 0), (1, 128, 128)).astype(np.float32)
    error = seam_error(sharpen, section, StitchConfig(tile=256))
    spread = sharpen(section).std()
    assert error.at_seams > 0.01 * spread
    assert error.largest > error.at_seams > 0


def test_one_tile_is_the_section_itself(tissue):
    section = tissue(448, (10, 0, 0), (1, 32, 32)).astype(np.float32)
    config = StitchConfig(tile=128)
    assert seams((32, 32), 4, config) == ([], [])
    assert seam_error(interpolate, section, config).largest == 0


def test_tiles_that_are_all_overlap_are_refused():
    with pytest.raises(UsageError, match="larger tile"):
        seams((64, 64), 4, StitchConfig(tile=64, overlap=1.0))
