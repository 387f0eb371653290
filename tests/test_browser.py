"""Source and result in a real browser: neuroglancer draws them at the same place.

The marker of the test volumes has edges that both grids can hold, so its outline must agree to a
pixel; a layer that is half a source section off is 8 pixels off here.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from scipy import ndimage

from isochunk.geometry import AXES, Box, Spacing
from isochunk.serve import RunningViewer, view
from isochunk.spec import LevelSpec, VolumeSpec
from isochunk.storage.access import Access
from isochunk.storage.tensorstore import create_volume, open_volume
from isochunk.viewer import contrast_range

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
ARGS = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        message = "needs a browser: apt install chromium"
        if os.environ.get("ISOCHUNK_REQUIRE_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        browser.close()


def stored(folder: Path, format_: str, spacing: Spacing, corner_nm: Corner) -> VolumeSpec:
    """Write the test pattern; what is returned is what its metadata says."""
    repeat = int(SOURCE_NM.z / spacing.z)
    voxels = np.full(SOURCE_SHAPE, BACKGROUND, np.uint8)
    voxels[MARKER_BOX.slices((0, 0, 0))] = MARKER
    voxels[SPECK_BOX.slices((0, 0, 0))] = SPECK
    voxels = voxels.repeat(repeat, axis=0)
    shard = (32, 64, 64) if repeat > 1 else None
    level = LevelSpec("0", Box.from_shape(voxels.shape), spacing, (16, 32, 32), shard)
    encoding = "zstd" if format_ == "zarr3" else "raw"
    spec = VolumeSpec(str(folder), format_, "uint8", encoding, corner_nm, (level,))
    create_volume(spec).write(level.box, voxels)
    return open_volume(str(folder)).spec


def screenshot(page: Any, folder: Path, name: str) -> np.ndarray:
    """Wait until both layers are drawn and nothing changes any more; return grey levels (y, x)."""
    from PIL import Image

    deadline = time.monotonic() + 120
    before = np.zeros((HEIGHT, WIDTH), np.uint8)
    while time.monotonic() < deadline:
        png = page.screenshot()
        now = np.asarray(Image.open(BytesIO(png)).convert("L"))
        drawn = all((half > 250).any() for half in np.split(now, 2, axis=1))
        if drawn and np.array_equal(now, before):
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
