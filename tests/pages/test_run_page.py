"""The page of a run: its pictures are the voxels, its words the report, its command the job."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from jobs import Command, noise, read_all, write_source
from PIL import Image

import isochunk
from isochunk.cli.main import parser
from isochunk.cli.options import job_of
from isochunk.core.geometry import Box
from isochunk.core.job import Job
from isochunk.errors import NotFoundError
from isochunk.storage.open import open_store

SMALL = {"chunk": "16,16,16", "shard": "32,32,32", "block": "32,32,32"}
FIRST = (8, 4, -6)
"""First voxel of the target."""
PLANES = {"xz": 1, "yz": 2, "xy": 0}


@pytest.fixture
def source(tmp_path: Path) -> str:
    """40 x 10 x 10 nm, 9 x 64 x 70 voxels that start at (2, 4, -6)."""
    return write_source(f"file://{tmp_path}/in", noise((9, 64, 70)), offset=(2, 4, -6))


def job(source: str, target: Path | str, **more: object) -> Job:
    said = {"source": source, "target": str(target), "model": "cubic", **SMALL, **more}
    return Job.from_mapping(said)


def page_of(target: Path) -> str:
    return (target / ".isochunk" / "report.html").read_text()


def drawn(page: str, plane: str, caption: str) -> np.ndarray:
    """Return a picture of the page."""
    found = re.search(rf'alt="{plane}, {caption}".*?base64,(.*?)"', page, re.S)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found.group(1)))))


def test_its_pictures_are_source_and_target(source: str, tmp_path: Path) -> None:
    isochunk.run(isochunk.plan(job(source, tmp_path / "out")))
    page = page_of(tmp_path / "out")
    box = Box.parse(re.search(r"Voxels (\S+) \(z, y, x\) of 10,10,10 nm", page).group(1))
    place = tuple(slice(a - o, b - o) for a, b, o in zip(box.lo, box.hi, FIRST, strict=True))
    made = read_all(f"{tmp_path}/out")[place]
    stored = noise((9, 64, 70)).repeat(4, 0)[place]
    assert made.shape == stored.shape == (36, 64, 70)
    low, high = np.percentile(made, (0.5, 99.5))
    for plane, axis in PLANES.items():
        for voxels, caption in (
            (made, "made isotropic"),
            (stored, "the source, as it is stored"),
        ):
            grey = 255 * ((voxels.take(voxels.shape[axis] // 2, axis) - low) / (high - low)).clip(
                0, 1
            )
            np.testing.assert_allclose(drawn(page, plane, caption), grey, atol=0.6)


def test_it_says_what_the_report_says_and_fetches_nothing(source: str, tmp_path: Path) -> None:
    report = isochunk.run(isochunk.plan(job(source, tmp_path / "out"))).summary()
    page = page_of(tmp_path / "out")
    blocks = report["blocks"]["total"]
    assert f"complete: {blocks} of {blocks} blocks" in page
    assert f"none: all of {report['seam']['voxels']:,} voxels compared across" in page
    assert source in page
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|@import|<script', page)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert json.loads((tmp_path / "out/.isochunk/report.json").read_text()) == report


def test_a_run_that_finds_all_done_leaves_it(source: str, tmp_path: Path, run: Command) -> None:
    plan = isochunk.plan(job(source, tmp_path / "out"))
    isochunk.run(plan)
    page = page_of(tmp_path / "out")
    assert isochunk.run(plan).complete
    assert page_of(tmp_path / "out") == page
    (tmp_path / "out/.isochunk/report.html").unlink()
    told = run("report", f"{tmp_path}/out")
    assert told == {"page": f"file://{tmp_path}/out/.isochunk/report.html"}
    assert page_of(tmp_path / "out") == page
    assert isochunk.audit(f"{tmp_path}/out").complete


@pytest.mark.slow
def test_of_a_target_in_a_bucket_a_copy_is_offered(
    source: str, s3: str, tmp_path: Path, run: Command
) -> None:
    target, copy = f"{s3}/out", f"{tmp_path}/copy.html"
    told, _ = run.text("run", source, target, "--model=cubic", "--chunk=16,16,16", "--shard=none")
    assert f"isochunk report {target} --out report.html" in told
    told, _ = run.text("report", target, "--out", copy)
    assert told.strip() == f"file://{copy}"
    kept = open_store(target).get(".isochunk/report.html")
    assert Path(copy).read_bytes() == kept


def test_a_target_without_a_report_is_told_so(source: str, tmp_path: Path) -> None:
    isochunk.run(isochunk.plan(job(source, tmp_path / "out")))
    (tmp_path / "out/.isochunk/report.json").unlink()
    with pytest.raises(NotFoundError, match=r"no \.isochunk/report\.json.*isochunk status"):
        isochunk.report(f"{tmp_path}/out")


def test_a_run_succeeds_where_its_page_cannot_be_written(
    source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out/.isochunk/report.html/in the way").mkdir(parents=True)
    assert isochunk.run(isochunk.plan(job(source, tmp_path / "out"))).complete
    assert "the page of this run was not written" in caplog.text


def test_a_volume_read_through_a_window_is_drawn_in_its_own_greys(tmp_path: Path) -> None:
    voxels = noise((9, 64, 70), "uint16").astype("uint16")
    source = write_source(f"file://{tmp_path}/in", voxels)
    isochunk.run(isochunk.plan(job(source, tmp_path / "out", window="1000,60000")))
    page = page_of(tmp_path / "out")
    for caption in ("made isotropic", "the source, as it is stored"):
        picture = drawn(page, "xy", caption)
        assert (picture.min(), picture.max()) == (0, 255)
        assert 90 < picture.mean() < 165


SAID = [
    {},
    {"spacing": "20,10,10", "box": "2:8,4:60,-6:50", "encoding": "gzip"},
    {"window": "10,200.5", "dtype": "uint16", "levels": 2},
    {"shard": "none", "format": "ome-zarr", "source_spacing": "40,8,8", "overwrite": True},
    {"model": "anyz-z2-10", "consistent": True, "precision": "bf16", "sections": "a b.toml"},
]


@pytest.mark.parametrize("said", SAID)
def test_its_command_is_the_job(said: dict[str, object]) -> None:
    made = job("gs://em/a volume", "s3://out", **{**said, "workers": 7, "memory": "8GiB"})
    words = shlex.split(made.command())
    assert words[0] == "isochunk"
    again = job_of(parser(words[1:]).parse_args(words[1:]))
    assert again == job("gs://em/a volume", "s3://out", **said)


def test_its_command_makes_the_same_output(source: str, tmp_path: Path, run: Command) -> None:
    isochunk.run(isochunk.plan(job(source, tmp_path / "out", spacing="20,10,10")))
    before = read_all(f"{tmp_path}/out")
    words = shlex.split(re.search(r"<pre>(.*?)</pre>", page_of(tmp_path / "out")).group(1))
    shutil.rmtree(tmp_path / "out")
    assert run(*words[1:])["complete"] is True
    np.testing.assert_array_equal(read_all(f"{tmp_path}/out"), before)


def test_a_notebook_shows_job_plan_and_report(source: str, tmp_path: Path) -> None:
    asked = job(source, tmp_path / "out")
    plan = isochunk.plan(asked)
    report = isochunk.run(plan)
    assert html.unescape(asked._repr_html_()) == f"<pre>{asked.command()}</pre>"
    for shown, said in (
        (plan._repr_html_(), "sections of 10 nm from those of 40 nm, by cubic"),
        (report._repr_html_(), f"complete: {report.total} of {report.total} blocks"),
    ):
        rows = ElementTree.fromstring(shown).findall("tr")
        assert len(rows) > 5
        assert said in [row.find("td").text for row in rows]
