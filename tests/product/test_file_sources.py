"""Sections in files, all the way through a run: equal to what a precomputed twin gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
from jobs import Command, command, noise, read_all, tree_digest, write_source

import isochunk
from isochunk.viewing.preview import preview

LOST = 7
"""A section of which there is no file."""
SPACING = "--source-spacing=46,4.6,4.6"
OPTIONS = ("--model=cubic", "--spacing=4.6,4.6,4.6", "--block=64,128,128", "--shard=64,128,128")


@pytest.fixture(scope="module")
def em() -> np.ndarray:
    """Real sections where they are at hand, one of them lost."""
    real = Path(__file__).resolve().parents[3] / "shared" / "data" / "vnc_sstem"
    voxels = noise((20, 192, 224))
    if real.is_dir():
        voxels = isochunk.open(str(real)).read(isochunk.Box((0, 300, 400), (20, 492, 624)))
    voxels = voxels.copy()
    voxels[LOST] = 0
    return voxels


@pytest.fixture(scope="module")
def twin(em: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the same voxels give when they come from a precomputed volume."""
    folder = tmp_path_factory.mktemp("twin")
    source = write_source(f"file://{folder}/in", em, "46,4.6,4.6")
    assert command("run", source, f"{folder}/out", *OPTIONS)["complete"]
    return folder / "out"


@pytest.fixture
def sections(em: np.ndarray, tmp_path: Path) -> Path:
    """A folder of compressed, tiled sections, numbered from 100."""
    folder = tmp_path / "sections"
    folder.mkdir()
    for z, section in enumerate(em):
        if z != LOST:
            path = folder / f"vnc_{z + 100:04d}.tif"
            tifffile.imwrite(path, section, tile=(64, 64), compression="zlib")
    return folder


@pytest.fixture
def data_set(em: np.ndarray, tmp_path: Path) -> str:
    """A data set of an HDF5 file that knows its voxel size."""
    with h5py.File(tmp_path / "em.h5", "w") as file:
        raw = file.create_dataset("volumes/raw", data=em, chunks=(4, 64, 64), compression="gzip")
        raw.attrs["resolution"] = [46.0, 4.6, 4.6]
    return f"{tmp_path}/em.h5:/volumes/raw"


@pytest.mark.slow
def test_a_folder_of_sections_on_two_processes(
    sections: Path, twin: Path, tmp_path: Path, em: np.ndarray
) -> None:
    told = command("info", str(sections), SPACING)
    assert (told["format"], told["shape"], told["chunk"]) == ("tiff", [*em.shape], [1, 64, 64])
    target = f"{tmp_path}/out"
    planned = command("plan", str(sections), target, *OPTIONS, SPACING)
    assert planned["source"] == told
    assert planned["bytes_read"] >= em.size
    result = command("run", str(sections), target, *OPTIONS, SPACING, "--workers=2")
    assert result["complete"]
    assert result["voxels"] == 10 * em.size
    assert command("audit", target)["complete"]
    assert np.array_equal(read_all(target), read_all(str(twin)))
    assert tree_digest(tmp_path / "out") == tree_digest(twin)


def test_a_data_set(data_set: str, twin: Path, tmp_path: Path, run: Command) -> None:
    told = run("info", data_set)
    assert (told["format"], told["spacing_nm"]) == ("hdf5", [46.0, 4.6, 4.6])
    target = f"{tmp_path}/out"
    assert run("plan", data_set, target, *OPTIONS)["source"] == told
    assert run("run", data_set, target, *OPTIONS)["complete"]
    assert run("audit", target)["complete"]
    assert tree_digest(tmp_path / "out") == tree_digest(twin)


@pytest.mark.slow
def test_a_stack_and_an_mrc_file(em: np.ndarray, twin: Path, tmp_path: Path, run: Command) -> None:
    metadata = {"axes": "ZYX", "spacing": 0.046, "unit": "um"}
    resolution = (1 / 0.0046, 1 / 0.0046)
    tifffile.imwrite(tmp_path / "em.tif", em, imagej=True, metadata=metadata, resolution=resolution)
    assert run("run", f"{tmp_path}/em.tif", f"{tmp_path}/a", *OPTIONS)["complete"]
    assert tree_digest(tmp_path / "a") == tree_digest(twin)
    with mrcfile.new(tmp_path / "em.mrc") as file:
        file.set_data(em.astype(np.uint16))
        file.set_volume()
        file.voxel_size = (46, 46, 460)
    assert run("run", f"{tmp_path}/em.mrc", f"{tmp_path}/b", *OPTIONS)["complete"]
    assert np.abs(read_all(f"{tmp_path}/b") - read_all(str(twin)).astype(int)).max() <= 50


@pytest.mark.slow
def test_a_lost_section_is_told_once(sections: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "isochunk.cli",
            "run",
            sections,
            tmp_path / "out",
            *OPTIONS,
            SPACING,
            "--workers=2",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("vnc_0107.tif") == 1, done.stderr


def test_targets_among_sections_are_refused(
    sections: Path, data_set: str, tmp_path: Path, run: Command
) -> None:
    within = r"lies within the source"
    link = tmp_path / "link"
    link.symlink_to(sections)
    file = data_set.partition(":")[0]
    for source, target, message in (
        (str(sections), f"{sections}/out", within),
        (str(sections), f"file://{link}/out", within),
        (str(sections), str(sections), "source and target are both"),
        (str(sections), str(tmp_path), "lies within the target"),
        (data_set, f"{file}/out", within),
        (data_set, file, within),
        (data_set, data_set, "source and target are both"),
        (str(sections), f"{tmp_path}/out.h5:/raw", "hdf5 cannot be written; --format can be"),
        (str(sections), f"tiff://{tmp_path}/out", "tiff cannot be written; --format can be"),
    ):
        before = sorted(sections.iterdir())
        for options in ((), ("--overwrite",)):
            told = run("run", source, target, *OPTIONS, SPACING, *options, code=2)
            assert message in told["error"], told
        assert sorted(sections.iterdir()) == before


def test_what_neuroglancer_cannot_read(
    sections: Path, data_set: str, run: Command, caplog: pytest.LogCaptureFixture
) -> None:
    assert (
        "is hdf5, which neuroglancer does not read; convert it"
        in run("view", data_set, code=2)["error"]
    )
    job = isochunk.Job(
        source=str(sections), target="preview", model="cubic", source_spacing="46,4.6,4.6"
    )
    with preview(job) as viewer:
        assert viewer.url
    assert f"neuroglancer does not read tiff: file://{sections} is not shown" in caplog.text


@pytest.mark.parametrize(
    ("package", "name"), [("h5py", "em.h5"), ("mrcfile", "em.mrc"), ("tifffile", "em.tif")]
)
def test_the_extra_that_is_not_installed(
    em: np.ndarray, data_set: str, tmp_path: Path, package: str, name: str
) -> None:
    tifffile.imwrite(tmp_path / "em.tif", em)
    with mrcfile.new(tmp_path / "em.mrc") as file:
        file.set_data(em.astype(np.uint16))
    code = (
        f"import sys; sys.modules[{package!r}] = None; from isochunk.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "info", tmp_path / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"read with the package {package}, which is not installed" in done.stderr
    assert "pip install 'isochunk[files]'" in done.stderr


@pytest.mark.slow
def test_a_damaged_section_fails_its_blocks_and_is_named(
    sections: Path, twin: Path, tmp_path: Path, run: Command
) -> None:
    """Of 20 sections 16 are looked at before; this is one of the others."""
    damaged = sections / "vnc_0115.tif"
    whole = damaged.read_bytes()
    target = f"{tmp_path}/out"
    planned = run("plan", str(sections), target, *OPTIONS, SPACING)
    damaged.write_bytes(whole[: len(whole) // 2])
    run("plan", str(sections), target, *OPTIONS, SPACING)
    told = run("run", str(sections), target, *OPTIONS, SPACING, code=1)
    assert 0 < told["blocks"]["failed"] < planned["blocks"]
    assert "vnc_0115.tif" in json.dumps(told)
    damaged.write_bytes(whole)
    told = run("run", str(sections), target, *OPTIONS, SPACING)
    assert told["complete"]
    assert told["blocks"]["resumed"] > 0
    assert tree_digest(tmp_path / "out") == tree_digest(twin)
