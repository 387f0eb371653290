"""Predictions on demand over HTTP are the voxels that a run writes."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import servers
from jobs import noise, read_all, start, write_source

import isochunk
from isochunk.core.geometry import Box
from isochunk.core.voxels import pool
from isochunk.storage.open import Access, open_volume
from isochunk.viewing.preview import CHUNK, preview

SHAPE = (13, 90, 140)
OFFSET = (4, -8, 16)


def get(url: str) -> tuple[int, bytes]:
    """Return the status and body of an answer."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A source with an offset, 40 x 10 x 10 nm."""
    return write_source(f"file://{tmp_path_factory.mktemp('data')}/in", noise(SHAPE), offset=OFFSET)


@pytest.fixture(scope="module")
def batch(source: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same job, written by a run."""
    target = f"{tmp_path_factory.mktemp('data')}/out"
    assert isochunk.run(isochunk.plan(job(source, target))).complete
    return target


def job(source: str, target: str = "preview", **options: object) -> isochunk.Job:
    return isochunk.Job(source=source, target=target, **{"model": "cubic", **options})


def shown(viewer: isochunk.viewing.server.RunningViewer) -> str:
    """Return the URL of the predicted volume that a viewer shows."""
    layers = viewer.client.state.to_json()["layers"]
    layer = next(layer for layer in layers if layer["name"] == "result")
    source = layer["source"]
    url: str = source["url"] if isinstance(source, dict) else source
    return open_volume(url).spec.url.rstrip("/")


@pytest.fixture(scope="module")
def url(source: str) -> Iterator[str]:
    """URL of a preview that is being served."""
    with preview(job(source)) as viewer:
        yield shown(viewer)


def chunks(info: dict[str, object], number: int) -> dict[str, Box]:
    """Return key and box of every chunk of a scale, from its info alone."""
    scale = info["scales"][number]  # type: ignore[index]
    lo, size, step = scale["voxel_offset"], scale["size"], scale["chunk_sizes"][0]
    spans = [
        [(lo[a] + s, lo[a] + min(s + step[a], size[a])) for s in range(0, size[a], step[a])]
        for a in range(3)
    ]
    return {
        f"{scale['key']}/{x[0]}-{x[1]}_{y[0]}-{y[1]}_{z[0]}-{z[1]}": Box(
            (z[0], y[0], x[0]), (z[1], y[1], x[1])
        )
        for x in spans[0]
        for y in spans[1]
        for z in spans[2]
    }


def test_every_chunk_of_every_level_is_what_a_run_writes(url: str, batch: str) -> None:
    info = json.loads(get(f"{url}/info")[1])
    assert info["data_type"] == "uint8"
    assert [s["resolution"] for s in info["scales"]] == [[10] * 3, [20] * 3, [40] * 3]
    assert info["scales"][0]["voxel_offset"] == [16, -8, 16]
    assert info["scales"][0]["chunk_sizes"] == [list(reversed(CHUNK))]
    wanted = read_all(batch)
    first = Box.from_shape(wanted.shape, (16, -8, 16))
    for number in range(3):
        keys = chunks(info, number)
        with ThreadPoolExecutor(4) as browsers:
            answers = list(browsers.map(lambda key: get(f"{url}/{key}"), keys))
        for box, (status, body) in zip(keys.values(), answers, strict=True):
            assert status == 200
            np.testing.assert_array_equal(
                np.frombuffer(body, np.uint8).reshape(box.shape), wanted[box.slices(first.lo)]
            )
        np.testing.assert_array_equal(wanted, read_all(batch, number))
        wanted = pool(wanted, (2, 2, 2))
        first = Box.from_shape(wanted.shape, (16 >> number + 1, -8 >> number + 1, 16 >> number + 1))


def test_it_opens_as_a_volume(url: str, batch: str) -> None:
    volume = open_volume(f"precomputed://{url}")
    written = isochunk.open(batch).spec
    assert [(v.box, v.spacing) for v in volume.spec.levels] == [
        (v.box, v.spacing) for v in written.levels[:3]
    ]
    assert volume.spec.corner_nm == written.corner_nm
    box = Box.parse("20:61,-5:70,30:140")
    np.testing.assert_array_equal(volume.read(box), isochunk.open(batch).read(box))


def test_other_paths_and_other_secrets_are_not_found(url: str) -> None:
    key = json.loads(get(f"{url}/info")[1])["scales"][0]["key"]
    good = "16-80_-8-56_16-48"
    assert get(f"{url}/{key}/{good}")[0] == 200
    for path in (
        "",
        "infos",
        "info/x",
        key,
        f"{key}/",
        f"{key}/x",
        f"{key}/17-81_-8-56_16-48",
        f"{key}/16-80_-8-56",
        f"{key}/16-80_-8-56_16-48_0-1",
        f"{key}/160-224_-8-56_16-48",
        f"{key}/16-81_-8-56_16-48",
        f"80_80_80/{good}",
        "../info",
        f"{key}/{good}.gz",
        f"{key}/--_--_--",
        "zarr.json",
    ):
        assert get(f"{url}/{path}")[0] == 404, path
    host, _, _ = url.rpartition("/")
    for secret in ("", "guess", "%00"):
        assert get(f"{host}/{secret}/info")[0] == 404


def test_head_is_get_without_the_body(url: str) -> None:
    request = urllib.request.Request(f"{url}/info", method="HEAD")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.read() == b""
        assert int(answer.headers["Content-Length"]) == len(get(f"{url}/info")[1])


def test_a_box_and_a_spacing(source: str, tmp_path: Path) -> None:
    options = {"box": "6:11,0:50,20:70", "spacing": "20,10,10"}
    assert isochunk.run(isochunk.plan(job(source, f"{tmp_path}/out", **options))).complete
    with preview(job(source, **options)) as viewer:
        volume = open_volume(shown(viewer))
        assert volume.spec.box == Box.parse("12:22,0:50,20:70")
        np.testing.assert_array_equal(volume.read(volume.spec.box), read_all(f"{tmp_path}/out"))


def test_a_chunk_that_cannot_be_read_is_an_error_and_not_black(tmp_path: Path) -> None:
    """A 404 would be shown as background."""
    write_source(f"file://{tmp_path}/in", noise((8, 64, 64)), chunk=(8, 32, 32))
    faults = servers.Faults()
    with servers.file_server(tmp_path, faults) as http:
        with preview(job(f"{http}/in", timeout_s=10)) as viewer:
            url = shown(viewer)
            key = json.loads(get(f"{url}/info")[1])["scales"][0]["key"]
            faults.always["/32-64_32-64_0-8"] = 403
            status, body = get(f"{url}/{key}/0-64_0-64_0-32")
            assert status == 500
            assert b"access refused" in body
            with pytest.raises(isochunk.errors.StorageError):
                open_volume(url, Access(retries=1)).read(Box.parse("0:32,0:64,0:64"))
            faults.always.clear()
            assert get(f"{url}/{key}/0-64_0-64_0-32")[0] == 200
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{url}/info", timeout=5)


def test_the_command_serves_until_it_is_ended(source: str) -> None:
    process = start("serve", source, "--model=cubic", "--json", f"--port={servers.free_port()}")
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert set(told) == {"neuroglancer_url"}
        status, page = get(told["neuroglancer_url"])
        assert status == 200
        assert b"neuroglancer" in page.lower()
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert out == b""
        assert b"Traceback" not in err
        assert process.returncode in (0, 1)
    finally:
        process.kill()
        process.communicate()
