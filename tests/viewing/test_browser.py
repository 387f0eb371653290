"""Source and result in a real browser: neuroglancer draws them at the same place.

The marker of the test volumes has edges that both grids can hold, so its outline must agree to a
pixel; a layer that is half a source section off is 8 pixels off here. Then what a user does: run,
view, open the link, look.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import tensorstore as ts
import zarr
from jobs import command, start, write_source
from scipy import ndimage

from isochunk.core.encodings import default_encoding
from isochunk.core.geometry import AXES, Box, Spacing
from isochunk.core.sections import Section
from isochunk.core.spec import LevelSpec, VolumeSpec
from isochunk.core.synthetic import synthetic_pair
from isochunk.storage.access import Access
from isochunk.storage.open import create_volume, open_volume
from isochunk.viewing.neuroglancer import FilledSections, contrast_range
from isochunk.viewing.server import RunningViewer, view

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WIDTH, HEIGHT = 1920, 1080
BACKGROUND, MARKER, SPECK = 60, 200, 130
SOURCE_NM, RESULT_NM = Spacing.parse("40,8,8"), Spacing.parse("8,8,8")
Corner: TypeAlias = tuple[Fraction, Fraction, Fraction]
ORIGIN: Corner = (Fraction(0),) * 3
CENTRED: Corner = (Fraction(-20), Fraction(-4), Fraction(-4))
SOURCE_SHAPE = (16, 128, 128)
# In source voxels; covers the volume's centre and is symmetric about nothing.
MARKER_BOX = Box((7, 56, 60), (10, 80, 90))
SPECK_BOX = Box((2, 60, 62), (4, 100, 110))


@pytest.fixture(scope="module")
def page(browser: Any) -> Any:
    return browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})


def pattern() -> np.ndarray:
    """The test pattern in source voxels."""
    voxels = np.full(SOURCE_SHAPE, BACKGROUND, np.uint8)
    voxels[MARKER_BOX.slices((0, 0, 0))] = MARKER
    voxels[SPECK_BOX.slices((0, 0, 0))] = SPECK
    return voxels


def stored(
    folder: Path,
    format_: str,
    spacing: Spacing,
    corner_nm: Corner,
    encoding: str | None = None,
    dtype: str = "uint8",
) -> VolumeSpec:
    """Write the test pattern; what is returned is what its metadata says."""
    repeat = int(SOURCE_NM.z / spacing.z)
    voxels = pattern().astype(dtype).repeat(repeat, axis=0)
    shard = (32, 64, 64) if repeat > 1 else None
    level = LevelSpec("0", Box.from_shape(voxels.shape), spacing, (16, 32, 32), shard)
    encoding = encoding or default_encoding(format_, dtype)
    spec = VolumeSpec(str(folder), format_, dtype, encoding, corner_nm, (level,))
    create_volume(spec).write(level.box, voxels)
    return open_volume(str(folder)).spec


def marker_in_both(image: np.ndarray) -> bool:
    """Tell whether the test pattern is drawn in both halves."""
    return all((half > 250).any() for half in np.split(image, 2, axis=1))


def screenshot(
    page: Any,
    folder: Path,
    name: str,
    drawn: Callable[[np.ndarray], bool] = marker_in_both,
) -> np.ndarray:
    """Wait until both layers are drawn and nothing changes any more; return grey levels (y, x)."""
    from PIL import Image

    deadline = time.monotonic() + 120
    before = np.zeros((HEIGHT, WIDTH), np.uint8)
    while time.monotonic() < deadline:
        png = page.screenshot()
        now = np.asarray(Image.open(BytesIO(png)).convert("L"))
        if drawn(now) and np.array_equal(now, before):
            break
        before = now
        page.wait_for_timeout(1000)
    else:
        pytest.fail(f"neuroglancer did not finish drawing; layers seen: {page.inner_text('body')}")
    for target in (folder, Path(os.environ.get("ISOCHUNK_SCREENSHOT_DIR", folder))):
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{name}.png").write_bytes(png)
    return now


def panels(page: Any) -> list[dict[str, float]]:
    """Return where the panels are: top, left, width, height; x and y views first, 3D third."""
    found = page.eval_on_selector_all(
        ".neuroglancer-rendered-data-panel",
        "panels => panels.map(p => p.getBoundingClientRect().toJSON())",
    )
    assert len(found) == 8, "two views of four panels"
    # The result's view on the left, the source's on the right.
    return sorted(found, key=lambda p: (p["left"] > WIDTH / 2, p["top"], p["left"]))


def marker_outline(image: np.ndarray, panel: dict[str, float]) -> np.ndarray:
    """Return top, bottom, left, right of the marker in pixels from the panel's centre."""
    top, left = round(panel["top"]), round(panel["left"])
    height, width = round(panel["height"]), round(panel["width"])
    parts, _ = ndimage.label(image[top : top + height, left : left + width] > 250)
    marker = parts[height // 2, width // 2]
    assert marker, "the centre of the volume is inside the marker"
    rows, columns = ndimage.find_objects(parts)[marker - 1]
    return np.array(
        [
            rows.start - panel["height"] / 2,
            rows.stop - panel["height"] / 2,
            columns.start - panel["width"] / 2,
            columns.stop - panel["width"] / 2,
        ]
    )


def quiet(viewer: RunningViewer) -> None:
    """Leave only the volumes on the screen."""
    with viewer.client.config_state.txn() as config:
        config.show_ui_controls = False
        config.show_panel_borders = False
    with viewer.client.txn() as state:
        state.show_axis_lines = False
        state.show_scale_bar = False
        state.show_default_annotations = False


@pytest.mark.parametrize(
    ("source_format", "result_format"),
    [
        ("precomputed", "precomputed"),
        ("zarr3", "precomputed"),
        ("zarr3", "zarr3"),
        ("array", "precomputed"),
    ],
)
def test_source_and_result_lie_on_one_another(
    page: Any, tmp_path: Path, source_format: str, result_format: str
) -> None:
    # OME-Zarr without translation: the centre of voxel 0 is at 0. Precomputed cannot say that.
    corner_nm = CENTRED if source_format == "zarr3" else ORIGIN
    stored_nm = corner_nm if result_format == "zarr3" else ORIGIN
    if source_format == "array":  # of an OME-Zarr volume, by itself: it has no lengths
        stored(tmp_path / "source", "zarr3", SOURCE_NM, corner_nm)
        source = open_volume(str(tmp_path / "source" / "0"), Access(spacing=SOURCE_NM)).spec
    else:
        source = stored(tmp_path / "source", source_format, SOURCE_NM, corner_nm)
    result = stored(tmp_path / "result", result_format, RESULT_NM, stored_nm)
    # As a plan says it: where the result truly lies, whatever its format can hold.
    result = replace(result, corner_nm=source.corner_nm)
    contrast = contrast_range(np.array([[[BACKGROUND]], [[MARKER]]], np.uint8))

    with view(result, source, contrast) as viewer:
        quiet(viewer)
        page.goto(viewer.url)
        image = screenshot(page, tmp_path, f"{source_format}-{result_format}")
        places = panels(page)
        state = viewer.client.state.to_json()
        page.goto("about:blank")

    nm_per_pixel = state["crossSectionScale"] * float(RESULT_NM.x)
    centre_nm = np.array([v * float(RESULT_NM.x) for v in reversed(state["position"])])
    voxel_nm, corner = np.array([[float(v) for v in n] for n in (SOURCE_NM, source.corner_nm)])
    lo = (np.array(MARKER_BOX.lo) * voxel_nm + corner - centre_nm) / nm_per_pixel
    hi = (np.array(MARKER_BOX.hi) * voxel_nm + corner - centre_nm) / nm_per_pixel
    edges = np.stack([lo, hi])
    z, y, x = (edges[:, axis] for axis in range(len(AXES)))
    # Panels xy, xz and zy; in the last, z runs to the left.
    for index, down, across in [(0, y, x), (1, z, x), (3, y, -z[::-1])]:
        shown_result = marker_outline(image, places[index])
        shown_source = marker_outline(image, places[index + 4])
        np.testing.assert_allclose(shown_result, shown_source, atol=1)
        np.testing.assert_allclose(shown_result, [*down, *across], atol=1.5)


@pytest.mark.parametrize(
    ("format_", "encoding", "dtype"),
    [
        ("precomputed", "png", "uint16"),
        ("precomputed", "gzip", "uint8"),
        ("precomputed", "gzip", "uint16"),
        ("zarr3", "blosc-zstd:7", "uint16"),
        ("zarr3", "zstd:9", "uint8"),
        ("zarr3", "blosc", "uint8"),
        ("zarr3", "gzip", "uint16"),
    ],
)
def test_every_encoding_is_drawn(
    page: Any, tmp_path: Path, format_: str, encoding: str, dtype: str
) -> None:
    source = stored(tmp_path / "source", "precomputed", SOURCE_NM, ORIGIN, "raw")
    result = stored(tmp_path / "result", format_, RESULT_NM, ORIGIN, encoding, dtype)
    contrast = contrast_range(np.array([[[BACKGROUND]], [[MARKER]]], np.uint8))
    with view(result, source, contrast) as viewer:
        quiet(viewer)
        page.goto(viewer.url)
        image = screenshot(page, tmp_path, f"{format_}-{encoding.replace(':', '-')}-{dtype}")
        places = panels(page)
        page.goto("about:blank")
    for index in (0, 1, 3):  # xy, xz and zy, of the result and of the source
        outlines = [marker_outline(image, places[index + of]) for of in (0, 4)]
        np.testing.assert_allclose(*outlines, atol=1)


def orange(page: Any) -> np.ndarray:
    """Return where the screen is of the colour that marks filled sections, (y, x)."""
    from PIL import Image

    red, green, blue = np.moveaxis(np.asarray(Image.open(BytesIO(page.screenshot()))), 2, 0)[:3]
    return (red > 180) & (green > 60) & (green < 180) & (blue < 90)


def test_lost_sections_are_marked_where_they_lie(page: Any, tmp_path: Path) -> None:
    source = stored(tmp_path / "source", "precomputed", SOURCE_NM, ORIGIN)
    result = stored(tmp_path / "result", "precomputed", RESULT_NM, ORIGIN)
    contrast = contrast_range(np.array([[[BACKGROUND]], [[MARKER]]], np.uint8))
    first, end = 11, 13
    lost = FilledSections(source, tuple(Section(z, lost=True) for z in range(first, end)))
    with view(result, source, contrast, lost) as viewer:
        quiet(viewer)
        page.goto(viewer.url)
        screenshot(page, tmp_path, "lost-sections")
        places, marked = panels(page), orange(page)
        state = viewer.client.state.to_json()
        page.goto("about:blank")
    nm_per_pixel = state["crossSectionScale"] * float(RESULT_NM.x)
    centre_nm = state["position"][2] * float(RESULT_NM.z)
    rows_nm = np.array([first, end]) * float(SOURCE_NM.z) - centre_nm
    for panel in (places[1], places[5]):  # xz, of the result and of the source
        top, left = round(panel["top"]), round(panel["left"])
        height, width = round(panel["height"]), round(panel["width"])
        rows = np.flatnonzero(marked[top : top + height, left : left + width].any(axis=1))
        seen = np.array([rows[0], rows[-1] + 1]) - panel["height"] / 2
        np.testing.assert_allclose(seen, rows_nm / nm_per_pixel, atol=2.5)


def channels(folder: Path, format_: str) -> str:
    """Write two channels, of which the second holds the test pattern and the first nothing."""
    data = np.stack([np.full(SOURCE_SHAPE, BACKGROUND, np.uint8), pattern()])
    if format_ == "zarr3":
        root = zarr.open_group(folder, mode="w")
        root.create_array("0", shape=data.shape, chunks=(1, 16, 32, 32), dtype="uint8")[:] = data
        scale = {"type": "scale", "scale": [1.0, 40.0, 8.0, 8.0]}
        lengths = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
        multiscale = {
            "axes": [{"name": "c", "type": "channel"}, *lengths],
            "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
        }
        root.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
        return str(folder)
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": f"file://{folder}/",
        "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 2},
        "scale_metadata": {
            "size": SOURCE_SHAPE[::-1],
            "resolution": [8, 8, 40],
            "chunk_size": [32, 32, 16],
            "encoding": "raw",
        },
    }
    ts.open(spec, create=True).result()[...].write(data.transpose(3, 2, 1, 0)).result()
    return str(folder)


@pytest.mark.parametrize("format_", ["precomputed", "zarr3"])
def test_the_channel_that_was_chosen_is_drawn(page: Any, tmp_path: Path, format_: str) -> None:
    result = stored(tmp_path / "result", "precomputed", RESULT_NM, ORIGIN)
    url = channels(tmp_path / "source", format_)
    source = open_volume(url, Access(channel=1)).spec
    contrast = contrast_range(np.array([[[BACKGROUND]], [[MARKER]]], np.uint8))
    with view(result, source, contrast) as viewer:
        quiet(viewer)
        page.goto(viewer.url)
        screenshot(page, tmp_path, f"channel-{format_}")  # fails unless the marker is in both
        page.goto("about:blank")


def tissue_source(folder: Path) -> tuple[str, str]:
    """Return a source and the box of it that is converted: real tissue where that is present."""
    real = Path(__file__).resolve().parents[3] / "shared" / "data" / "vnc_sstem"
    if real.is_dir():
        return str(real), "0:20,448:576,448:576"
    made, _ = synthetic_pair((20, 192, 192), 10)
    return write_source(f"file://{folder}/source", made, "46,4.6,4.6"), "0:20,32:160,32:160"


@contextmanager
def viewing(*arguments: str) -> Iterator[str]:
    """Run ``isochunk view`` in a process of its own; yields the link that it prints."""
    process = start("view", *arguments, "--json")
    try:
        yield json.loads(process.stdout.readline())["neuroglancer_url"]
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert b"Traceback" not in err, err.decode()


def cross_section(image: np.ndarray, panel: dict[str, float]) -> np.ndarray:
    """Return grey levels of the middle of a panel: inside the result, right of the axis lines."""
    y = round(panel["top"] + panel["height"] / 2)
    x = round(panel["left"] + panel["width"] / 2)
    return image[y - 100 : y - 10, x + 10 : x + 100].astype(float)


def alignment(first: np.ndarray, second: np.ndarray) -> tuple[tuple[int, int], float]:
    """Return by how many pixels (y, x) the first must move to be most like the second, and how."""
    reach = 10
    inner = second[reach:-reach, reach:-reach].ravel()
    n, m = first.shape
    likeness = {
        (reach - y, reach - x): np.corrcoef(
            first[y : n - 2 * reach + y, x : m - 2 * reach + x].ravel(), inner
        )[0, 1]
        for y in range(2 * reach + 1)
        for x in range(2 * reach + 1)
    }
    best = max(likeness, key=lambda shift: likeness[shift])
    return best, likeness[best]


@pytest.mark.parametrize("format_", ["precomputed", "ome-zarr"])
def test_run_then_view_as_a_user_does(page: Any, tmp_path: Path, format_: str) -> None:
    source, box = tissue_source(tmp_path)
    target = str(tmp_path / "isotropic")
    assert command(
        "run",
        source,
        target,
        "--model",
        "cubic",
        "--spacing",
        "4.6,4.6,4.6",
        "--box",
        box,
        "--format",
        format_,
        "--chunk",
        "32,32,32",
        "--shard",
        "64,64,64",
    )["complete"]

    def sections(image: np.ndarray, panel: int) -> list[np.ndarray]:
        """Return the same section, xy 0 or xz 1, of the result and of the source."""
        places = panels(page)
        return [cross_section(image, places[index]) for index in (panel, panel + 4)]

    def drawn(image: np.ndarray) -> bool:
        return all(section.std() > 20 for panel in (0, 1) for section in sections(image, panel))

    with viewing(target, source) as url:
        page.goto(url)
        page.wait_for_selector(".neuroglancer-rendered-data-panel", timeout=60_000)
        image = screenshot(page, tmp_path, f"view-{format_}", drawn)
        shown = [sections(image, panel) for panel in (0, 1)]
        page.goto("about:blank")
    for result, original in shown:
        assert min(result.mean(), original.mean()) > 60
        shift, likeness = alignment(result, original)
        # The result lies between two sections of the source, which shows one of them.
        assert likeness > 0.7
        # A voxel of the result is 2 pixels, a section of the source 20.
        assert max(map(abs, shift)) <= 2, shift
