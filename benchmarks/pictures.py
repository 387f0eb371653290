"""Draws the pictures of the README from the demo's tissue, into ``docs/pictures``.

    python benchmarks/pictures.py

``before_after.png`` and ``along_y.webp`` need what isochunk needs; ``neuroglancer.png``, the demo
as a browser shows it, needs playwright and a chromium besides (see CONTRIBUTING.md).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import isochunk
from isochunk.core.tissue import FACTOR, truth
from isochunk.storage.access import Access
from isochunk.viewing.result import view_result

OUT = Path(__file__).resolve().parents[1] / "docs" / "pictures"
MODEL = "anyz-z4"
WITHOUT_GPU = [
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
"""How chromium draws without one."""
SCALE, GAP, HEAD = 2, 8, 22
"""Pixels of a voxel, between panels, and above them."""
DARKEST, BRIGHTEST = 0.5, 99.5
"""Percentiles of the truth that are drawn black and white."""
STEP, FRAME_MS = 4, 120
"""Voxels along y from one frame to the next, and how long one is seen."""
DRAWN_MS = 20_000
"""Time a browser without a GPU takes to draw."""
SHOWN_Y = 97
"""Where the still picture is cut."""


def panels() -> dict[str, NDArray[np.uint8]]:
    """Return the volumes that are shown, of one shape."""
    with tempfile.TemporaryDirectory() as folder:
        source = isochunk.sample_tissue(folder)
        stored = isochunk.open(source)
        thick = stored.read(stored.spec.box).repeat(FACTOR, 0)
        made = isochunk.isotropic(source, MODEL).compute()
    known = truth()
    low, high = np.percentile(known, (DARKEST, BRIGHTEST))
    shown = {"sections of 40 nm": thick, f"isochunk, {MODEL}": made, "recorded at 10 nm": known}
    return {
        name: (255 * ((voxels - low) / (high - low)).clip(0, 1)).round().astype(np.uint8)
        for name, voxels in shown.items()
    }


def side_by_side(shown: dict[str, NDArray[np.uint8]], y: int) -> Image.Image:
    """Draw xz slices, z down, with their names above."""
    depth, _, width = next(iter(shown.values())).shape
    size = (len(shown) * (width * SCALE + GAP) - GAP, depth * SCALE + HEAD)
    picture = Image.new("L", size, 255)
    for i, (name, voxels) in enumerate(shown.items()):
        left = i * (width * SCALE + GAP)
        slice_ = Image.fromarray(voxels[:, y]).resize((width * SCALE, depth * SCALE), 0)
        picture.paste(slice_, (left, HEAD))
        ImageDraw.Draw(picture).text((left + 2, 3), name, fill=0, font_size=14)
    return picture


def seen_in_neuroglancer(folder: Path) -> None:
    """Write what a browser shows of the demo: the result, in all three planes."""
    from playwright.sync_api import sync_playwright

    source = isochunk.sample_tissue(folder)
    target = f"{folder}/isotropic"
    isochunk.run(isochunk.plan(isochunk.Job(source=source, target=target, model=MODEL)))
    with view_result(target, source, Access()) as viewer, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=WITHOUT_GPU
        )
        page = browser.new_page(viewport={"width": 1200, "height": 700})
        page.goto(viewer.url)
        page.wait_for_selector(".neuroglancer-rendered-data-panel", timeout=60_000)
        page.wait_for_timeout(DRAWN_MS)
        page.screenshot(path=OUT / "neuroglancer.png")
        browser.close()


def main() -> None:
    """Write the pictures."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        seen_in_neuroglancer(Path(folder))
    shown = panels()
    side_by_side(shown, SHOWN_Y).save(OUT / "before_after.png", optimize=True)
    first, *frames = (side_by_side(shown, y) for y in range(0, len(truth()[0]), STEP))
    first.save(
        OUT / "along_y.webp",
        save_all=True,
        append_images=frames,
        duration=FRAME_MS,
        loop=0,
        quality=60,
        method=6,
    )


if __name__ == "__main__":
    main()
