"""Efficiency on this machine: E = (voxels / bare forward rate) / wall, and its factors.

Every contender runs the same SRU-Net (width 8, three levels, 3x3x3 kernels, random weights, fp32)
over the same volume into the same kind of store (zarr v3, raw, shards of 128, chunks of 64), in a
process of its own, interleaved with the others; the table shows medians. Outputs are compared with
one another, so that speed cannot come from skipping work.

    python benchmarks/efficiency.py [--repeats 3] [--shape 64,512,512] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
import torch

import isochunk
from isochunk.core.geometry import Box, Spacing, Triple, reflected
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.synthetic import synthetic_em
from isochunk.engine.opened import open_job
from isochunk.engine.pipeline import Pipeline
from isochunk.host.allocator import keep_memory
from isochunk.models.checkpoint import Card, load_module, save
from isochunk.models.srunet import SRUNet, SRUNetConfig
from isochunk.storage.open import create_volume, open_volume

FACTOR = 4
HALO = (9, 26, 26)
ALIGNED_HALO = (9, 28, 28)
SHARD, CHUNK = 128, 64


def prepare(work: Path, shape: Triple) -> None:
    """Write the source and the network."""
    spacing = Spacing.parse("40,10,10")
    voxels = synthetic_em(shape, seed=0, spacing=spacing)
    level = LevelSpec("s0", Box.from_shape(shape), spacing, (32, 128, 128), None)
    zero = (Fraction(0), Fraction(0), Fraction(0))
    spec = VolumeSpec(f"file://{work}/source.zarr", "zarr3", "uint8", "raw", zero, (level,))
    create_volume(spec).write(level.box, voxels)
    torch.manual_seed(0)
    network = SRUNet(SRUNetConfig.compact(width=8, levels=3, convs=2))
    sample = torch.from_numpy(voxels[:32, :128, :128]).float()[None, None] / 255
    with torch.no_grad():  # spread over the grey range, so that outputs can be compared
        answer = network(sample)
        scale = 0.15 / answer.std()
        network.last.bias.sub_(answer.mean()).mul_(scale).add_(0.5)
        network.last.weight.mul_(scale)
    save(work / "model", network, Card("benchmark", "none", "random weights"))


def network(work: Path) -> torch.nn.Module:
    """Load the network as every contender runs it."""
    return load_module(work / "model").eval().to(memory_format=torch.channels_last_3d)


def forward(module: torch.nn.Module, voxels: np.ndarray) -> np.ndarray:
    """Run a padded forward pass on uint8 voxels."""
    with torch.inference_mode():
        x = torch.from_numpy(voxels).float().div_(255)[None, None]
        y = module(x.to(memory_format=torch.channels_last_3d))
        return y[0, 0].mul_(255).round_().clamp_(0, 255).to(torch.uint8).numpy()


def bare(work: Path, tile: Triple) -> dict[str, float]:
    """Forward passes without halo, input or output: the ceiling."""
    keep_memory()
    module = network(work)
    source = open_volume(f"{work}/source.zarr")
    voxels = source.read(source.spec.box)
    shape = voxels.shape
    forward(module, voxels[tuple(slice(0, t) for t in tile)])
    start = time.perf_counter()
    for y in range(0, shape[1], tile[1]):
        for x in range(0, shape[2], tile[2]):
            forward(module, np.ascontiguousarray(voxels[:, y : y + tile[1], x : x + tile[2]]))
    return {"wall_s": time.perf_counter() - start}


def job(work: Path, target: Path, **options: Any) -> isochunk.Job:
    """Return the conversion as an isochunk job."""
    return isochunk.Job(
        source=f"{work}/source.zarr",
        target=f"zarr3://{target}",
        model=str(work / "model"),
        encoding="raw",
        chunk=(CHUNK,) * 3,
        shard=(SHARD,) * 3,
        levels=1,
        block=(256, 256, 256),
        memory="10GiB",
        **options,
    )


def isochunk_local(work: Path, target: Path) -> dict[str, float]:
    """The product, in one process."""
    keep_memory()
    plan = isochunk.plan(job(work, target))
    start = time.perf_counter()
    report = isochunk.run(plan)
    assert report.complete, report.errors
    return {"wall_s": time.perf_counter() - start, "compute_s": report.compute_s}


def isochunk_dask(work: Path, target: Path, workers: int) -> dict[str, float]:
    """The product, on its own Dask cluster of processes; starting it is not counted."""
    plan = isochunk.plan(job(work, target, workers=workers))
    with isochunk.start_cluster("local", workers) as client:
        client.wait_for_workers(workers)
        start = time.perf_counter()
        report = isochunk.run(plan, client)
        wall = time.perf_counter() - start
    assert report.complete, report.errors
    return {"wall_s": wall, "compute_s": report.compute_s}


def bare_pipeline(work: Path, target: Path) -> dict[str, float]:
    """Read, compute and write overlapped, without engine, ledger or scheduler."""
    from isochunk.engine.prepare import prepare_target

    keep_memory()
    plan = isochunk.plan(job(work, target))
    prepare_target(plan)
    start = time.perf_counter()
    with Pipeline(open_job(plan)) as pipeline:
        futures = [pipeline.submit(0, i) for i in range(plan.block_count(0))]
        assert not any(f.result().error for f in futures)
    return {"wall_s": time.perf_counter() - start}


def output(target: Path, shape: Triple) -> Any:
    """Create the store that the other contenders write."""
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{target}/s0/"},
        "metadata": {
            "shape": list(shape),
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD] * 3}},
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [CHUNK] * 3,
                        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
                    },
                }
            ],
        },
    }
    return ts.open(spec, create=True, open=True).result()


def hand_loop(work: Path, target: Path, block: int) -> dict[str, float]:
    """What a careful user writes: read with halo, forward, crop, write, next."""
    module = network(work)
    source = open_volume(f"{work}/source.zarr")
    shape = source.spec.box.shape
    out = output(target, (shape[0] * FACTOR, *shape[1:]))
    step = (block // FACTOR, block, block)
    start = time.perf_counter()
    for lo in np.ndindex(*(-(-n // s) for n, s in zip(shape, step, strict=True))):
        a = [i * s for i, s in zip(lo, step, strict=True)]
        b = [min(i + s, n) for i, s, n in zip(a, step, shape, strict=True)]
        index = [
            reflected(i - h, j + h, 0, n)
            for i, j, h, n in zip(a, b, ALIGNED_HALO, shape, strict=True)
        ]
        low = [int(i.min()) for i in index]
        read = Box(tuple(low), tuple(int(i.max()) + 1 for i in index))
        voxels = source.read(read)[np.ix_(*(i - o for i, o in zip(index, low, strict=True)))]
        answer = forward(module, voxels)
        z, y, x = (h * f for h, f in zip(ALIGNED_HALO, (FACTOR, 1, 1), strict=True))
        core = answer[z : answer.shape[0] - z, y : answer.shape[1] - y, x : answer.shape[2] - x]
        out[a[0] * FACTOR : b[0] * FACTOR, a[1] : b[1], a[2] : b[2]].write(core).result()
    return {"wall_s": time.perf_counter() - start}


def map_overlap(work: Path, target: Path, block: int) -> dict[str, float]:
    """Dask's own overlap, threads, stored with to_zarr."""
    import dask
    import dask.array as da
    import zarr

    module = network(work)
    shape = open_volume(f"{work}/source.zarr").spec.box.shape
    source = da.from_zarr(f"{work}/source.zarr/s0").rechunk((block // FACTOR, block, block))
    z, y, x = (h * f for h, f in zip(ALIGNED_HALO, (FACTOR, 1, 1), strict=True))

    def predict(voxels: np.ndarray) -> np.ndarray:
        answer = forward(module, np.ascontiguousarray(voxels))
        return answer[z : answer.shape[0] - z, y : answer.shape[1] - y, x : answer.shape[2] - x]

    padded = da.overlap.overlap(source, dict(enumerate(ALIGNED_HALO)), "reflect")
    chunks = (tuple(c * FACTOR for c in source.chunks[0]), *source.chunks[1:])
    empty = np.empty((0, 0, 0), np.uint8)
    result = da.map_blocks(predict, padded, chunks=chunks, dtype="uint8", meta=empty)
    store = zarr.create_array(
        str(target / "s0"),
        shape=(shape[0] * FACTOR, *shape[1:]),
        dtype="uint8",
        chunks=(CHUNK,) * 3,
        shards=(SHARD,) * 3,
        compressors=None,
    )
    start = time.perf_counter()
    with dask.config.set(scheduler="threads"):
        result.to_zarr(store)
    return {"wall_s": time.perf_counter() - start}


Contender = Callable[[Path, Path], dict[str, float]]

CONTENDERS: dict[str, Contender] = {
    "bare forward": lambda w, t: bare(w, (64, 256, 256)),
    "bare forward, small tiles": lambda w, t: bare(w, (64, 128, 128)),
    "bare pipeline": bare_pipeline,
    "isochunk": isochunk_local,
    "isochunk, dask, 1 process": lambda w, t: isochunk_dask(w, t, 1),
    "isochunk, dask, 2 processes": lambda w, t: isochunk_dask(w, t, 2),
    "hand loop 256": lambda w, t: hand_loop(w, t, 256),
    "hand loop 128": lambda w, t: hand_loop(w, t, 128),
    "map_overlap + to_zarr 256": lambda w, t: map_overlap(w, t, 256),
    "map_overlap + to_zarr 128": lambda w, t: map_overlap(w, t, 128),
}


def contend(name: str, work: Path, target: Path) -> dict[str, float]:
    """Run one contender in this process."""
    result = CONTENDERS[name](work, target)
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    usage = [resource.getrusage(who).ru_maxrss for who in both]
    return {**result, "peak_gb": max(usage) / 2**20}


def stored(target: Path) -> np.ndarray | None:
    """Read a contender's output."""
    if not (target / "s0").exists():
        return None
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{target}/s0/"}}
    return np.asarray(ts.open(spec).result().read().result())


def agree(ours: np.ndarray, other: np.ndarray) -> None:
    """Fail unless two outputs differ by at most one grey level almost nowhere."""
    difference = np.abs(ours.astype(np.int16) - other)
    assert difference.max() <= 1, difference.max()
    assert (difference == 0).mean() >= 0.9999


def measure(repeats: int, shape: Triple, names: list[str]) -> dict[str, dict[str, float]]:
    """Run every contender ``repeats`` times, interleaved; return medians."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(work, shape)
        reference = None
        for repeat in range(repeats):
            for name in names:
                target = work / "target"
                command = [sys.executable, __file__, "--contender", name, "--work", folder]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{repeat + 1}/{repeats} {name}: {runs[name][-1]}", file=sys.stderr)
                voxels = stored(target)
                if voxels is not None:
                    if reference is None:
                        reference = voxels
                    agree(reference, voxels)
                    shutil.rmtree(target)
    return {
        name: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for name, results in runs.items()
    }


def table(results: dict[str, dict[str, float]], voxels: int) -> str:
    """Write results as a table with E and its factors."""
    ideal = min(r["wall_s"] for name, r in results.items() if name.startswith("bare forward"))
    lines = [
        "| contender | wall s | Mvox/s | E | E_halo | E_overlap | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        halo = overlap = ""
        if "compute_s" in r and "2 processes" not in name:
            halo = f"{ideal / r['compute_s']:.2f}"
            overlap = f"{r['compute_s'] / r['wall_s']:.2f}"
        lines.append(
            f"| {name} | {r['wall_s']:.1f} | {voxels / r['wall_s'] / 1e6:.2f} | "
            f"{ideal / r['wall_s']:.2f} | {halo} | {overlap} | {r['peak_gb']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--shape", default="64,512,512")
    options.add_argument("--only", action="append", choices=list(CONTENDERS))
    options.add_argument("--out", type=Path)
    options.add_argument("--contender", help=argparse.SUPPRESS)
    options.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.contender:
        print(json.dumps(contend(chosen.contender, chosen.work, chosen.work / "target")))
        return
    z, y, x = (int(n) for n in chosen.shape.split(","))
    results = measure(chosen.repeats, (z, y, x), chosen.only or list(CONTENDERS))
    print(table(results, z * y * x * FACTOR))
    if chosen.out:
        chosen.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
