"""``--sections`` from plan to proof: exact however a volume is cut, recorded, and held to."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import Client
from jobs import Command, read_all, tree_digest, write_source
from networks import network_of, tissue
from whole import Model, assert_equals_whole, assert_every_block_shape

import isochunk
from isochunk.core.sections import Section, SectionTable
from isochunk.errors import TargetConflictError, UsageError
from isochunk.models.checkpoint import Card, save
from isochunk.models.fsrcnn import FSRCNNConfig
from isochunk.models.interpolation import interpolation_spec
from isochunk.models.srunet import SRUNetConfig

torch.set_num_threads(1)

SHAPE = (12, 40, 36)
OFFSET = (3, -5, 11)
LAST = OFFSET[0] + SHAPE[0] - 1

BLOCKS = {
    "cubes": {"chunk": "16,24,24", "shard": "none", "block": "16,24,24"},
    "sections": {"chunk": "4,40,36", "shard": "none", "block": "4,40,36"},
    "odd": {"chunk": "13,17,29", "shard": "none", "block": "13,17,29"},
    "one": {"chunk": "64,64,64"},
}
"""Blocks of 16 planes end at section 7, 11 and 15."""


def lost(*numbers: int) -> list[Section]:
    return [Section(z, lost=True) for z in numbers]


TABLES = {
    "first": lost(3),
    "last": lost(LAST),
    "at the end of a block": lost(6),
    "at the start of a block": lost(7),
    "a run across blocks": lost(6, 7, 8),
    "ends and uneven": [
        *lost(3, 4, LAST),
        *(Section(z, gain=0.9 + z / 70, offset=11.25 - z) for z in (5, 8, 9, 12)),
    ],
    "all but one": lost(*(z for z in range(3, LAST + 1) if z != 8)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Networks with random weights, and cubic."""
    folder = tmp_path_factory.mktemp("models")
    configs = {
        "fsrcnn": FSRCNNConfig.compact(3, 2, 2),
        "srunet-standard": SRUNetConfig.compact(3, 3, 1, residual="cubic"),
    }
    made = {"cubic": Model("cubic", interpolation_spec("cubic"), None)}
    for name, config in configs.items():
        network = network_of(config)
        card = Card(
            name, "none", "nothing", normalisation="standard" if "standard" in name else "range"
        )
        made[name] = Model(str(folder / name), save(folder / name, network, card), network)
    return made


def plainly_mended(voxels: np.ndarray, sections: list[Section]) -> np.ndarray:
    """Mend a whole volume, column by column, as the table says."""
    values = voxels.astype(float)
    for s in sections:
        if not s.lost:
            at = s.z - OFFSET[0]
            values[at] = np.where(voxels[at] == 0, 0, s.gain * values[at] + s.offset)
    gone = {s.z - OFFSET[0] for s in sections if s.lost}
    good = [z for z in range(len(voxels)) if z not in gone]
    for y, x in np.ndindex(voxels.shape[1:]):
        values[:, y, x] = np.interp(np.arange(len(voxels)), good, values[good, y, x])
    return values


def write_table(path: Path, url: str, sections: list[Section]) -> str:
    path.write_text(SectionTable(url, tuple(sections)).text())
    return str(path)


def job_of(
    folder: Path, model: str, sections: list[Section], dtype: str = "uint8", **options: str
) -> tuple[isochunk.Job, np.ndarray]:
    """Write a volume whose lost sections hold nonsense, its table, and what is to be done."""
    voxels = tissue(SHAPE, dtype, seed=1)
    stored = voxels.copy()
    for s in sections:
        if s.lost:
            stored[s.z - OFFSET[0]] = np.iinfo(dtype).max
    url = write_source(f"file://{folder}/in", stored, offset=OFFSET)
    table = write_table(folder / "sections.toml", url, sections)
    job = isochunk.Job(
        source=url,
        target=f"{folder}/out",
        model=model,
        sections=table,
        device="cpu",
        **{"levels": 1, **options},
    )
    return job, voxels


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", ["cubic", "fsrcnn", "srunet-standard"])
def test_blocks_equal_the_whole_wherever_sections_are_lost(
    models: dict[str, Model], tmp_path: Path, name: str, table: str
) -> None:
    job, voxels = job_of(tmp_path, models[name].name, TABLES[table])
    values = plainly_mended(voxels, TABLES[table])
    exact = models[name].whole(values, OFFSET, Fraction(4), stored_as="uint8")
    assert_every_block_shape(job, BLOCKS, exact)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_two_workers_a_killed_block_and_an_audit(
    models: dict[str, Model], client: Client, tmp_path: Path, dtype: str
) -> None:
    sections = TABLES["ends and uneven"]
    job, voxels = job_of(tmp_path, models["fsrcnn"].name, sections, dtype, **BLOCKS["cubes"])
    values = plainly_mended(voxels, sections)
    exact = models["fsrcnn"].whole(values, OFFSET, Fraction(4), stored_as=dtype)
    assert isochunk.run(isochunk.plan(job), client).complete
    assert_equals_whole(read_all(job.target), exact)
    assert isochunk.audit(job.target).complete

    before = tree_digest(tmp_path / "out")
    Path(job.sections or "").unlink()  # the record is all that a repair needs
    victim = next(path for path in (tmp_path / "out").rglob("*-*_*-*_*-*"))
    victim.unlink()
    assert not isochunk.audit(job.target).complete
    _, repaired = isochunk.repair(job.target)
    assert (repaired.complete, tree_digest(tmp_path / "out")) == (True, before)


@pytest.mark.parametrize("model", ["nearest", "identity", "linear"])
def test_other_interpolations(tmp_path: Path, model: str) -> None:
    job, voxels = job_of(tmp_path, model, [*lost(6), Section(8, gain=1.1, offset=3.6)])
    assert isochunk.run(isochunk.plan(job)).complete
    values = plainly_mended(voxels, [*lost(6), Section(8, gain=1.1, offset=3.6)])
    got = read_all(job.target)
    at = {"identity": np.arange(12), "nearest": np.arange(48) // 4, "linear": np.arange(48) / 4}
    centre = np.clip(at[model] - 0.375 * (model == "linear"), 0, 11)
    below = np.floor(centre).astype(int)
    share = (centre - below)[:, None, None]
    exact = (1 - share) * values[below] + share * values[np.minimum(below + 1, 11)]
    assert np.abs(got - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-3


def test_what_is_told_of_sections(tmp_path: Path) -> None:
    sections = [*lost(4, 5), Section(9, gain=1.1, offset=-4.5, why="bright")]
    job, _ = job_of(tmp_path, "cubic", sections, box="4:14,-5:35,11:47")
    plan = isochunk.plan(job)
    digest = SectionTable("elsewhere", tuple(sections)).digest
    told = {"digest": digest, "lost": [4, 5], "corrected": 1}
    invented = 2 * 4 * 40 * 36
    assert (plan.summary()["sections"], plan.summary()["invented_voxels"]) == (told, invented)

    report = isochunk.run(plan)
    assert (report.complete, report.summary()["invented_voxels"]) == (True, invented)
    status = isochunk.status(job.target)
    assert (status["sections"], status["invented_voxels"]) == (told, invented)
    record = json.loads((tmp_path / "out/.isochunk/job.json").read_text())["plan"]
    assert record["sections"]["sections"][2] == {
        "z": 9,
        "lost": False,
        "gain": 1.1,
        "offset": -4.5,
        "why": "bright",
    }
    provenance = json.loads((tmp_path / "out/provenance").read_text())
    assert provenance["processing"][0]["method"]["sections"] == told


def test_a_job_without_a_table_is_recorded_as_before(tmp_path: Path) -> None:
    job, _ = job_of(tmp_path, "cubic", [])
    plain = replace(job, sections=None)
    assert isochunk.run(isochunk.plan(plain)).complete
    record = json.loads((tmp_path / "out/.isochunk/job.json").read_text())["plan"]
    assert "sections" not in record
    assert "sections" not in record["job"]
    assert isochunk.status(job.target)["sections"] is None
    # A table that changes nothing changes no byte: the job is the same.
    assert isochunk.run(isochunk.plan(job)).resumed == isochunk.plan(job).total_blocks


def test_a_table_that_changed_is_another_job(tmp_path: Path) -> None:
    job, _ = job_of(tmp_path, "cubic", [*lost(6), Section(8, gain=1.1)])
    assert isochunk.run(isochunk.plan(job)).complete
    table = Path(job.sections or "")
    table.write_text(table.read_text().replace("1.1", "1.2") + "# a word\n")
    with pytest.raises(TargetConflictError, match=r"sections\.8\.gain was 1\.1 and is now 1\.2"):
        isochunk.plan(job)
    with pytest.raises(TargetConflictError, match=r"sections\.6\.lost was True and is now None"):
        isochunk.plan(replace(job, sections=None))
    table.write_text(table.read_text().replace("1.2", "1.1") + 'why = "dark"\n')
    assert isochunk.run(isochunk.plan(job)).complete


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (lost(*range(3, LAST + 1)), "all 12 sections of .* lost"),
        (lost(LAST + 1), r"section 15 does not exist: z of .* runs from 3 to 14"),
    ],
)
def test_tables_that_cannot_be(tmp_path: Path, sections: list[Section], message: str) -> None:
    job, _ = job_of(tmp_path, "cubic", [])
    write_table(tmp_path / "sections.toml", job.source, sections)
    with pytest.raises(UsageError, match=message):
        isochunk.plan(job)


def test_a_table_of_another_volume_and_no_table(tmp_path: Path) -> None:
    job, _ = job_of(tmp_path, "cubic", [])
    write_table(tmp_path / "sections.toml", "precomputed://s3://lab/em", lost(6))
    with pytest.raises(UsageError, match="is that of precomputed://s3://lab/em, not of"):
        isochunk.plan(job)
    with pytest.raises(UsageError, match=r"nowhere\.toml cannot be read: .* isochunk inspect"):
        isochunk.plan(replace(job, sections=f"{tmp_path}/nowhere.toml"))


def test_auto_inspects_and_keeps_what_it_found(tmp_path: Path, run: Command) -> None:
    voxels = tissue((30, 96, 96), "uint8", seed=2)
    voxels[:10, :48, :48] = voxels[10:20, :48, :48]  # no black corner
    voxels[17] = 0
    source = write_source(f"file://{tmp_path}/in", voxels)
    options = ("--model", "cubic", "--sections", "auto", "--levels", "1")
    planned = run("plan", source, f"{tmp_path}/out", *options)
    assert planned["sections"]["lost"] == [17]
    ran = run("run", source, f"{tmp_path}/out", *options)
    assert (ran["complete"], ran["invented_voxels"]) == (True, 4 * 96 * 96)
    assert read_all(f"{tmp_path}/out")[17 * 4 + 2].mean() > 50
    # What was found then holds, whatever would be found now.
    voxels[20] = 0
    write_source(f"file://{tmp_path}/in", voxels)
    again = run("plan", source, f"{tmp_path}/out", *options)
    assert again["sections"]["lost"] == [17]
