"""A volume that was opened: sliced like an array, as a lazy array, shown in a notebook."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client
from jobs import noise, read_all, write_source
from PIL import Image

import isochunk
from isochunk.core.geometry import Box
from isochunk.core.tissue import coarse
from isochunk.errors import UsageError
from isochunk.pages.thumbnail import shown_level

VOXELS = noise((20, 40, 50), "uint16")
INDICES: list[Any] = [
    3,
    -1,
    ...,
    slice(2, 5),
    (slice(None), 7),
    (slice(-4, None), slice(30, 100), slice(0, 50, 7)),
    (slice(None, None, -3), 5, slice(40, 2, -1)),
    (..., 9),
    (2, ..., slice(1, 2)),
    (np.int64(4), slice(5, 5), slice(None)),
    (1, 2, 3),
]


@pytest.fixture
def volume(tmp_path: Path) -> isochunk.Volume:
    return isochunk.open(write_source(f"file://{tmp_path}/in", VOXELS, offset=(7, 100, 2000)))


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_it_is_sliced_as_numpy_slices(volume: isochunk.Volume, index: Any) -> None:
    np.testing.assert_array_equal(volume[index], VOXELS[index])
    assert volume[index].dtype == VOXELS.dtype


def test_it_has_what_an_array_has(volume: isochunk.Volume) -> None:
    assert (volume.shape, volume.dtype, volume.ndim, len(volume)) == ((20, 40, 50), "uint16", 3, 20)
    assert volume.spacing_nm == (40.0, 10.0, 10.0)
    np.testing.assert_array_equal(np.asarray(volume), VOXELS)
    assert repr(volume) == f"<isochunk.Volume {volume.spec.url} (20, 40, 50) uint16>"


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (20, "z is 0 to 19, or -20 to -1 from its end; got 20"),
        ((0, 0, -51), "x is 0 to 49, or -50 to -1 from its end; got -51"),
        ((0, 0, 0, 0), "a volume has axes z, y and x; got"),
        ((..., 1, ...), "a volume has axes z, y and x; got"),
        ("z", "indexed with integers and slices; got 'z'"),
        (([1, 2], 0, 0), "indexed with integers and slices"),
    ],
    ids=str,
)
def test_what_is_no_place_in_it_is_refused(volume: isochunk.Volume, index: Any, said: str) -> None:
    with pytest.raises(IndexError, match=re.escape(said)):
        volume[index]


def test_of_a_huge_volume_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    huge = zarr.create_array(
        tmp_path / "huge", shape=(10**6,) * 3, chunks=(64, 64, 64), dtype="uint8"
    )
    huge[500_000:500_064, :64, 999_936:] = 7
    volume = isochunk.open(f"{tmp_path}/huge", source_spacing="40,4,4")
    assert (volume[500_010:500_012, 3, -9:-1] == 7).all()
    assert (volume[499_999, 3, -9:-1] == 0).all()
    assert "data:image/png" in volume._repr_html_()  # its middle alone


def test_coarser_levels_are_volumes_too(tmp_path: Path) -> None:
    source, target = isochunk.sample_tissue(tmp_path / "in"), f"{tmp_path}/out"
    job = isochunk.Job(source=source, target=target, model="cubic", levels=3)
    assert isochunk.run(isochunk.plan(job)).complete
    level = isochunk.open(target).level(2)
    assert level.shape == (40, 40, 40)
    assert level.spacing_nm == (40.0, 40.0, 40.0)
    np.testing.assert_array_equal(level[3:9, 5], read_all(target, 2)[3:9, 5])
    np.testing.assert_array_equal(level.dask()[3:9, 5].compute(), level[3:9, 5])
    with pytest.raises(UsageError, match="has levels 0 to 2; got 3: choose one of them"):
        level.level(3)


def test_workers_read_it_as_a_lazy_array(volume: isochunk.Volume, client: Client) -> None:
    lazy = volume.dask()
    assert (lazy.shape, lazy.dtype) == (VOXELS.shape, VOXELS.dtype)
    part = client.compute(lazy[2:9, :, ::5]).result()
    mean = client.compute(lazy.mean(axis=0)).result()
    last = client.submit(lambda sent: sent[-1], volume).result()
    np.testing.assert_array_equal(part, VOXELS[2:9, :, ::5])
    np.testing.assert_allclose(mean, VOXELS.mean(axis=0))
    np.testing.assert_array_equal(last, VOXELS[-1])


def test_its_chunks_are_whole_stored_objects(tmp_path: Path) -> None:
    huge = zarr.create_array(
        tmp_path / "huge", shape=(5000, 9000, 9000), chunks=(64, 100, 128), dtype="uint8"
    )
    lazy = isochunk.open(f"{huge.store_path}", source_spacing="40,4,4").dask()
    for sizes, chunk in zip(lazy.chunks, huge.chunks, strict=True):
        assert all(size % chunk == 0 for size in sizes[:-1])
    assert 10e6 < np.prod([max(sizes) for sizes in lazy.chunks]) < 300e6


def pictures(html: str) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Decode what is shown, with its height and width on the screen."""
    found = re.findall(r'base64,([^"]+)" width="(\d+)" height="(\d+)"', html)
    return [
        (np.asarray(Image.open(BytesIO(base64.b64decode(stored)))), (int(high), int(wide)))
        for stored, wide, high in found
    ]


def test_a_notebook_shows_what_it_is_and_its_middle(tmp_path: Path) -> None:
    html = isochunk.open(isochunk.sample_tissue(tmp_path / "in"))._repr_html_()
    assert "40 x 160 x 160 voxels (z, y, x) of 40 x 10 x 10 nm, uint8" in html
    (xz, _), (_, _), (xy, size) = pictures(html)
    tissue = coarse()
    assert size == (256, 256)
    assert [size for _, size in pictures(html)] == [(256, 256)] * 3  # sections are drawn thick
    assert np.corrcoef(xy.ravel(), tissue[20].ravel())[0, 1] > 0.99
    assert np.corrcoef(xz.ravel(), tissue[:, 80].ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("sizes", "shown"), [((1000, 500, 250, 125), 2), ((1000, 500), 1), ((200, 100), 0)]
)
def test_its_picture_is_of_the_finest_level_that_is_small(
    volume: isochunk.Volume, sizes: tuple[int, ...], shown: int
) -> None:
    (level,) = volume.spec.levels
    levels = tuple(replace(level, box=Box.from_shape((9, n, n))) for n in sizes)
    assert shown_level(replace(volume.spec, levels=levels)) == shown


def test_a_picture_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    volume = isochunk.open(isochunk.sample_tissue(tmp_path / "in"))
    for chunk in (tmp_path / "in" / "10_10_40").iterdir():
        chunk.write_bytes(b"no chunk")
    html = volume._repr_html_()
    assert "40 x 160 x 160 voxels" in html
    assert "10_10_40" in html.partition("picture")[2]
