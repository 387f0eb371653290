"""Mode self3d: slices make a volume isotropic, and a network that sees volumes learns from that."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import Command, read_all, write_source
from trainings import SMALL, weights

import isochunk
from isochunk.core.sections import Section, SectionTable
from isochunk.core.spec import Intensity
from isochunk.core.synthetic import synthetic_pair
from isochunk.errors import TargetConflictError, UsageError
from isochunk.models.checkpoint import read_spec
from isochunk.storage.access import Access
from isochunk.storage.open import create_volume, open_volume
from isochunk.train.config import TrainConfig
from isochunk.train.data import Crops, Source
from isochunk.train.first_pass import isotropic_volume, slices_config
from isochunk.train.loop import sampling_of
from isochunk.train.presets import config_from_table
from isochunk.train.training import train

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def em(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sections of 32 nm with pixels of 8 nm."""
    coarse, _ = synthetic_pair((12, 80, 200), 4)
    return write_source(f"{tmp_path_factory.mktemp('volume')}/em", coarse, "32,8,8")


def table(source: str, out: Path, **changes: Any) -> dict[str, Any]:
    usual = {
        "arch": "anyz",
        "sources": [source],
        "out": str(out),
        "mode": "self3d",
        "network": {"width": 8, "blocks": 1, "decoded": 8, "bases": 4, "hidden": 8},
        "first_pass": {"slices": "niiv-z2-10"},
        "steps": 60,
        "patch": [24, 24, 24],
        "border": [4, 2, 2],
        "batch": 2,
        "device": "cpu",
        "optimisation": {"lr": 4e-3, "average": 0.9, "warmup": 0, "anneal": 0},
        "keeping": {"validate_every": 30, "crops": 8, "save_every": 30},
    }
    return {**usual, **changes}


def config(source: str, out: Path, **changes: Any) -> TrainConfig:
    return config_from_table({**table(source, out), "factor": 4, **changes})


@pytest.mark.slow
def test_a_volume_is_made_isotropic_and_learnt(em: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wanted = config(em, out)
    report = train(wanted)
    assert report.stopped == "finished"
    assert report.best_psnr > max(report.cubic_psnr, report.linear_psnr)

    first = open_volume(str(out / "isotropic.zarr")).spec
    assert first.box.shape == (48, 80, 200)
    assert len(set(first.spacing)) == 1
    assert isochunk.audit(str(out / "isotropic.zarr")).complete
    by_hand = isochunk.Job(
        source=em,
        target=f"{tmp_path}/by-hand",
        model="niiv-z2-10",
        plane="xz+yz",
        levels=1,
        consistent=True,
    )
    isochunk.run(isochunk.plan(by_hand))
    assert np.array_equal(read_all(f"{tmp_path}/by-hand"), read_all(str(out / "isotropic.zarr")))

    spec = read_spec(out)
    assert (spec.plane, spec.phase) == ("3d", "mean")
    job = isochunk.Job(source=em, target=f"{tmp_path}/restored", model=str(out))
    assert isochunk.run(isochunk.plan(job)).complete

    stored = {p: p.stat().st_mtime_ns for p in (out / "isotropic.zarr").rglob("*") if p.is_file()}
    again = train(wanted)
    assert (again.stopped, again.best_psnr) == ("finished", report.best_psnr)
    assert stored == {p: p.stat().st_mtime_ns for p in stored}


@pytest.mark.slow
def test_the_command_teaches_slices_first_and_takes_up_where_it_stopped(
    tmp_path: Path, run: Command
) -> None:
    coarse, _ = synthetic_pair((6, 132, 440), 4)
    source = write_source(f"{tmp_path}/em", coarse, "32,8,8")
    out = tmp_path / "out"
    options = ["--mode=self3d", "--arch=anyz", "--width=4", "--blocks=1", "--decoded=4"]
    options += [f"--source={source}", f"--out={out}", "--slices-steps=2", "--patch=32,16,16"]
    options += ["--batch=1", "--device=cpu", "--box=0:5,0:64,0:440"]
    report = run("train", *options, "--steps=2")
    assert report["out"] == str(out)
    first = isochunk.open(str(out / "isotropic.zarr")).spec
    assert first.box.shape == (20, 64, 440)
    assert read_spec(out / "slices").arch == "niiv"
    assert read_spec(out / "slices").trained_factors == (4, 4)
    before = weights(out / "slices"), weights(out)
    chunks = {p: p.stat().st_mtime_ns for p in (out / "isotropic.zarr").rglob("*") if p.is_file()}

    report = run("train", *options, "--steps=3")
    after = weights(out / "slices"), weights(out)
    assert report["step"] == 3
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert not all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    assert chunks == {p: p.stat().st_mtime_ns for p in chunks}


def test_detail_that_is_asked_for_was_recorded(tmp_path: Path) -> None:
    """Sections hold stripes along y and along x, and the first pass cannot add any along z."""
    voxels = np.full((12, 96, 96), 100, np.uint8)
    voxels[:, :, ::2] += 60  # finer than any section
    source = write_source(f"{tmp_path}/em", voxels, "32,8,8")
    wanted = config(source, tmp_path / "out", first_pass={"slices": "linear"})
    access = Access()
    volume = isotropic_volume(wanted, open_volume(source), access)
    crops = Crops((Source(volume, Intensity()),), (volume.spec.box,), sampling_of(wanted))
    finest = []
    for step in range(20):
        batch = crops.batch(step)
        for crop in batch.target[:, 0].numpy():
            steps = [float(np.abs(np.diff(crop, axis=axis)).mean()) for axis in range(3)]
            finest.append(int(np.argmax(steps)))
    assert finest.count(0) > 10, "x never became the coarse axis"
    assert len(set(finest)) == 3


def test_sections_may_begin_between_target_voxels(em: str, tmp_path: Path) -> None:
    volume = open_volume(em)
    moved = tmp_path / "moved.zarr"
    spec = replace(
        volume.spec,
        url=str(moved),
        format="zarr3",
        corner_nm=tuple(Fraction(n) for n in (15, 0, 0)),
    )
    create_volume(spec).write(spec.box, volume.read(spec.box))
    wanted = config(str(moved), tmp_path / "out", first_pass={"slices": "cubic"})
    isotropic = isotropic_volume(wanted, open_volume(str(moved)), Access())
    assert isotropic.spec.box.shape == (48, 80, 200)


def test_lost_sections_are_not_learnt_from(em: str, tmp_path: Path) -> None:
    file = tmp_path / "sections.toml"
    file.write_text(SectionTable(em, tuple(Section(z, lost=True) for z in (0, 5, 6))).text())
    wanted = config(em, tmp_path / "out", sections=str(file), first_pass={"slices": "cubic"})
    volume = isotropic_volume(wanted, open_volume(em), Access())
    lost = [z for z in range(48) if not volume.mending.good(z, z + 1)]
    assert lost == [*range(4), *range(20, 28)]
    parts = config(
        em,
        tmp_path / "part",
        sections=str(file),
        first_pass={"slices": "cubic", "box": "3:9,0:80,0:200"},
    )
    volume = isotropic_volume(parts, open_volume(em), Access())
    lo = volume.spec.box.lo[0]
    assert volume.spec.box.shape[0] == 24
    lost = [z - lo for z in range(lo, lo + 24) if not volume.mending.good(z, z + 1)]
    assert lost == list(range(8, 16))
    assert np.isfinite(volume.read(volume.spec.box)).all()


def test_what_a_run_has_written_serves(em: str, tmp_path: Path) -> None:
    target = f"{tmp_path}/target"
    job = isochunk.Job(source=em, target=target, model="cubic", chunk="16,16,16", shard="none")
    isochunk.run(isochunk.plan(job))
    wanted = config(em, tmp_path / "out", first_pass={"isotropic": target})
    volume = isotropic_volume(wanted, open_volume(em), Access())
    assert np.array_equal(volume.read(volume.spec.box), read_all(target))
    assert not (tmp_path / "out").exists()


def test_a_first_pass_of_something_else_is_refused(em: str, tmp_path: Path) -> None:
    coarse, _ = synthetic_pair((12, 80, 200), 4, seed=3)
    other = write_source(f"{tmp_path}/other", coarse, "32,8,8")
    target = f"{tmp_path}/target"
    isochunk.run(isochunk.plan(isochunk.Job(source=other, target=target, model="cubic")))
    wanted = config(em, tmp_path / "out", first_pass={"isotropic": target})
    with pytest.raises(TargetConflictError, match=r"was made of .*other, not of .*em; choose"):
        train(wanted)
    network = {"isotropic": target, "slices": "niiv-z2-10"}
    with pytest.raises(TargetConflictError, match="was made by cubic, which is not the network"):
        train(config(other, tmp_path / "out", first_pass=network))
    flat = f"{tmp_path}/flat"
    job = isochunk.Job(source=em, target=flat, model="cubic", spacing="16,8,8")
    isochunk.run(isochunk.plan(job))
    with pytest.raises(TargetConflictError, match="not isotropic ones"):
        train(config(em, tmp_path / "out", first_pass={"isotropic": flat}))


def test_what_cannot_be_done_is_refused(
    em: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="say how mode self3d begins"):
        config(em, out, mode="supervised")
    with pytest.raises(UsageError, match="this niiv sees slices; choose anyz"):
        config(em, out, arch="niiv", network=SMALL["niiv"], patch=[32, 1, 32], border=[0, 0, 0])
    with pytest.raises(UsageError, match="learns from one volume; got 2"):
        config(em, out, sources=[em, em])
    with pytest.raises(UsageError, match="box"):
        config(em, out, first_pass={"box": "0:4,0:4"})
    with pytest.raises(UsageError, match="a crop needs 64"):
        train(config(em, out, patch=[64, 64, 64], first_pass={"slices": "cubic"}))
    assert not out.exists(), "it was found out too late"
    flat = write_source(f"{tmp_path}/flat", read_all(em), "8,8,8")
    with pytest.raises(UsageError, match=r"at least 1\.5"):
        train(config(flat, tmp_path / "other"))
    monkeypatch.setattr("isochunk.train.first_pass.MOST_VOXELS", 1000)
    with pytest.raises(UsageError, match="choose a part of the volume with --box, or write it on"):
        train(config(em, tmp_path / "many"))
    monkeypatch.undo()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="without torchrun"):
        train(config(em, tmp_path / "several"))


def test_the_network_for_slices_learns_as_it_is_told(em: str, tmp_path: Path) -> None:
    wanted = config(em, tmp_path / "out", degradation="skip", seed=5, sections="auto")
    slices = slices_config(wanted)
    assert (slices.mode, slices.arch, slices.degradation) == ("self", "niiv", "skip")
    assert (slices.seed, slices.sections, slices.sources) == (5, "auto", (em,))
    assert slices.factors == ()
    assert slices.steps == wanted.first_pass.slices_steps == 3600
