"""What encodings make of EM: bytes, seconds of one core, and dollars a month.

``python benchmarks/encodings.py`` prints the tables of docs/cost.md. It takes the volumes beside
the project, as they were recorded and as shipped networks restore them, which are smoother.
Everything is written to memory, in chunks of 64^3, and read again. Seconds are those of the
processor, so other work on the machine changes them little. isochunk offers most of these; the
others are here to show why it does not offer them.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

import isochunk
from isochunk.core.geometry import Box
from isochunk.engine.cost import GIB, read_prices
from isochunk.storage.open import open_volume

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from jobs import read_all, write_source

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CHUNK = 64
TERA = 10**12
INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]

Spec = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """One way to store a volume."""

    name: str
    """As ``--encoding`` has it where isochunk offers it, else in words."""
    format: str
    """Driver of tensorstore."""
    how: Any
    """zarr v3: codecs of the inner chunks. Precomputed: members of the scale, and its shards'
    ``data_encoding``."""

    def spec(self, voxels: np.ndarray) -> Spec:
        """Return what tensorstore creates."""
        shape, dtype = voxels.shape, str(voxels.dtype)
        chunk = [min(CHUNK, n) for n in shape]
        base = {"driver": self.format, "kvstore": "memory://", "create": True}
        if self.format == "zarr3":
            inner = {"chunk_shape": chunk, "codecs": self.how, "index_codecs": INDEX_CODECS}
            grid = {"name": "regular", "configuration": {"chunk_shape": shape}}
            codecs = [{"name": "sharding_indexed", "configuration": inner}]
            array = {"shape": shape, "data_type": dtype, "chunk_grid": grid, "codecs": codecs}
            return {**base, "metadata": array}
        members, data_encoding = self.how
        sharding = {
            "@type": "neuroglancer_uint64_sharded_v1",
            "hash": "identity",
            "preshift_bits": 9,
            "minishard_bits": 0,
            "shard_bits": 0,
            "minishard_index_encoding": "raw",
            "data_encoding": data_encoding,
        }
        scale = {"key": "s0", "size": shape[::-1], "resolution": [8, 8, 8], **members}
        scale |= {"chunk_size": chunk[::-1], "sharding": sharding}
        whole = {"type": "image", "data_type": dtype, "num_channels": 1}
        return {**base, "multiscale_metadata": whole, "scale_metadata": scale}


def blosc(name: str, level: int, itemsize: int = 1) -> list[Spec]:
    """Return the codecs of zarr v3's blosc, which sorts bits first."""
    how = {"cname": name, "clevel": level, "shuffle": "bitshuffle", "blocksize": 0}
    return [{"name": "blosc", "configuration": {**how, "typesize": itemsize}}]


def candidates(itemsize: int) -> Iterator[Candidate]:
    """List what is compared, for voxels of some bytes."""
    raw, png = {"encoding": "raw"}, {"encoding": "png"}
    for name, how in {
        "raw": (raw, "raw"),
        "gzip": (raw, "gzip"),
        "png": (png, "raw"),
        "png, level 1": ({**png, "png_level": 1}, "raw"),
        "png in gzip": (png, "gzip"),
        "jpeg": ({"encoding": "jpeg"}, "raw"),
    }.items():
        if name != "jpeg" or itemsize == 1:
            yield Candidate(name, "neuroglancer_precomputed", how)
    endian = [{"name": "bytes", "configuration": {"endian": "little"}}]
    for level in (1, 9, 15):
        codec = {"name": "zstd", "configuration": {"level": level, "checksum": False}}
        yield Candidate(f"zstd:{level}", "zarr3", [*endian, codec])
    yield Candidate("gzip", "zarr3", [*endian, {"name": "gzip", "configuration": {"level": 1}}])
    yield Candidate("blosc", "zarr3", [*endian, *blosc("lz4", 5, itemsize)])
    for level in (1, 5, 7, 9):
        codecs = [*endian, *blosc("zstd", level, itemsize)]
        yield Candidate(f"blosc-zstd:{level}", "zarr3", codecs)


@dataclass(frozen=True)
class Row:
    """What one encoding makes of one volume."""

    share: float
    """Stored bytes over voxel bytes."""
    write: float
    """Voxel megabytes that one core encodes in a second."""
    read: float
    """The same, decoded."""


def measure(candidate: Candidate, voxels: np.ndarray) -> Row:
    """Write a volume to memory and read it again, in one thread."""
    one = ts.Context({"data_copy_concurrency": {"limit": 1}, "cache_pool": {}})
    array = ts.open(candidate.spec(voxels), context=one).result()
    view = array if array.rank == 3 else array[..., 0].T
    start = time.process_time()
    view.write(voxels).result()
    written = time.process_time()
    again = view.read(order="C").result()
    end = time.process_time()
    if candidate.name != "jpeg" and not np.array_equal(again, voxels):
        raise AssertionError(f"{candidate.name} does not give back what was written")
    store = ts.KvStore.open("memory://", context=one).result()
    objects = [key for key in store.list().result() if not key.endswith((b"info", b".json"))]
    stored = sum(len(store.read(key).result().value) for key in objects)
    megabytes = voxels.nbytes / 1e6
    return Row(stored / voxels.nbytes, megabytes / (written - start), megabytes / (end - written))


def restored(folder: Path, source: str, model: str, **options: Any) -> np.ndarray:
    """Return what a shipped network makes of a source."""
    target = str(folder / Path(source).name) + "-restored"
    job = isochunk.Job(source=source, target=target, model=model, levels=1, **options)
    isochunk.run(isochunk.plan(job))
    return read_all(target)


def volumes(folder: Path) -> Mapping[str, np.ndarray]:
    """Return recorded and restored voxels by name.

    There is no EM of 16 bits here: the last is restored of means of four sections, which have more
    than 8.
    """
    cube = open_volume(str(DATA / "medulla_fibsem_448.ome.zarr"))
    medulla = cube.read(Box.from_shape((192, 256, 256), (100, 100, 100)))
    means = medulla.reshape(-1, 4, 256, 256).mean(axis=1)
    coarse = write_source(f"{folder}/8", np.rint(means).astype("uint8"), "40,10,10")
    deep = write_source(f"{folder}/16", np.rint(means * 257).astype("uint16"), "40,10,10")
    url, part = str(DATA / "vnc_sstem"), Box.from_shape((20, 256, 256))
    vnc = open_volume(url)
    return {
        "medulla FIB-SEM": medulla,
        "medulla restored": restored(folder, coarse, "anyz-z4"),
        "VNC ssTEM": vnc.read(vnc.spec.box),
        "VNC restored": restored(folder, url, "anyz-z2-10", box=part)[: 3 * CHUNK],
        "medulla restored, 16 bits": restored(folder, deep, "anyz-z4"),
    }


def table(rows: Mapping[str, Mapping[str, Row]], names: list[str]) -> Iterator[str]:
    """Write what was measured as Markdown: encodings down, volumes across, then sums."""
    prices = read_prices()
    month = prices.s3.gib_month * TERA / GIB
    price = f"{prices.currency} a month for 10^12 B restored"
    yield f"| encoding | {' | '.join(names)} | {price} | write MB/s | read MB/s |"
    yield f"|---|{'---|' * (len(names) + 3)}"
    for encoding, found in rows.items():
        some = [found[name] for name in names if name in found]
        if not some:
            continue
        shares = " | ".join(f"{row.share:.3f}" for row in some)
        mean = np.mean([found[n].share for n in names if "restored" in n and n in found])
        # Seconds are summed, not rates.
        write, read = (
            len(some) / sum(1 / s for s in speeds)
            for speeds in ([row.write for row in some], [row.read for row in some])
        )
        yield f"| {encoding} | {shares} | {mean * month:.1f} | {write:.0f} | {read:.0f} |"


def main() -> None:
    """Measure everything and print it."""
    with tempfile.TemporaryDirectory() as folder:
        found = volumes(Path(folder))
    rows: dict[str, dict[str, Row]] = {}
    for name, voxels in found.items():
        for candidate in candidates(voxels.itemsize):
            kind = "zarr" if candidate.format == "zarr3" else "precomputed"
            label = f"{kind}: {candidate.name}"
            rows.setdefault(label, {})[name] = measure(candidate, voxels)
    said = f"{date.today()}, tensorstore {version('tensorstore')}, {platform.machine()}"
    print(f"{said}; shares of voxel bytes; one core\n")
    uint8 = [name for name, voxels in found.items() if voxels.itemsize == 1]
    for names in (uint8, [name for name in found if name not in uint8]):
        print("\n".join(table(rows, names)), end="\n\n")


if __name__ == "__main__":
    main()
