"""Judging models: interpolations by hand, the shipped network on real tissue."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from jobs import write_source
from skimage.metrics import peak_signal_noise_ratio

from isochunk.errors import GeometryError, ModelError, UsageError
from isochunk.evaluate import (
    ArrayVolume,
    EvaluateConfig,
    degrade_voxels,
    degraded_spec,
    evaluate,
    predict_volume,
)
from isochunk.geometry import Box
from isochunk.intensity import measure_intensity
from isochunk.metrics import psnr
from isochunk.models.load import Runtime, load, shipped
from isochunk.predict import Interpolation, interpolation_spec
from isochunk.storage.tensorstore import open_volume

torch.set_num_threads(1)

SHIPPED = "srunet-z4-small"


def ramp(depth: int) -> np.ndarray:
    """Two grey levels more with every z."""
    z = np.arange(depth, dtype=np.uint8)[:, None, None] * 2
    return np.broadcast_to(z + 10, (depth, 16, 16)).copy()


def texture(shape=(48, 24, 28), seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[tuple(map(slice, shape))]
    waves = 40 * np.sin(z / 3 + y / 5) + 30 * np.cos(x / 4 - z / 7)
    return np.clip(128 + waves + rng.normal(0, 4, shape), 0, 255).astype(np.uint8)


def rows(config: EvaluateConfig) -> dict[str, object]:
    return {row.model: row for row in evaluate(config).rows}


@pytest.mark.parametrize(("degradation", "planes"), [("avg", 48 - 16), ("skip", 45 - 16)])
def test_a_ramp_is_restored_exactly_in_the_right_phase(tmp_path, degradation, planes):
    # Half a voxel of misregistration would be off by a grey level everywhere.
    truth = write_source(f"{tmp_path}/ramp", ramp(48), "10,10,10")
    for row in evaluate(EvaluateConfig(truth, degradation=degradation)).rows:
        assert row.psnr > 50 if degradation == "avg" else row.psnr == np.inf
        assert row.voxels == planes * 16 * 16


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
    assert rows(EvaluateConfig(truth))["linear"].psnr == pytest.approx(expected, abs=0.01)


def test_degraded_voxels_are_rounded_means(tmp_path):
    voxels = texture((20, 6, 5))
    for factor in (1, 2, 5):
        expected = np.rint(voxels.reshape(-1, factor, 6, 5).mean(1))
        assert np.array_equal(degrade_voxels(voxels, factor, "avg"), expected)
        assert np.array_equal(degrade_voxels(voxels, factor, "skip"), voxels[::factor])


def test_many_sections_are_degraded_like_few():
    voxels = texture((160, 3, 3))
    parts = [degrade_voxels(voxels[i : i + 4], 4, "avg") for i in range(0, 160, 4)]
    assert np.array_equal(degrade_voxels(voxels, 4, "avg"), np.concatenate(parts))


def test_sixteen_bits_keep_their_precision(tmp_path):
    voxels = texture().astype(np.uint16) * 257
    wide = write_source(f"{tmp_path}/wide", voxels, "10,10,10")
    narrow = write_source(f"{tmp_path}/narrow", texture(), "10,10,10")
    a, b = rows(EvaluateConfig(wide))["cubic"], rows(EvaluateConfig(narrow))["cubic"]
    assert a.psnr == pytest.approx(b.psnr, abs=0.05)  # only the rounding differs
    assert a.ssim == pytest.approx(b.ssim, abs=0.001)


def test_blocks_do_not_change_the_answer(tmp_path):
    voxels = texture()
    spec = open_volume(write_source(f"{tmp_path}/texture", voxels, "10,10,10")).spec
    source = ArrayVolume(degraded_spec(spec, spec.box, 4), degrade_voxels(voxels, 4, "avg"))
    for phase in ("mean", "sample"):
        for name in ("nearest", "linear", "cubic"):
            predictor = Interpolation(interpolation_spec(name, phase).for_factor((4, 1, 1)))
            whole = predict_volume(predictor, source, (64, 64, 64))
            assert np.array_equal(whole, predict_volume(predictor, source, (5, 7, 28)))


def test_a_box_is_judged_where_it_lies(tmp_path):
    voxels = texture((60, 30, 30))
    whole = write_source(f"{tmp_path}/whole", voxels, "10,10,10")
    cut = write_source(f"{tmp_path}/cut", voxels[8:56, 3:23, 5:27].copy(), "10,10,10")
    boxed = evaluate(EvaluateConfig(whole, box=Box((8, 3, 5), (57, 23, 27))))
    same = evaluate(EvaluateConfig(cut))
    assert boxed.compared == Box((16, 3, 5), (48, 23, 27))
    assert boxed.left_out == "along z the first 8 and the last 8 voxels"
    for a, b in zip(boxed.rows, same.rows, strict=True):
        assert replace(a, seconds=0) == replace(b, seconds=0)


def test_summary_has_the_promised_keys_and_is_json(tmp_path):
    truth = write_source(f"{tmp_path}/ramp", ramp(48), "10,10,10")
    config = EvaluateConfig(truth, degradation="skip", report=f"{tmp_path}/report")
    told = json.loads(json.dumps(evaluate(config).summary(), allow_nan=False))
    keys = ["model", "psnr", "ssim", "wpsnr", "cf_psnr", "voxels", "seconds"]
    assert [list(row) for row in told["rows"]] == [keys, keys]
    assert told["rows"][0]["psnr"] is None  # nothing differs: no finite figure
    written = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert [row["model"] for row in written["rows"]] == ["linear", "cubic"]
    assert "| cubic |" in (tmp_path / "report" / "evaluation.md").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"box": Box((0, 0, 0), (48, 24, 29))}, UsageError, "reaches beyond"),
        ({"box": Box((0, 0, 0), (48, 10, 28))}, UsageError, "10 voxels to compare"),
        ({"box": Box((0, 0, 0), (20, 24, 28))}, UsageError, "4 voxels to compare"),
        ({"factor": 0}, UsageError, "at least 1"),
        ({"models": ("identity",)}, ModelError, "has factor 1 x 1 x 1"),
        ({"models": ("no-such-model",)}, ModelError, "no model 'no-such-model'"),
        ({"models": (SHIPPED,), "factor": 2}, ModelError, "has factor 4 x 1 x 1"),
        ({"models": (SHIPPED,), "degradation": "skip"}, ModelError, "choose --degradation avg"),
    ],
)
def test_what_cannot_be_judged_is_refused(tmp_path, changes, error, says):
    truth = write_source(f"{tmp_path}/texture", texture(), "10,10,10")
    with pytest.raises(error, match=says):
        evaluate(replace(EvaluateConfig(truth), **changes))


def test_unreadable_boxes_are_refused():
    with pytest.raises(GeometryError):
        Box.parse("0:10,0:10")


@pytest.mark.slow
def test_reference_floor_of_the_interpolations(shared_data):
    # README of the data, on another cube of the same tissue: cubic about 1 dB over linear.
    truth = str(shared_data / "medulla_fibsem_448.ome.zarr")
    found = rows(EvaluateConfig(truth, box=Box((96, 96, 96), (352, 352, 352))))
    assert found["linear"].psnr == pytest.approx(30.57, abs=0.5)
    assert found["cubic"].psnr == pytest.approx(31.67, abs=0.5)
    skipped = rows(
        EvaluateConfig(truth, box=Box((96, 96, 96), (352, 352, 352)), degradation="skip")
    )
    assert skipped["linear"].psnr == pytest.approx(30.01, abs=0.5)
    assert skipped["cubic"].psnr == pytest.approx(30.03, abs=0.5)


def test_shipped_network_beats_cubic_on_a_cube_it_never_saw(shared_data):
    truth = str(shared_data / "medulla_fibsem_250.ome.zarr")
    box = Box((60, 60, 60), (172, 172, 172))
    found = rows(EvaluateConfig(truth, (SHIPPED,), box=box))
    linear, cubic, network = (found[name] for name in ("linear", "cubic", SHIPPED))
    assert linear.psnr < cubic.psnr < network.psnr - 1.0
    assert linear.ssim < cubic.ssim < network.ssim
    assert cubic.wpsnr < network.wpsnr - 0.5
    assert cubic.cf_psnr < network.cf_psnr


@pytest.mark.parametrize("change", ["darker", "gamma", "16 bits"])
def test_shipped_network_beats_cubic_at_other_contrasts(shared_data, tmp_path, change):
    volume = open_volume(str(shared_data / "medulla_fibsem_250.ome.zarr"))
    voxels = volume.read(Box((60, 60, 60), (140, 140, 140)))
    if change == "darker":
        voxels = np.rint(voxels * 0.4 + 10).astype(np.uint8)
    elif change == "gamma":
        voxels = np.rint(255 * (voxels / 255) ** 2).astype(np.uint8)
    else:
        voxels = voxels.astype(np.uint16) * 90 + 3000
    truth = write_source(f"{tmp_path}/changed", voxels, "10,10,10")
    found = rows(EvaluateConfig(truth, (SHIPPED,)))
    assert found[SHIPPED].psnr > found["cubic"].psnr + 0.7


def test_shipped_checkpoint_is_small_and_says_what_it_is():
    spec = dict(shipped())[SHIPPED]
    assert (spec.arch, spec.factor, spec.phase) == ("srunet", (4, 1, 1), "mean")
    assert spec.normalisation == "standard"
    assert "CC-BY" in spec.licence
    assert "10.1371/journal.pone.0125825" in spec.trained_on
    assert spec.macs_per_voxel < 12_000


def test_prediction_of_a_known_section_average_is_kept(shared_data):
    # Averaging the prediction by 4 gives the sections back, more or less: registration is right.
    volume = open_volume(str(shared_data / "medulla_fibsem_250.ome.zarr"))
    box = Box((60, 60, 60), (124, 124, 124))
    voxels = volume.read(box)
    spec = degraded_spec(volume.spec, box, 4)
    source = ArrayVolume(spec, degrade_voxels(voxels, 4, "avg"))
    runtime = Runtime((4, 1, 1), measure_intensity(source, "standard"), device="cpu")
    predicted = predict_volume(load(SHIPPED, runtime), source, (64, 64, 64))
    again = degrade_voxels(predicted, 4, "avg")
    shifted = degrade_voxels(np.roll(predicted, 1, 0), 4, "avg")
    assert psnr(source.voxels, again) > psnr(source.voxels, shifted) + 3
