"""What goes wrong with storage, over real HTTP: each failure has its own end, with box and URL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import servers
from cloudvolume import CloudVolume
from cloudvolume.chunks import NEEDS_INSTALL

from isochunk.core.geometry import Box, Spacing
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.engine.ledger import read_job
from isochunk.errors import (
    AccessError,
    CorruptDataError,
    NotFoundError,
    StorageError,
    StorageTimeoutError,
    UsageError,
)
from isochunk.storage.cloudvolume import open_cloudvolume
from isochunk.storage.open import Access, create_volume, open_store, open_volume
from isochunk.storage.url import clean, parse_url

SPACING = Spacing.parse("46,4.6,4.6")
BOX = Box((0, 0, 0), (16, 32, 32))
QUICK = Access(timeout_s=20, retries=2, cache_bytes=0)
FORMATS = [("precomputed", "raw"), ("precomputed", "png"), ("zarr3", "zstd"), ("zarr2", "blosc")]


def make(folder, format_="precomputed", encoding="raw", shard=None):
    zero = Fraction(0)
    level = LevelSpec("k", BOX, SPACING, (16, 16, 16), shard)
    spec = VolumeSpec(str(folder), format_, "uint8", encoding, (zero, zero, zero), (level,))
    voxels = np.random.default_rng(0).integers(1, 255, BOX.shape, np.uint8)
    create_volume(spec).write(BOX, voxels)
    return voxels


@pytest.mark.parametrize(("format_", "encoding"), FORMATS)
@pytest.mark.parametrize(
    ("fault", "error"),
    [(403, AccessError), (500, StorageError), (429, StorageError), ("truncate", CorruptDataError)],
)
def test_faults_while_reading(tmp_path, format_, encoding, fault, error):
    voxels = make(tmp_path / "v", format_, encoding)
    faults = servers.Faults()
    with servers.file_server(tmp_path, faults) as url:
        volume = open_volume(f"{url}/v", QUICK)
        first = {"precomputed": "/k/0-16_0-16_0-16", "zarr2": "/k/0/0/0", "zarr3": "/k/c/0/0/0"}
        faults.always[first[format_]] = fault
        with pytest.raises(error, match=rf"box {BOX} of level 0 of {url}/v") as caught:
            volume.read(BOX)
        if fault in (500, 429):
            assert type(caught.value) is StorageError
            assert faults.count("GET", first[format_]) == 1 + QUICK.retries
        untouched = Box((0, 16, 0), (16, 32, 32))
        np.testing.assert_array_equal(volume.read(untouched), voxels[untouched.slices((0, 0, 0))])
        faults.always.clear()  # the cause is gone: the same volume reads
        np.testing.assert_array_equal(volume.read(BOX), voxels)


def test_passing_faults_are_retried_quickly(tmp_path):
    voxels = make(tmp_path / "v")
    faults = servers.Faults(first={"/k/": [503, 429, 500, 503]})
    with servers.file_server(tmp_path, faults) as url:
        np.testing.assert_array_equal(open_volume(f"{url}/v").read(BOX), voxels)
        assert faults.count("GET", "/k/") == 4 + 4
        assert not faults.first["/k/"]


def test_no_answer_ends_with_the_time_allowed(tmp_path):
    make(tmp_path / "v")
    faults = servers.Faults(always={"/k/": "stall"})
    with servers.file_server(tmp_path, faults) as url:
        volume = open_volume(f"{url}/v", Access(timeout_s=0.5))
        with pytest.raises(StorageTimeoutError, match=rf"box {BOX} .*{url}/v: no answer within"):
            volume.read(BOX)


def test_stalled_metadata_ends_too(tmp_path):
    make(tmp_path / "v")
    with (
        servers.file_server(tmp_path, servers.Faults(always={"/info": "stall"})) as url,
        pytest.raises(StorageTimeoutError, match=r"reading 'info' of .*no answer"),
    ):
        open_volume(f"{url}/v", Access(timeout_s=0.5))


def test_absent_chunks_of_precomputed_over_http(tmp_path):
    make(tmp_path / "v")
    info = json.loads((tmp_path / "v" / "info").read_text())
    del info["isochunk"]
    (tmp_path / "v" / "info").write_text(json.dumps(info))
    (tmp_path / "v" / "k" / "0-16_0-16_0-16").unlink()
    with servers.file_server(tmp_path) as url:
        with pytest.raises(NotFoundError, match=rf"box {BOX} of {url}/v: object k/0-16_0-16_0-16"):
            open_volume(f"{url}/v", QUICK).read(BOX)
        background = open_volume(f"{url}/v", Access(missing="background")).read(BOX)
        assert not background[:, :16, :16].any()


@pytest.mark.parametrize("shard", [None, (16, 32, 32)])
def test_noise_in_place_of_an_object(tmp_path, shard):
    make(tmp_path / "v", "zarr3", "zstd", shard)
    path = tmp_path / "v" / "k" / "c" / "0" / "0" / "0"
    path.write_bytes(np.random.default_rng(1).bytes(path.stat().st_size))
    with pytest.raises(CorruptDataError, match=rf"box {BOX}"):
        open_volume(str(tmp_path / "v")).read(BOX)


def test_metadata_that_is_not_json(tmp_path):
    (tmp_path / "info").write_text('{"scales": [')
    with pytest.raises(CorruptDataError, match=r"/info is not JSON"):
        open_volume(str(tmp_path))
    (tmp_path / "info").write_text('{"type": "image"}')
    with pytest.raises(CorruptDataError, match="not a precomputed volume"):
        open_volume(str(tmp_path))


@pytest.mark.parametrize("url", ["/nowhere/at/all", "zarr3:///nowhere", "n5:///nowhere"])
def test_nothing_there(url):
    with pytest.raises(NotFoundError, match=r"no .* volume at file:///nowhere.*check the URL"):
        open_volume(url)


def test_a_level_that_is_missing(tmp_path):
    make(tmp_path / "v", "zarr3", "zstd")
    (tmp_path / "v" / "k" / "zarr.json").unlink()
    with pytest.raises(NotFoundError, match=r"lists a level 'k' but k/zarr.json is missing"):
        open_volume(str(tmp_path / "v"))


@pytest.mark.parametrize("keys", [None, ("AKIDOTHER", "SECRETOTHER999")])
def test_credentials_missing_or_wrong(s3, monkeypatch, tmp_path, keys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    if keys:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[1])
    for attempt in (
        lambda: open_volume(f"{s3}/v", QUICK),
        lambda: open_store(f"{s3}/v", QUICK).put("a", b"b"),
        lambda: make(f"{s3}/v"),
    ):
        with pytest.raises(AccessError, match="AWS_ACCESS_KEY_ID and AWS_SECRET") as caught:
            attempt()
        assert "SECRETOTHER999" not in str(caught.value)
        assert "AKIDOTHER" not in str(caught.value)


def test_s3_survives_passing_faults_and_reports_lasting_ones(s3, s3_server, monkeypatch):
    faults = servers.Faults()
    with servers.proxy(s3_server.endpoint_url, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        faults.first["/k/"] = [503, 500, 429, 503]
        voxels = make(f"{s3}/v")
        faults.first["/k/"] = [503, 500, 429, 503]
        np.testing.assert_array_equal(open_volume(f"{s3}/v").read(BOX), voxels)
        volume = open_volume(f"{s3}/v", QUICK)
        for fault, error in [(403, AccessError), (503, StorageError), ("truncate", StorageError)]:
            faults.always["/k/0-16_0-16"] = fault
            with pytest.raises(error, match=rf"box {BOX} of level 0 of {s3}/v"):
                volume.read(BOX)


def test_a_list_that_is_refused_is_not_empty(gcs, gcs_server, monkeypatch):
    """tensorstore gives an empty list for what GCS answers with 401 and 403."""
    faults = servers.Faults()
    with servers.proxy(gcs_server.endpoint_url, faults) as url:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        store = open_store(f"{gcs}/v", QUICK)
        store.put(".isochunk/job.json", b"{}")
        assert store.keys() == [".isochunk/job.json"]
        assert store.keys("x") == []
        assert store.absent(["a", ".isochunk/job.json"]) == ["a"]
        faults.rules = [servers.Rule(fault="expired")]
        for attempt in (store.keys, lambda: store.exists("a")):
            with pytest.raises(AccessError, match=r"access refused"):
                attempt()
        faults.rules = [servers.Rule(fault="expired", part="/o?")]  # lists only
        assert store.absent(["a", ".isochunk/job.json"]) == ["a"]
        with pytest.raises(AccessError, match=r"can be read, but is not listed"):
            read_job(store)


def test_a_bucket_that_does_not_exist(s3, gcs):
    for scheme in ("s3", "gs"):
        with pytest.raises(NotFoundError):
            open_volume(f"{scheme}://no-such-bucket-here/v", QUICK)
        with pytest.raises(StorageError):
            open_store(f"{scheme}://no-such-bucket-here/v", QUICK).put("a", b"b")


@pytest.mark.parametrize(
    ("text", "url", "format_"),
    [
        ("gs://bucket/a/b/", "gs://bucket/a/b", None),
        ("precomputed://gs://bucket/a", "gs://bucket/a", "precomputed"),
        ("zarr://s3://bucket/a", "s3://bucket/a", "zarr"),
        ("zarr3://https://host:8/a", "https://host:8/a", "zarr3"),
        ("s3://bucket/a/|zarr3:", "s3://bucket/a", "zarr3"),
        ("s3://bucket/a|zarr2:inner/s0", "s3://bucket/a/inner/s0", "zarr2"),
        ("gs://bucket/a|neuroglancer-precomputed:", "gs://bucket/a", "precomputed"),
        ("n5:///data/a.n5", "file:///data/a.n5", "n5"),
        ("file:///data/a%20b", "file:///data/a b", None),
        ("/data/a", "file:///data/a", None),
        ("s3+https://host/bucket/a", "s3+https://host/bucket/a", None),
        (
            "graphene://https://host/segmentation/table/x/",
            "graphene://https://host/segmentation/table/x",
            "graphene",
        ),
    ],
)
def test_urls(text, url, format_):
    location = parse_url(text)
    assert (location.url, location.format) == (url, format_)
    assert parse_url(url).url == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://host/a",
        "s3://b/a",
        "s3:///a",
        "file://relative/a",
        "gs://bucket/a|zip:x",
        "https://user:secret-word@host/a",
        "https://host/a?X-Amz-Signature=secret-word",
        "graphene://https://user:secret-word@host/a",
    ],
)
def test_urls_that_are_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_url(text)
    assert "secret-word" not in str(caught.value)


def test_signatures_are_stripped_from_texts():
    text = "GET 'https://u:p@h/a?X-Amz-Signature=s' failed; https://h/b?sig=s]"
    assert clean(text) == "GET 'https://h/a' failed; https://h/b]"


# cloud-volume reads what tensorstore does not.


@pytest.mark.parametrize("encoding", ["compresso", "crackle"])
@pytest.mark.parametrize("place", ["file", "s3", "http"])
def test_encodings_of_cloudvolume(request, tmp_path, encoding, place):
    labels = np.random.default_rng(0).integers(0, 9, (4, 5, 3)).repeat(8, 0).repeat(8, 1).repeat(
        8, 2).astype(np.uint16)  # fmt: skip  # (x, y, z)
    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type="segmentation",
        data_type="uint16",
        encoding=encoding,
        resolution=[4.6, 4.6, 46],
        voxel_offset=[10, 20, 30],
        chunk_size=[16, 16, 16],
        volume_size=labels.shape,
    )
    root = request.getfixturevalue("s3") if place == "s3" else f"file://{tmp_path}"
    writer = CloudVolume(f"precomputed://{root}/v", info=info, compress=False, progress=False)
    writer.commit_info()
    writer[:, :, :] = labels
    with servers.file_server(tmp_path) as http:
        volume = open_volume(f"{http}/v" if place == "http" else f"{root}/v")
        assert volume.spec.format == "cloudvolume"
        assert volume.spec.encoding == encoding
        assert volume.spec.spacing == SPACING
        assert volume.spec.box == Box((30, 20, 10), (54, 60, 42))
        np.testing.assert_array_equal(volume.read(volume.spec.box), labels.T)
        part = Box((33, 25, 11), (50, 41, 42))
        np.testing.assert_array_equal(volume.read(part), labels.T[part.slices((30, 20, 10))])


def encoded(folder, encoding, chunk):
    """Write a volume of one chunk."""
    scale = {
        "key": "a",
        "size": [32, 32, 4],
        "resolution": [10, 10, 40],
        "chunk_sizes": [[32, 32, 4]],
        "encoding": encoding,
    }
    info = {"type": "image", "data_type": "uint8", "num_channels": 1, "scales": [scale]}
    (folder / "a").mkdir()
    (folder / "a" / "0-32_0-32_0-4").write_bytes(chunk)
    (folder / "info").write_text(json.dumps(info))
    return str(folder)


def test_jpeg_xl(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    voxels = np.random.default_rng(0).integers(0, 255, (4, 32, 32), np.uint8)
    chunk = imagecodecs.jpegxl_encode(voxels.reshape(4 * 32, 32), lossless=True)
    volume = open_volume(encoded(tmp_path, "jxl", chunk))
    assert volume.spec.encoding == "jxl"
    np.testing.assert_array_equal(volume.read(volume.spec.box), voxels)


def test_an_encoding_whose_library_is_not_installed(tmp_path):
    """Said when the volume is opened, and not by the first block."""
    encoding, package = next(iter(NEEDS_INSTALL.items()))  # zfpc, for one, comes with nothing
    with pytest.raises(UsageError, match=f"stored as {encoding}, .*; pip install {package}"):
        open_cloudvolume(parse_url(encoded(tmp_path, encoding, b"x")), Access())


def test_cloudvolume_errors(tmp_path):
    labels = np.ones((16, 16, 32), np.uint16)
    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type="segmentation",
        data_type="uint16",
        encoding="crackle",
        resolution=[8, 8, 8],
        voxel_offset=[0, 0, 0],
        chunk_size=[16, 16, 16],
        volume_size=labels.shape,
    )
    writer = CloudVolume(f"file://{tmp_path}/v", info=info, compress=False, progress=False)
    writer.commit_info()
    writer[:, :, :] = labels
    volume = open_volume(str(tmp_path / "v"))
    chunk = tmp_path / "v" / "8_8_8" / "0-16_0-16_0-16"
    chunk.write_bytes(b"noise" * 10)
    box = volume.spec.box
    with pytest.raises(StorageError, match=rf"box {box} of level 0 of file://{tmp_path}/v"):
        volume.read(box)
    chunk.unlink()
    with pytest.raises(NotFoundError, match=rf"box {box}"):
        open_volume(str(tmp_path / "v")).read(box)
    assert not open_volume(str(tmp_path / "v"), Access(missing="background")).read(box)[:16].any()


GRAPHENE = """
import sys
import numpy as np
from isochunk.storage.open import open_volume
from isochunk.errors import AccessError
try:
    volume = open_volume(sys.argv[1])
except AccessError as error:
    print("refused", error)
else:
    print(volume.spec.format, volume.spec.box, volume.spec.spacing)
    print(int(volume.read(volume.spec.box).sum()))
"""


@pytest.mark.parametrize("token", [True, False])
def test_graphene_server(tmp_path, token):
    """A chunked graph names a precomputed volume as its images; the token comes from a file."""
    voxels = make(tmp_path / "data")
    info = json.loads((tmp_path / "data" / "info").read_text())
    info.update(
        data_dir=f"file://{tmp_path}/data",
        app={"supported_api_versions": [0, 1]},
        graph={"chunk_size": [16, 16, 16], "n_layers": 2, "spatial_bit_masks": {"1": 1}},
    )
    table = tmp_path / "segmentation" / "table" / "sample"
    table.mkdir(parents=True)
    (table / "info").write_text(json.dumps(info))
    if token:
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "cave-secret.json").write_text('{"token": "abc123"}')
    with servers.file_server(tmp_path) as url:
        answer = subprocess.run(  # the folder of the secrets is read at import
            [sys.executable, "-c", GRAPHENE, f"graphene://{url}/segmentation/table/sample"],
            env={**os.environ, "CLOUD_VOLUME_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    if token:
        lines = answer.stdout.splitlines()
        assert lines[-2:] == [f"cloudvolume {BOX} {SPACING}", str(int(voxels.sum()))]
    else:
        assert answer.stdout.startswith("refused")
        assert "cave-secret.json" in answer.stdout


def test_import_starts_nothing():
    code = "import sys, isochunk; print([m for m in sys.modules if m.startswith('tensorstore')])"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_a_refused_connection_ends_after_the_retries():
    with pytest.raises(StorageError, match=f"All {QUICK.retries} retry attempts failed"):
        open_volume(f"http://127.0.0.1:{servers.free_port()}/v", QUICK)
