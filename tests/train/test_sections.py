"""Training on volumes with a section table: as on the volume mended, and never on what is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import Command, write_source
from trainings import config, weights

from isochunk.core.geometry import Box
from isochunk.core.sections import Section, SectionTable
from isochunk.core.spec import Intensity
from isochunk.core.synthetic import synthetic_pair
from isochunk.engine.mended import mended, mending_of
from isochunk.errors import TargetConflictError, UsageError
from isochunk.storage.open import open_volume
from isochunk.train.augment import Augmentation
from isochunk.train.data import LATERAL, Crops, Sampling, Source
from isochunk.train.pairs import Sectioned
from isochunk.train.training import train

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def even() -> np.ndarray:
    """Anisotropic tissue of even grey levels, so that half of them is exact."""
    coarse, _ = synthetic_pair((8, 96, 440), 4)
    return coarse // 2 * 2


def write_table(path: Path, source: str, *sections: Section) -> str:
    path.write_text(SectionTable(source, sections).text())
    return str(path)


def test_training_is_that_of_the_volume_mended(even: np.ndarray, tmp_path: Path) -> None:
    uneven = even.copy()
    uneven[2:4] //= 2
    good = write_source(f"{tmp_path}/good", even, "32,8,8")
    bad = write_source(f"{tmp_path}/bad", uneven, "32,8,8")
    table = write_table(tmp_path / "t.toml", bad, Section(2, gain=2.0), Section(3, gain=2.0))
    steps = {"steps": 8}
    train(config("niiv", good, tmp_path / "a", **steps))
    train(config("niiv", bad, tmp_path / "b", sections=table, **steps))
    train(config("niiv", bad, tmp_path / "c", **steps))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)

    digest = SectionTable(bad, (Section(2, gain=2.0), Section(3, gain=2.0))).digest
    assert digest in (tmp_path / "b" / "model.json").read_text()
    write_table(tmp_path / "t.toml", bad, Section(2, gain=1.5))
    with pytest.raises(TargetConflictError, match="sections: "):
        train(config("niiv", bad, tmp_path / "b", sections=table, **steps))


def test_the_command_takes_a_table(even: np.ndarray, tmp_path: Path, run: Command) -> None:
    source = write_source(f"{tmp_path}/em", even, "32,8,8")
    table = write_table(tmp_path / "t.toml", source, Section(2, lost=True))
    small = ("--blocks=2", "--width=8", "--hidden=16", "--layers=2", "--patch=32,1,32", "--batch=1")
    run(
        "train",
        f"--source={source}",
        "--arch=niiv",
        "--mode=self",
        "--steps=1",
        "--device=cpu",
        f"--out={tmp_path}/a",
        f"--sections={table}",
        *small,
    )
    digest = SectionTable(source, (Section(2, lost=True),)).digest
    assert digest in (tmp_path / "a" / "model.json").read_text()


def test_no_crop_is_taken_where_sections_are_lost(even: np.ndarray, tmp_path: Path) -> None:
    spoilt = even.copy()
    spoilt[[1, 2, 5]] = 255
    volume = open_volume(write_source(f"{tmp_path}/em", spoilt, "32,8,8"))
    lost = tuple(Section(z, lost=True) for z in (1, 2, 5))
    through = mended(volume, mending_of(SectionTable(volume.spec.url, lost), volume.spec))
    source = Source(through, Intensity(), through.mending)
    sampling = Sampling(
        (32, 1, 32), 4, (4,), ((1, 1, 1),), Augmentation(), 0, (Sectioned("avg"),), LATERAL
    )
    crops = Crops((source,), (Box((0, 0, 0), (8, 96, 300)),), sampling)
    target = torch.cat([crops.batch(step).target for step in range(30)]) * 255
    stored = [even[z, :, :300].ravel() for z in (0, 3, 4, 6, 7)]
    assert target.max() <= max(v.max() for v in stored) + 1e-3
    assert (target.round() % 2 == 0).all(), "the mean of two sections would be odd at times"


def test_a_table_is_that_of_one_of_several_volumes(even: np.ndarray, tmp_path: Path) -> None:
    urls = [write_source(f"{tmp_path}/{name}", even, "32,8,8") for name in ("one", "two")]
    both = replace(config("niiv", urls[0], tmp_path / "a", steps=1), sources=tuple(urls))
    table = write_table(tmp_path / "t.toml", urls[1], Section(3, lost=True))
    assert train(replace(both, sections=table)).stopped == "finished"
    assert '"none, ' in (tmp_path / "a/model.json").read_text()
    other = write_table(tmp_path / "t.toml", "gs://lab/em", Section(3, lost=True))
    with pytest.raises(UsageError, match="is that of gs://lab/em, not of"):
        train(replace(both, sections=other, out=f"{tmp_path}/b"))
    assert not (tmp_path / "b").exists()
