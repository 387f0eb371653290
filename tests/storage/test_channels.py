"""One channel and one time point of sources that hold several."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import zarr
from jobs import Command, noise, read_all, stored_digests, write_source

import isochunk
from isochunk.core.codec import to_json
from isochunk.core.geometry import Spacing
from isochunk.errors import UsageError
from isochunk.storage.access import Access
from isochunk.storage.open import open_store, open_volume

CHANNELS, TIMES, SHAPE = 3, 2, (8, 32, 32)
NM = {"t": 1.0, "c": 1.0, "z": 40.0, "y": 10.0, "x": 10.0}
UNITS = {"t": "second", "z": "nanometer", "y": "nanometer", "x": "nanometer"}
TYPES = {"t": "time", "c": "channel"}


def voxels(*sizes: int) -> np.ndarray:
    """Voxels of which no two channels are alike."""
    return noise((*sizes, *SHAPE))  # type: ignore[arg-type]


def ome_zarr(folder: Path, data: np.ndarray, axes: str = "tczyx", version: int = 2) -> str:
    """Write a group of one level with all of its axes, a chunk for each channel and time."""
    root = zarr.open_group(folder, mode="w", zarr_format=version)  # type: ignore[arg-type]
    kept = data.transpose(["tczyx".index(a) for a in axes])
    chunk = [1 if a in "tc" else 16 for a in axes]
    root.create_array("s0", shape=kept.shape, chunks=chunk, dtype=kept.dtype)[:] = kept
    scale = {"type": "scale", "scale": [NM[a] for a in axes]}
    multiscale = {
        "version": "0.4",
        "axes": [
            {"name": a, "type": TYPES.get(a, "space"), **({"unit": UNITS[a]} if a != "c" else {})}
            for a in axes
        ],
        "datasets": [{"path": "s0", "coordinateTransformations": [scale]}],
    }
    if version == 3:
        root.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    else:
        root.attrs["multiscales"] = [multiscale]
    return str(folder)


def precomputed(folder: Path, data: np.ndarray) -> str:
    """Write a volume of several channels, (c, z, y, x)."""
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": f"file://{folder}/",
        "multiscale_metadata": {
            "type": "image",
            "data_type": str(data.dtype),
            "num_channels": len(data),
        },
        "scale_metadata": {
            "size": SHAPE[::-1],
            "resolution": [10, 10, 40],
            "chunk_size": [16, 16, 8],
            "encoding": "raw",
        },
    }
    ts.open(spec, create=True).result()[...].write(data.transpose(3, 2, 1, 0)).result()
    return str(folder)


def n5(folder: Path, data: np.ndarray) -> str:
    """Write an array whose metadata names its axes, x first."""
    spec = {
        "driver": "n5",
        "kvstore": f"file://{folder}/",
        "metadata": {
            "dimensions": data.shape[::-1],
            "blockSize": [16, 16, 8, 1],
            "dataType": str(data.dtype),
            "axes": ["x", "y", "z", "c"],
            "compression": {"type": "gzip"},
        },
    }
    ts.open(spec, create=True).result()[...].write(data.transpose(3, 2, 1, 0)).result()
    return str(folder)


def plain(version: int, names: list[str]) -> Callable[[Path, np.ndarray], str]:
    """Return how to write an array that stands alone."""

    def write(folder: Path, data: np.ndarray) -> str:
        order = ["czyx".index(name[0]) for name in names]
        kept = data.transpose(order)
        told = {"dimension_names": names} if version == 3 else {}
        array = zarr.create_array(
            folder, shape=kept.shape, dtype=kept.dtype, zarr_format=version, **told
        )
        array[:] = kept
        if version == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = names
        return str(folder)

    return write


@pytest.mark.parametrize(("axes", "version"), [("tczyx", 2), ("ctzyx", 3), ("zyxct", 3)])
def test_each_channel_and_time_of_ome_zarr(tmp_path: Path, axes: str, version: int) -> None:
    data = voxels(TIMES, CHANNELS)
    url = ome_zarr(tmp_path / "v", data, axes, version)
    for time in range(TIMES):
        for channel in range(CHANNELS):
            volume = open_volume(url, Access(channel=channel, time=time))
            assert (volume.spec.channel, volume.spec.time) == (channel, time)
            assert volume.spec.spacing == Spacing.parse("40,10,10")
            np.testing.assert_array_equal(volume.read(volume.spec.box), data[time, channel])


WRITERS = {
    "precomputed": precomputed,
    "n5": n5,
    "zarr v2": plain(2, ["c", "z", "y", "x"]),
    "zarr v3, last": plain(3, ["z", "y", "x", "channel"]),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_each_channel(tmp_path: Path, write: Callable[[Path, np.ndarray], str]) -> None:
    data = voxels(CHANNELS)
    url = write(tmp_path / "v", data)
    spacing = Spacing.parse("40,10,10")
    for channel in range(CHANNELS):
        volume = open_volume(url, Access(spacing=spacing, channel=channel))
        assert (volume.spec.channel, volume.spec.time) == (channel, None)
        np.testing.assert_array_equal(volume.read(volume.spec.box), data[channel])
    for asked, message in (
        ({}, r"has 3 channels; choose one with --channel N, from 0 to 2"),
        ({"channel": 3}, r"has 3 channels, and --channel is 3; choose from 0 to 2"),
        ({"channel": 0, "time": 1}, r"has 1 time point, and --time is 1; leave it out"),
    ):
        with pytest.raises(UsageError, match=message):
            open_volume(url, Access(spacing=spacing, **asked))  # type: ignore[arg-type]


def test_a_choice_that_makes_no_difference_is_none(tmp_path: Path) -> None:
    """One channel of one is the volume itself, also to the identity of a job."""
    url = ome_zarr(tmp_path / "v", voxels(1, 1))
    jobs = [
        isochunk.Job(source=url, target=f"{tmp_path}/out", model="cubic", **chosen)
        for chosen in ({}, {"channel": 0, "time": "0"})
    ]
    plans = [isochunk.plan(job) for job in jobs]
    assert plans[0].identity() == plans[1].identity()
    for record in (to_json(jobs[0]), plans[0].identity()["source"], plans[0].source.summary()):
        assert not {"channel", "time"} & set(record)
    with pytest.raises(UsageError, match="has 1 channel, and --channel is 1; leave it out"):
        open_volume(url, Access(channel=1))


def test_axes_that_are_neither(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "v", shape=(3, *SHAPE), dtype="uint8")
    with pytest.raises(UsageError, match=r"axes axis 0, z, y, x .*named c and t"):
        open_volume(str(tmp_path / "v"), Access(spacing=Spacing.parse("40,10,10"), channel=0))


@pytest.mark.parametrize("wrong", ["-1", "one", "1.5"])
def test_numbers_that_are_none(run: Command, tmp_path: Path, wrong: str) -> None:
    url = precomputed(tmp_path / "v", voxels(CHANNELS))
    said = run("info", url, f"--channel={wrong}", code=2)["error"]
    assert f"--channel is {wrong!r}; write a whole number" in said


SMALL = ("--model=cubic", "--chunk=16,16,16", "--shard=32,32,32", "--block=32,32,32")


def test_a_job_on_one_channel(run: Command, s3: str, tmp_path: Path) -> None:
    """In a bucket: planned, run, audited and repaired; another channel is another job."""
    data = voxels(TIMES, CHANNELS)
    bucket = open_store(f"{s3}/in")
    folder = Path(ome_zarr(tmp_path / "v", data))
    for file in folder.rglob("*"):
        if file.is_file():
            bucket.put(str(file.relative_to(folder)), file.read_bytes())
    source, target = f"{s3}/in", f"{s3}/out"
    mask = write_source(f"{s3}/mask", np.ones(SHAPE, "uint8"))
    said = run("plan", source, target, *SMALL, code=2)["error"]
    assert said.endswith("/in has 3 channels; choose one with --channel N, from 0 to 2")
    said = run("run", source, target, *SMALL, "--channel=1", code=2)["error"]
    assert said.endswith("/in has 2 time points; choose one with --time N, from 0 to 1")

    chosen = ("--channel=1", "--time=1")
    assert run("info", source, *chosen).items() >= {"channel": 1, "time": 1}.items()
    planned = run("plan", source, target, *SMALL, *chosen, f"--mask={mask}")
    assert (planned["source"]["channel"], planned["source"]["time"]) == (1, 1)
    assert run("run", source, target, *SMALL, *chosen)["complete"] is True
    same = write_source(f"{s3}/alone", data[1, 1])
    assert run("run", same, f"{s3}/same", *SMALL)["complete"] is True
    assert stored_digests(target).keys() == stored_digests(f"{s3}/same").keys()
    np.testing.assert_array_equal(read_all(target), read_all(f"{s3}/same"))
    provenance = json.loads(open_store(target).get("provenance") or b"")
    method = provenance["processing"][0]["method"]
    assert (method["channel"], method["time"]) == (1, 1)

    said = run("run", source, target, *SMALL, "--channel=2", "--time=1", code=2)["error"]
    assert "holds another job: source.channel was 1 and is now 2. Choose another target" in said
    store = open_store(target)
    store.delete([next(key for key in store.keys() if key.endswith(".shard"))])  # noqa: SIM118
    repaired = run("repair", target)  # the record knows the channel
    assert (len(repaired["found"]["missing"]), repaired["complete"]) == (1, True)
    np.testing.assert_array_equal(read_all(target), read_all(f"{s3}/same"))
    assert run("inspect", source, *chosen)["sections"] == SHAPE[0]
