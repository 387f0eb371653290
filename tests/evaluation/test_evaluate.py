"""Evaluations: interpolations by hand, the shipped network on real tissue."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from jobs import write_source
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from isochunk.core.degradation import PHASES
from isochunk.core.geometry import Box
from isochunk.errors import GeometryError, ModelError, UsageError
from isochunk.evaluation import ground_truth
from isochunk.evaluation.baselines import published
from isochunk.evaluation.config import EvaluateConfig
from isochunk.evaluation.evaluate import evaluate
from isochunk.evaluation.ground_truth import (
    ArrayVolume,
    averaged,
    choose_region,
    degrade_voxels,
    degraded_spec,
)
from isochunk.evaluation.metrics import psnr
from isochunk.evaluation.restore import predict_volume
from isochunk.evaluation.results import ModelFigures
from isochunk.models.a2i import A2IConfig
from isochunk.models.checkpoint import Card, save
from isochunk.models.interpolation import Interpolation, interpolation_spec
from isochunk.models.load import Runtime, load
from isochunk.models.niiv import NIIVConfig
from isochunk.models.pssr import PSSRConfig
from isochunk.models.registry import make
from isochunk.planning.intensity import measure_intensity
from isochunk.storage.access import Access
from isochunk.storage.open import open_volume

torch.set_num_threads(1)

SHIPPED = "fsrcnn-z4"


def ramp(depth: int) -> np.ndarray:
    """Two grey levels more with every z."""
    z = np.arange(depth, dtype=np.uint8)[:, None, None] * 2
    return np.broadcast_to(z + 10, (depth, 16, 16)).copy()


def texture(shape=(48, 24, 28), seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[tuple(map(slice, shape))]
    waves = 40 * np.sin(z / 3 + y / 5) + 30 * np.cos(x / 4 - z / 7)
    return np.clip(128 + waves + rng.normal(0, 4, shape), 0, 255).astype(np.uint8)


def figures(config: EvaluateConfig) -> dict[str, ModelFigures]:
    return {row.model: row for row in evaluate(config).figures}


def test_access_reaches_every_volume_that_is_opened(tmp_path, monkeypatch):
    opened = []

    def record(url, access):
        opened.append((url, access))
        return open_volume(url, access)

    monkeypatch.setattr("isochunk.engine.windowed.open_volume", record)
    monkeypatch.setattr("isochunk.evaluation.restore.open_volume", record)
    truth, made, other = (
        write_source(f"{tmp_path}/{name}", ramp(48), "10,10,10") for name in "abc"
    )
    access = Access(timeout_s=30)
    evaluate(EvaluateConfig(truth, predictions=(made,), learn_from=other), access)
    assert sorted(opened) == [(url, access) for url in sorted((truth, made, other))]


@pytest.mark.parametrize(("degradation", "planes"), [("avg", 48 - 16), ("skip", 45 - 16)])
def test_a_ramp_is_restored_exactly_in_the_right_phase(tmp_path, degradation, planes):
    # Half a voxel of misregistration would be off by a grey level everywhere.
    truth = write_source(f"{tmp_path}/ramp", ramp(48), "10,10,10")
    found = figures(EvaluateConfig(truth, degradation=degradation))
    assert list(found) == ["nearest", "linear", "cubic"]
    for name in ("linear", "cubic"):
        psnr = found[name].psnr
        assert psnr > 50 if degradation == "avg" else psnr == np.inf
        assert found[name].voxels == planes * 16 * 16
    assert found["nearest"].psnr < 50


def test_figures_are_those_of_the_rounded_prediction_without_the_edges(tmp_path):
    voxels = texture()
    truth = write_source(f"{tmp_path}/texture", voxels, "10,10,10")
    sections = np.rint(voxels.reshape(12, 4, 24, 28).mean(1)).astype(np.uint8)
    index = np.arange(48)
    centre = (index + 0.5) / 4 - 0.5
    below = np.floor(centre).astype(int)
    weight = (centre - below)[:, None, None]
    low, high = (sections[np.clip(below + i, 0, 11)] for i in (0, 1))
    linear = np.rint(low * (1 - weight) + high * weight)
    expected = peak_signal_noise_ratio(voxels[8:-8], linear[8:-8], data_range=255)
    assert figures(EvaluateConfig(truth))["linear"].psnr == pytest.approx(expected, abs=0.01)


def test_models_are_evaluated_once_more_made_consistent(tmp_path):
    truth = write_source(f"{tmp_path}/texture", texture(), "10,10,10")
    found = figures(EvaluateConfig(truth, consistent=True))
    assert list(found)[3:] == ["linear consistent", "cubic consistent"]
    assert found["cubic consistent"].psnr > found["cubic"].psnr + 0.1
    for changes in ({"factor": Fraction(5, 2)}, {"degradation": "skip"}):
        with pytest.raises(ModelError, match="--consistent cannot be done with model 'nearest'"):
            evaluate(replace(EvaluateConfig(truth, consistent=True), **changes))


def test_degraded_voxels_are_rounded_means():
    voxels = texture((20, 6, 5))
    for factor in (1, 2, 5):
        expected = np.rint(voxels.reshape(-1, factor, 6, 5).mean(1))
        along_z = (Fraction(factor), Fraction(1), Fraction(1))
        assert np.array_equal(degrade_voxels(voxels, along_z, "avg"), expected)
        assert np.array_equal(degrade_voxels(voxels, along_z, "skip"), voxels[::factor])


def test_lateral_voxels_are_means_of_squares(monkeypatch):
    voxels = texture((5, 12, 8))
    lateral = (Fraction(1), Fraction(4), Fraction(4))
    expected = np.rint(voxels.reshape(5, 3, 4, 2, 4).mean((2, 4)))
    assert np.array_equal(degrade_voxels(voxels, lateral, "avg"), expected)
    assert np.array_equal(degrade_voxels(voxels, lateral, "skip"), voxels[:, ::4, ::4])
    monkeypatch.setattr(ground_truth, "SLAB_VOXELS", 200)  # two sections at a time
    assert np.array_equal(degrade_voxels(voxels, lateral, "avg"), expected)


def test_rational_sections_are_means_over_their_thickness():
    voxels = texture((48, 6, 5))
    factor = Fraction(225, 23)
    sections = degrade_voxels(voxels, (factor, Fraction(1), Fraction(1)), "avg")
    # 23 parts of a voxel each: then sections are whole numbers of parts.
    fine = voxels.astype(np.float64).repeat(23, axis=0)[: 4 * 225].reshape(4, 225, 6, 5)
    assert np.abs(sections - fine.mean(1)).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("factor", [Fraction(4), Fraction(5, 2)])
def test_large_volumes_are_degraded_like_small_ones(monkeypatch, factor):
    voxels = texture((40, 9, 7))
    along_z = (factor, Fraction(1), Fraction(1))
    whole = degrade_voxels(voxels, along_z, "avg")
    monkeypatch.setattr(ground_truth, "SLAB_VOXELS", 600)
    assert np.array_equal(degrade_voxels(voxels, along_z, "avg"), whole)


def test_sixteen_bits_keep_their_precision(tmp_path):
    voxels = texture().astype(np.uint16) * 257
    wide = write_source(f"{tmp_path}/wide", voxels, "10,10,10")
    narrow = write_source(f"{tmp_path}/narrow", texture(), "10,10,10")
    a, b = figures(EvaluateConfig(wide))["cubic"], figures(EvaluateConfig(narrow))["cubic"]
    assert a.psnr == pytest.approx(b.psnr, abs=0.05)  # only the rounding differs
    assert a.ssim == pytest.approx(b.ssim, abs=0.001)


def test_blocks_do_not_change_the_answer(tmp_path):
    voxels = texture()
    spec = open_volume(write_source(f"{tmp_path}/texture", voxels, "10,10,10")).spec
    factor = (Fraction(4), Fraction(1), Fraction(1))
    sections = degrade_voxels(voxels, factor, "avg")
    source = ArrayVolume(degraded_spec(spec, spec.box, factor), sections)
    for phase in ("mean", "sample"):
        for name in ("nearest", "linear", "cubic"):
            predictor = Interpolation(interpolation_spec(name, phase).for_factor(factor))
            whole = predict_volume(predictor, source, (64, 64, 64))
            assert np.array_equal(whole, predict_volume(predictor, source, (5, 7, 28)))


def test_a_box_is_evaluated_where_it_lies(tmp_path):
    voxels = texture((60, 30, 30))
    whole = write_source(f"{tmp_path}/whole", voxels, "10,10,10")
    cut = write_source(f"{tmp_path}/cut", voxels[8:56, 3:23, 5:27].copy(), "10,10,10")
    boxed = evaluate(EvaluateConfig(whole, box=Box((8, 3, 5), (57, 23, 27))))
    same = evaluate(EvaluateConfig(cut))
    assert boxed.compared == Box((16, 3, 5), (48, 23, 27))
    assert boxed.left_out == "along z the first 8 and the last 9 voxels"  # one is no section
    for a, b in zip(boxed.figures, same.figures, strict=True):
        assert replace(a, seconds=0) == replace(b, seconds=0)


def test_summary_has_the_promised_keys_and_is_json(tmp_path):
    truth = write_source(f"{tmp_path}/ramp", ramp(48), "10,10,10")
    config = EvaluateConfig(truth, degradation="skip", report=f"{tmp_path}/report")
    told = json.loads(json.dumps(evaluate(config).summary(), allow_nan=False))
    keys = ["model", "psnr", "ssim", "wpsnr", "cf_psnr", "voxels", "seconds"]
    keys += ["frc_nm", "frc_along_nm", "fsc_nm", "rse", "rsp"]
    keys += ["over_cubic", "over_cubic_low", "over_cubic_high", "membranes", "membrane_dice", "snr"]
    assert [list(row) for row in told["rows"]] == [keys] * 3
    assert told["rows"][1]["psnr"] is None  # nothing differs: no finite figure
    assert (told["factor"], told["axes"]) == (4, "z")
    written = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert [row["model"] for row in written["rows"]] == ["nearest", "linear", "cubic"]
    assert {len(v) for v in written["curves"]["cf_psnr"]["models"].values()} == {64}
    assert "| cubic |" in (tmp_path / "report" / "evaluation.md").read_text()


def test_figures_by_orientation(tmp_path):
    voxels = texture()
    told = evaluate(EvaluateConfig(write_source(f"{tmp_path}/t", voxels, "10,10,10"))).summary()
    nearest = [row for row in told["planes"] if row["model"] == "nearest"]
    assert [row["plane"] for row in nearest] == ["xy", "xz", "yz", "3d"]
    sections = np.rint(voxels.reshape(12, 4, 24, 28).mean(1)).repeat(4, 0)[8:-8].astype(np.uint8)
    for axis, row in enumerate(nearest[:3]):
        a, b = (np.moveaxis(v, axis, 0) for v in (voxels[8:-8], sections))
        planes = list(zip(a, b, strict=True))
        psnrs = [peak_signal_noise_ratio(p, q, data_range=255) for p, q in planes]
        ssims = [
            structural_similarity(
                p, q, data_range=255, gaussian_weights=True, use_sample_covariance=False
            )
            for p, q in planes
        ]
        assert row["psnr"] == pytest.approx(np.mean(psnrs), abs=1e-6)
        assert row["ssim"] == pytest.approx(np.mean(ssims), abs=1e-6)
    assert nearest[1]["ssim"] == told["rows"][0]["ssim"]
    assert nearest[3]["psnr"] == told["rows"][0]["psnr"]


def test_rational_factors(tmp_path):
    # Seven sections of 9.78 voxels cover 68, of which all but two at either end compare.
    truth = write_source(f"{tmp_path}/ramp", ramp(70), "4.6,4.6,4.6")
    found = evaluate(EvaluateConfig(truth, factor=Fraction(225, 23)))
    assert found.compared == Box((20, 0, 0), (48, 16, 16))
    assert found.left_out == "along z the first 20 and the last 22 voxels"
    assert found.summary()["factor"] == "225/23"
    nearest, linear, cubic = (row.psnr for row in found.figures)
    assert min(linear, cubic) > 50 > nearest + 15


def test_truth_averaged_first_is_a_truth(tmp_path):
    voxels = texture((97, 30, 29))
    truth = write_source(f"{tmp_path}/fine", voxels, "10,10,10")
    coarse = np.rint(voxels[:96, :, :28].reshape(48, 2, 15, 2, 14, 2).mean((1, 3, 5), np.float32))
    same = write_source(f"{tmp_path}/coarse", coarse.astype(np.uint8), "20,20,20")
    fine = EvaluateConfig(truth, average=(2, 2, 2))
    a, b = evaluate(fine), evaluate(EvaluateConfig(same))
    assert a.spacing_nm == b.spacing_nm == "20,20,20"
    assert [replace(r, seconds=0) for r in a.figures] == [replace(r, seconds=0) for r in b.figures]
    part = averaged(open_volume(truth), (2, 2, 2)).read(Box((1, 2, 3), (9, 8, 7)))
    assert np.array_equal(part, coarse[1:9, 2:8, 3:7])


def test_a_prediction_that_exists_is_evaluated_beside_the_others(tmp_path):
    voxels = texture()
    truth = write_source(f"{tmp_path}/truth", voxels, "10,10,10")
    made = voxels.copy()
    made[20] += 10
    made[0] = 0  # at the rim, so left out
    url = write_source(f"{tmp_path}/made", made, "10,10,10")
    found = figures(EvaluateConfig(truth, predictions=(url,)))
    assert list(found) == ["nearest", "linear", "cubic", url]
    assert found[url].psnr == pytest.approx(psnr(voxels[8:-8], made[8:-8]))


def test_a_result_of_whole_sections_is_evaluated_in_a_box(tmp_path):
    # A run on 12 sections gives 48 voxels where the truth has 50.
    voxels = texture((50, 24, 28))
    truth = write_source(f"{tmp_path}/truth", voxels, "10,10,10")
    url = write_source(f"{tmp_path}/made", voxels[:48].copy(), "10,10,10")
    config = EvaluateConfig(truth, predictions=(url,), report=f"{tmp_path}/report")
    with pytest.raises(
        UsageError, match=r"shape \(48, 24, 28\).*--box 0:48,0:24,0:28 is what both"
    ):
        evaluate(config)
    assert not (tmp_path / "report").exists()
    found = figures(replace(config, box=Box((0, 0, 0), (48, 24, 28)), report=None))
    assert found[url].psnr == np.inf


@pytest.mark.parametrize(
    ("spacing", "dtype", "offset"),
    [
        ("10,10,9", "uint8", (0, 0, 0)),
        ("10,10,10", "uint16", (0, 0, 0)),
        ("10,10,10", "uint8", (0, 4, 0)),
    ],
)
def test_predictions_on_another_grid_are_refused(tmp_path, spacing, dtype, offset):
    truth = write_source(f"{tmp_path}/truth", texture(), "10,10,10")
    url = write_source(f"{tmp_path}/made", texture().astype(dtype), spacing, offset)
    with pytest.raises(UsageError, match=f"prediction {url} has"):
        evaluate(EvaluateConfig(truth, predictions=(url,)))


def test_signal_to_noise_against_a_background(tmp_path):
    voxels = texture()
    voxels[16:20, :, :4] = np.tile([20, 24], 192).reshape(4, 24, 4)
    truth = write_source(f"{tmp_path}/truth", voxels, "10,10,10")
    url = write_source(f"{tmp_path}/made", voxels, "10,10,10")
    config = EvaluateConfig(truth, predictions=(url,), background=Box((16, 0, 0), (20, 24, 4)))
    assert figures(config)[url].snr == pytest.approx((voxels[8:-8].max() - 22) / 2)
    with pytest.raises(UsageError, match=r"background .* must hold voxels and lie inside"):
        evaluate(replace(config, background=Box((0, 0, 0), (20, 24, 4))))


@pytest.mark.slow
def test_published_methods_are_fitted_on_the_spot(tmp_path, monkeypatch):
    small = replace(published.DICTIONARY_CONFIG, atoms=16, nonzero=4, pairs=1000, epochs=1)
    monkeypatch.setattr(published, "DICTIONARY_CONFIG", small)
    quick = replace(published.SIREN_CONFIG, width=32, layers=1, steps=60, lr=1e-3)
    monkeypatch.setattr(published, "SIREN_CONFIG", quick)
    truth = write_source(f"{tmp_path}/truth", texture(seed=1), "10,10,10")
    other = write_source(f"{tmp_path}/other", texture((64, 40, 40), seed=2), "10,10,10")
    config = EvaluateConfig(truth, references=("dictionary", "siren"), learn_from=other)
    found = figures(config)
    assert list(found) == ["nearest", "linear", "cubic", "dictionary", "siren"]
    assert found["dictionary"].psnr > found["cubic"].psnr + 0.5  # the same waves
    assert found["siren"].psnr > 15
    with pytest.raises(UsageError, match="--learn-from"):
        evaluate(replace(config, learn_from=None))
    with pytest.raises(UsageError, match="siren restores whole factors along z"):
        evaluate(replace(config, references=("siren",), factor=Fraction(5, 2)))


@pytest.mark.slow
def test_published_networks_are_models_like_any_other(shared_data):
    truth = str(shared_data / "medulla_fibsem_250.ome.zarr")
    box = Box((80, 80, 80), (140, 94, 140))  # few slices: a diffusion model takes its time
    networks = tuple(published.NETWORKS)
    evaluation = evaluate(
        EvaluateConfig(truth, references=networks, factor=Fraction(3), box=box, device="cpu")
    )
    gains = {row.model: row.over_cubic for row in evaluation.figures}
    names = [published.NETWORKS[name] for name in networks]
    assert list(gains) == ["nearest", "linear", "cubic", *names]
    assert [card.name for card in evaluation.cards] == names
    for name in ("a2i", "swinir", "srmd"):
        assert gains[published.NETWORKS[name]] > 0.3
    assert abs(gains[published.NETWORKS["pssr"]]) < 0.5
    # A sample of what may be, not its mean.
    assert -4 < gains[published.NETWORKS["diffusion"]] < 0
    with pytest.raises(ModelError, match="choose --degradation avg"):
        evaluate(EvaluateConfig(truth, references=networks, degradation="skip", box=box))


def checkpoint(folder, config) -> str:
    torch.manual_seed(0)
    save(folder, make(config), Card(folder.name, "none", "nothing"))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a2i", "niiv"])
def test_axial_models_at_a_rational_factor_on_every_plane(tmp_path, name):
    configs = {
        "a2i": A2IConfig(width=4, levels=2, window=4, heads=(1, 2), blocks=1, residual=True),
        "niiv": NIIVConfig(blocks=1, width=4, hidden=8, layers=1, residual=True),
    }
    torch.manual_seed(0)
    network = make(configs[name])
    with torch.no_grad():  # fresh weights add nothing
        network.last.weight.normal_(0, 0.1)
    model = tmp_path / name
    save(model, network, Card(name, "none", "nothing"))
    truth = write_source(f"{tmp_path}/t", texture((50, 16, 16)), "10,10,10")
    found = {
        plane: evaluate(
            EvaluateConfig(truth, (str(model),), factor=Fraction(5, 2), plane=plane)
        ).results[-1]
        for plane in (None, "xz", "yz", "xz+yz")
    }
    seen = {plane: result.slices.xz.astype(int) for plane, result in found.items()}
    assert np.array_equal(seen[None], seen["xz"])
    assert not np.array_equal(seen["xz"], seen["yz"])
    mean = (seen["xz"] + seen["yz"]) / 2
    clipped = np.isin(seen["xz"], (0, 255)) | np.isin(seen["yz"], (0, 255))
    assert np.abs(seen["xz+yz"] - mean)[~clipped].max() <= 1


def test_lateral_models_get_lateral_pixels(tmp_path):
    model = checkpoint(tmp_path / "pssr", PSSRConfig(width=2, depths=(1, 1, 1, 1)))
    voxels = texture((12, 48, 64))
    truth = write_source(f"{tmp_path}/t", voxels, "10,10,10")
    found = evaluate(EvaluateConfig(truth, (model,)))
    assert found.compared == Box((0, 8, 8), (12, 40, 56))
    assert found.left_out == (
        "along y the first 8 and the last 8 voxels; along x the first 8 and the last 8 voxels"
    )
    assert found.summary()["axes"] == "yx"
    small = np.rint(voxels.reshape(12, 12, 4, 16, 4).mean((2, 4))).astype(np.uint8)
    nearest = small.repeat(4, 1).repeat(4, 2)[:, 8:40, 8:56]
    expected = peak_signal_noise_ratio(voxels[:, 8:40, 8:56], nearest, data_range=255)
    assert found.figures[0].psnr == pytest.approx(expected, abs=0.02)  # rounding of halves
    # One tile holds a whole section here, so what its authors do is the same but at the rim.
    stitched = evaluate(EvaluateConfig(truth, (model,), references=("stitched",))).results[-1]
    assert stitched.model == "stitched"
    assert stitched.figures.psnr == pytest.approx(found.figures[-1].psnr, abs=1)
    with pytest.raises(UsageError, match=r"one pssr model .* hold 0 of them"):
        evaluate(EvaluateConfig(truth, references=("stitched",)))
    with pytest.raises(ModelError, match="restore y and x, but fsrcnn-z4 restore z"):
        evaluate(EvaluateConfig(truth, (model, SHIPPED)))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"box": Box((0, 0, 0), (48, 24, 29))}, UsageError, "reaches beyond"),
        ({"box": Box((0, 0, 0), (48, 10, 28))}, UsageError, "10 voxels to compare along y"),
        ({"box": Box((0, 0, 0), (20, 24, 28))}, UsageError, "4 voxels to .* along z.*must have 31"),
        ({"factor": 0}, UsageError, "at least 1"),
        ({"average": (1, 0, 1)}, UsageError, "average .* at least 1"),
        ({"average": (1, 25, 1)}, UsageError, "leaves no voxel"),
        ({"models": ("identity",)}, ModelError, "has factor 1 x 1 x 1"),
        ({"models": ("no-such-model",)}, ModelError, "no model 'no-such-model'"),
        ({"models": (SHIPPED,), "factor": 2}, ModelError, "has factor 4 x 1 x 1"),
        ({"models": (SHIPPED,), "degradation": "skip"}, ModelError, "choose --degradation avg"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(tmp_path, changes, error, says):
    truth = write_source(f"{tmp_path}/texture", texture(), "10,10,10")
    with pytest.raises(error, match=says):
        evaluate(replace(EvaluateConfig(truth), **changes))


def test_unreadable_boxes_are_refused():
    with pytest.raises(GeometryError):
        Box.parse("0:10,0:10")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("degradation", "linear", "cubic"), [("avg", 30.57, 31.67), ("skip", 30.01, 30.03)]
)
def test_reference_floor_of_the_interpolations(shared_data, degradation, linear, cubic):
    # README of the data, on another cube of the same tissue: cubic about 1 dB over linear.
    volume = open_volume(str(shared_data / "medulla_fibsem_448.ome.zarr"))
    box = Box((96, 96, 96), (352, 352, 352))
    true = volume.read(box)
    factor = (Fraction(4), Fraction(1), Fraction(1))
    sections = degrade_voxels(true, factor, degradation)
    source = ArrayVolume(degraded_spec(volume.spec, box, factor), sections)
    inner = choose_region(volume.spec, box, factor, degradation).inner
    for name, expected in (("linear", linear), ("cubic", cubic)):
        spec = interpolation_spec(name, PHASES[degradation]).for_factor(factor)
        found = predict_volume(Interpolation(spec), source, (128, 128, 128))
        assert psnr(true[inner], found[inner]) == pytest.approx(expected, abs=0.5)


def test_prediction_of_a_known_section_average_is_kept(shared_data):
    # Averaging the prediction by 4 gives the sections back, more or less: registration is right.
    volume = open_volume(str(shared_data / "medulla_fibsem_250.ome.zarr"))
    box = Box((60, 60, 60), (124, 124, 124))
    voxels = volume.read(box)
    factor = (Fraction(4), Fraction(1), Fraction(1))
    spec = degraded_spec(volume.spec, box, factor)
    source = ArrayVolume(spec, degrade_voxels(voxels, factor, "avg"))
    runtime = Runtime(factor, measure_intensity(source, "standard"), device="cpu")
    predicted = predict_volume(load(SHIPPED, runtime), source, (64, 64, 64))
    again = degrade_voxels(predicted, factor, "avg")
    shifted = degrade_voxels(np.roll(predicted, 1, 0), factor, "avg")
    assert psnr(source.voxels, again) > psnr(source.voxels, shifted) + 3
