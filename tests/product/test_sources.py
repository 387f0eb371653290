"""Sources that do not say all that must be known, or that hold voxels of other types."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorstore as ts
import zarr
from jobs import Command, noise, write_source

SHAPE = (12, 64, 64)
CUBIC = ("--model", "cubic")
WINDOW = (
    r"uint8 and uint16 are used as they are: say which values are black and white with "
    r"--window LOW,HIGH, or --window auto to measure them"
)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """40 x 10 x 10 nm, 12 x 64 x 64 voxels."""
    return write_source(f"file://{tmp_path}/in", noise(SHAPE))


def float_source(folder: Path) -> str:
    array = zarr.create_array(folder, shape=SHAPE, chunks=SHAPE, dtype="float32")
    array[:] = 0.5
    return str(folder)


def signed_source(folder: Path) -> str:
    write_source(f"file://{folder}", noise((4, 32, 32)))
    info = json.loads((folder / "info").read_text())
    (folder / "info").write_text(json.dumps({**info, "data_type": "int16"}))
    return str(folder)


def label_source(folder: Path) -> str:
    write_source(f"file://{folder}", noise((4, 32, 32)))
    info = json.loads((folder / "info").read_text())
    (folder / "info").write_text(json.dumps({**info, "data_type": "uint64"}))
    return str(folder)


def rgb_source(folder: Path) -> str:
    info = {
        "driver": "neuroglancer_precomputed",
        "kvstore": f"file://{folder}/",
        "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 3},
        "scale_metadata": {
            "size": [32, 32, 4],
            "resolution": [10, 10, 40],
            "chunk_size": [32, 32, 4],
            "encoding": "raw",
        },
    }
    ts.open(info, create=True).result()[...] = 7
    return str(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (float_source, rf"holds float32; {WINDOW}"),
        (signed_source, rf"holds int16; {WINDOW}"),
        (label_source, r"holds uint64; uint8 and uint16 are used as they are: convert it first"),
        (rgb_source, r"/in has 3 channels; choose one with --channel N, from 0 to 2"),
    ],
)
def test_voxels_that_are_not_supported(
    run: Command, tmp_path: Path, make: Callable[[Path], str], message: str
) -> None:
    job = (make(tmp_path / "in"), f"{tmp_path}/out", *CUBIC, "--source-spacing=40,10,10")
    said = run("plan", *job, code=2)["error"]
    assert run("run", *job, code=2)["error"] == said
    assert re.search(message, said), said
    assert not (tmp_path / "out").exists()


def unit_source(folder: Path) -> str:
    """OME-Zarr whose axes have no unit."""
    root = zarr.open_group(folder, mode="w", zarr_format=2)
    root.create_array("s0", shape=SHAPE, chunks=SHAPE, dtype="uint8")[:] = noise(SHAPE)
    scale = {"type": "scale", "scale": [4.0, 1.0, 1.0]}
    root.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": a, "type": "space"} for a in "zyx"],
            "datasets": [{"path": "s0", "coordinateTransformations": [scale]}],
        }
    ]
    return str(folder)


def plain_source(folder: Path) -> str:
    """An array that stands alone."""
    zarr.create_array(folder, shape=SHAPE, chunks=SHAPE, dtype="uint8")[:] = noise(SHAPE)
    return str(folder)


READERS = {
    "info": ("info", "{source}"),
    "inspect": ("inspect", "{source}"),
    "plan": ("plan", "{source}", "{out}", *CUBIC),
    "run": ("run", "{source}", "{out}", *CUBIC),
    "serve": ("serve", "{source}", *CUBIC),
    "view": ("view", "{good}", "{source}"),
    "evaluate": ("evaluate", "--truth={source}"),
    "train": ("train", "--source={source}", "--out={out}", "--arch=fsrcnn", "--factor=4"),
}
"""Every command that reads a volume it did not write."""


@pytest.mark.parametrize("make", [plain_source, unit_source])
@pytest.mark.parametrize("words", READERS.values(), ids=READERS)
def test_a_voxel_size_that_is_not_known(
    run: Command,
    source: str,
    tmp_path: Path,
    words: tuple[str, ...],
    make: Callable[[Path], str],
) -> None:
    """Each command names its own option, which also Python's users find."""
    places = {"source": make(tmp_path / "bare"), "out": f"{tmp_path}/out", "good": source}
    command = [word.format(**places) for word in words]
    said = run(*command, code=2)["error"]
    assert "--source-spacing Z,Y,X (source_spacing in Python)" in said, said
    assert "Access" not in said
    assert not (tmp_path / "out").exists()
    said = run(*command, "--source-spacing=40", code=2)["error"]
    assert "--source-spacing is '40'; write Z,Y,X in nm" in said


def test_the_voxel_size_that_an_option_gives(run: Command, tmp_path: Path) -> None:
    for make in (plain_source, unit_source):
        bare = make(tmp_path / make.__name__)
        assert run("info", bare, "--source-spacing=40,10,10")["spacing_nm"] == [40, 10, 10]
