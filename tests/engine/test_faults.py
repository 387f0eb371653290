"""Storage that fails while a job runs: its blocks fail by name, the rest is done, repair finishes.

Sources are read through real HTTP and S3 servers that answer badly on demand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from jobs import (
    command,
    noise,
    stored_digests,
    tree_digest,
    write_source,
)
from servers import Faults

import isochunk
from isochunk.cli.main import main
from isochunk.core.geometry import Box, Spacing
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.engine.target import open_written_target
from isochunk.storage.keys import object_key
from isochunk.storage.open import create_volume, open_volume

SHAPE = (8, 128, 128)
CHUNK = (8, 32, 32)
BAD = Box((0, 64, 32), (8, 96, 64))
"""The source chunk that cannot be read."""
BAD_KEY = "/32-64_64-96_0-8"
OPTIONS = (
    "--model=cubic",
    "--chunk=16,16,16",
    "--shard=32,32,32",
    "--block=32,32,32",
    "--timeout=60",
)


def foreign(folder: Path, encoding: str = "raw") -> None:
    """Write a source as other tools do: its chunks are compressed, and none may be absent."""
    write_source(f"file://{folder}", noise(SHAPE), chunk=CHUNK)
    if encoding != "raw":
        spec = open_volume(str(folder)).spec
        for file in folder.rglob("*"):
            if file.is_file():
                file.unlink()
        create_volume(replace(spec, encoding=encoding)).write(spec.box, noise(SHAPE))
    info = json.loads((folder / "info").read_text())
    del info["isochunk"]
    (folder / "info").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the output of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    foreign(folder / "in")
    assert main(["run", f"{folder}/in", f"{folder}/out", *OPTIONS]) == 0
    return tree_digest(folder / "out")


@dataclass
class Case:
    """A source behind a server, and a target in a folder."""

    folder: Path
    url: str
    faults: Faults
    capsys: pytest.CaptureFixture[str]

    @property
    def target(self) -> Path:
        return self.folder / "out"

    def __call__(self, *arguments: str, code: int) -> dict[str, Any]:
        self.capsys.readouterr()
        got = main([*arguments, "--json"])
        out, err = self.capsys.readouterr()
        assert got == code, (got, out, err)
        result: dict[str, Any] = json.loads(out)
        return result

    def arguments(self) -> tuple[str, ...]:
        return ("run", f"{self.url}/in", str(self.target), *OPTIONS)

    def run(self, code: int, *options: str) -> dict[str, Any]:
        return self(*self.arguments(), *options, code=code)


@pytest.fixture
def case(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Case]:
    """A source behind an HTTP server."""
    foreign(tmp_path / "in", getattr(request, "param", "raw"))
    faults = Faults()
    with servers.file_server(tmp_path, faults) as url:
        yield Case(tmp_path, url, faults, capsys)


def affected(plan: isochunk.planning.plan.Plan) -> dict[int, Box]:
    """Return the blocks of the first stage that read the bad chunk."""
    blocks = [plan.block(0, index) for index in range(plan.block_count(0))]
    return {b.index: b.write for b in blocks if (plan.read_box(b) & BAD).size}


def check_failure(case: Case, report: dict[str, Any], says: str) -> None:
    """Check that exactly the blocks that read the bad chunk failed, and are said to."""
    plan = open_written_target(str(case.target)).plan
    bad = affected(plan)
    assert 0 < len(bad) < plan.block_count(0) / 2
    first = [e for e in report["errors"] if "stage" not in e]
    assert len(first) == len(bad)
    for index, box in bad.items():
        error = next(e for e in first if e.startswith(f"block {index} {box}: "))
        assert re.search(rf"box \S+ of .*{case.url}/in", error), error
        assert re.search(says, error), error
    blocks = report["blocks"]
    assert report["complete"] is False
    assert blocks["total"] == plan.total_blocks
    # All blocks of coarse levels that do not need a failed one are done, too.
    waiting = blocks["failed"] - len(bad)
    assert 0 <= waiting <= plan.total_blocks - plan.block_count(0)
    assert blocks["done"] + blocks["failed"] == blocks["total"]
    status = case("status", str(case.target), code=1)
    assert status["complete"] is False
    assert status["blocks"]["done"] == blocks["done"]
    audit = case("audit", str(case.target), code=1)
    assert audit["complete"] is False
    assert {h["block"] for h in audit["missing"] if h["stage"] == 0} == set(bad)
    assert audit["corrupt"] == []


FAULTS = {
    "403": (403, r"AccessError.*access refused"),
    "404": (404, r"NotFoundError.*32-64_64-96_0-8"),
    "500": (500, r"StorageError.*failed after retries"),
    "stall": ("stall", r"StorageTimeoutError.*no answer within"),
    "truncated": ("truncate", r"CorruptDataError.*do not decode"),
}


@pytest.mark.parametrize(
    ("fault", "says"),
    [  # what may pass is tried again, with pauses
        pytest.param(*case, id=name, marks=[pytest.mark.slow] if name not in ("403", "404") else [])
        for name, case in FAULTS.items()
    ],
)
def test_blocks_fail_by_name_and_are_finished_later(
    case: Case, undisturbed: dict[str, str], fault: servers.Fault, says: str
) -> None:
    case.faults.always[BAD_KEY] = fault
    failed = case.run(1, *(["--timeout=3"] if fault in ("stall", 500) else []))
    check_failure(case, failed, says)
    done = failed["blocks"]["done"]
    case.faults.always.clear()
    case.faults.released.set()
    finish = ("repair", str(case.target)) if fault in (404, "truncate") else case.arguments()
    again = case(*finish, code=0)
    assert again["complete"] is True
    assert again["blocks"]["resumed"] == done
    assert again["blocks"]["failed"] == 0
    assert tree_digest(case.target) == undisturbed
    assert case("audit", str(case.target), code=0)["complete"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["png"], indirect=True)
def test_a_corrupt_chunk(case: Case, undisturbed: dict[str, str]) -> None:
    chunk = next(f for f in (case.folder / "in").rglob("*") if f"/{f.name}" == BAD_KEY)
    good = chunk.read_bytes()
    chunk.write_bytes(good[:200] + bytes(100) + good[300:])
    check_failure(case, case.run(1), r"CorruptDataError.*do not decode")
    chunk.write_bytes(good)
    assert case("repair", str(case.target), code=0)["complete"]
    assert tree_digest(case.target) == undisturbed


def test_errors_that_pass_are_retried(case: Case, undisturbed: dict[str, str]) -> None:
    case.faults.first[BAD_KEY] = [500, 503, 429, 500]
    report = case.run(0)
    assert case.faults.first[BAD_KEY] == []
    assert report["complete"] is True
    assert report["blocks"]["failed"] == 0
    assert report["errors"] == []
    assert tree_digest(case.target) == undisturbed


def test_coarse_levels_wait_for_what_they_read(case: Case, undisturbed: dict[str, str]) -> None:
    """Nothing coarse is made of blocks that failed, though their places read as background."""
    case.faults.always[BAD_KEY] = 403
    assert case.run(1)["blocks"]["failed"] > 0
    plan = open_written_target(str(case.target)).plan
    assert len(plan.stages) > 1
    stored = tree_digest(case.target)
    assert stored.items() <= undisturbed.items()
    assert len(stored) < len(undisturbed)


def test_a_repair_that_fails_leaves_the_hole_on_record(
    case: Case, undisturbed: dict[str, str]
) -> None:
    assert case.run(0)["complete"]
    plan = open_written_target(str(case.target)).plan
    index, box = next(iter(affected(plan).items()))
    (case.target / object_key(plan.target, 0, box)).unlink()
    audit = case("audit", str(case.target), code=1)
    assert [h["block"] for h in audit["missing"] if h["level"] == 0] == [index]
    case.faults.always[BAD_KEY] = 403
    failed = case("repair", str(case.target), code=1)
    assert failed["blocks"]["failed"] == 1
    assert f"block {index} " in failed["errors"][0]
    # Neither status nor another run may now take the block for done.
    assert case("status", str(case.target), code=1)["complete"] is False
    assert case.run(1)["blocks"]["failed"] == 1
    case.faults.always.clear()
    assert case.run(0)["complete"]
    assert tree_digest(case.target) == undisturbed


def test_a_source_that_is_refused_from_the_start(case: Case) -> None:
    case.faults.always["/in/info"] = 403
    assert "access refused" in case.run(2)["error"]
    case.faults.always["/in/info"] = 500
    assert "failed after retries" in case.run(1, "--timeout=3")["error"]
    case.faults.always["/in/info"] = "stall"
    assert re.search(r"no answer within.*--timeout", case.run(1, "--timeout=1")["error"])
    assert not case.target.exists()


@pytest.mark.slow
def test_s3(
    s3: str,
    s3_server: servers.ObjectServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    undisturbed: dict[str, str],
) -> None:
    """From bucket to bucket: reads that are cut or refused, writes that are refused."""
    write_source(f"{s3}/in", noise(SHAPE), chunk=CHUNK)
    faults = Faults()
    with servers.proxy(s3_server.endpoint_url, faults) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        case = Case(tmp_path, s3, faults, capsys)
        target = f"{s3}/out"
        faults.always[f"/in/0{BAD_KEY}"] = "truncate"
        faults.always["/out/10_10_10/2.shard"] = 403
        faults.first["/in/0/"] = [500, 503]
        before = len(faults.requests)
        report = case("run", f"{s3}/in", target, *OPTIONS, code=1)
        errors = "\n".join(report["errors"])
        assert re.search(rf"block \d+ \S+: \w+: reading box .*{s3}/in", errors)
        assert re.search(rf"block \d+ \S+: AccessError: writing box .*{target}", errors)
        assert report["blocks"]["done"] > report["blocks"]["failed"] > 0
        for secret in (servers.S3_KEY, servers.S3_SECRET, "Signature"):
            assert secret not in errors
        audit = case("audit", target, code=1)
        assert len({h["block"] for h in audit["missing"] if h["stage"] == 0}) == 2
        faults.always.clear()
        mended = case("repair", target, code=0)
        assert mended["complete"]
        assert mended["seam"]["identical_fraction"] == 1
        assert case("audit", target, code=0)["complete"]
        assert len(faults.requests) > before
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    assert stored_digests(target) == undisturbed


@pytest.mark.parametrize("format_", ["precomputed", "zarr3"])
def test_a_server_that_answers_ranges_with_200(s3: str, format_: str) -> None:
    """rclone does; tensorstore refuses that, so whole shards are read."""
    voxels, zero = noise((24, 40, 70)), Fraction(0)
    level = LevelSpec(
        "s0", Box.from_shape(voxels.shape), Spacing.parse("8,8,8"), (16, 16, 16), (32, 32, 32)
    )
    spec = VolumeSpec(
        f"{s3}/v", format_, "uint8", "zstd" if format_ == "zarr3" else "raw", (zero,) * 3, (level,)
    )
    create_volume(spec).write(level.box, voxels)
    volume = open_volume(spec.url)
    for text in ("0:8,10:20,60:70", "3:20,8:40,17:70", "0:24,0:40,0:70"):
        box = Box.parse(text)
        np.testing.assert_array_equal(volume.read(box), voxels[box.slices((0, 0, 0))])


@pytest.mark.slow
def test_a_run_with_failed_blocks_on_a_cluster(case: Case, undisturbed: dict[str, str]) -> None:
    case.faults.always[BAD_KEY] = 404
    report = command(*case.arguments(), "--workers=2", code=1)
    check_failure(case, report, r"NotFoundError")
    case.faults.always.clear()
    assert case("repair", str(case.target), code=0)["complete"]
    assert tree_digest(case.target) == undisturbed
