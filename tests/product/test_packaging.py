"""What is installed is the product: a wheel in an environment of its own, and a conda recipe."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tomllib
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest
from rattler_build import Stage0Recipe

import isochunk

ROOT = Path(__file__).parents[2]
CONDA_NAMES = {"torch": "pytorch", "dask[array]": "dask", "cloud-volume[png]": "cloud-volume"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it would be published."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "isochunk"
    files = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == files
    assert "isochunk/py.typed" in files
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_alone_runs_demo_audit_and_view(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "clean", with_pip=True)
    program = tmp_path / "clean/bin/isochunk"
    pins = ROOT / "constraints.txt"
    subprocess.run(
        [tmp_path / "clean/bin/python", "-m", "pip", "install", "-q", "-c", pins, f"{wheel}[view]"],
        check=True,
        cwd=tmp_path,
    )

    def told(*arguments: str) -> dict[str, object]:
        done = subprocess.run([program, *arguments, "--json"], stdout=subprocess.PIPE, cwd=tmp_path)
        assert done.returncode == 0
        found: dict[str, object] = json.loads(done.stdout)
        return found

    assert told("demo")["compared"]["over_cubic"] > 1.5  # type: ignore[index]
    assert told("audit", "demo/isotropic")["complete"] is True
    viewer = subprocess.Popen(
        [program, "view", "demo/isotropic", "demo/anisotropic", "--json"],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    try:
        assert viewer.stdout is not None
        link = json.loads(viewer.stdout.readline())["neuroglancer_url"]
        with urllib.request.urlopen(link, timeout=60) as page:
            assert b"neuroglancer" in page.read().lower()
        viewer.send_signal(signal.SIGINT)
        assert viewer.wait(timeout=30) == 0
    finally:
        viewer.kill()
        viewer.communicate()


def test_the_conda_recipe_renders_and_asks_for_what_the_project_asks_for() -> None:
    (rendered,) = Stage0Recipe.from_file(ROOT / "deploy/conda/recipe.yaml").render()
    recipe = rendered.recipe.to_dict()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {f"python {project['requires-python']}"}
    for requirement in project["dependencies"]:
        name, floor = re.fullmatch(r"([\w.\-\[\]]+)(>=[\d.]+)", requirement).groups()  # type: ignore[union-attr]
        wanted.add(f"{CONDA_NAMES.get(name, name)} {floor}")
    assert set(recipe["requirements"]["run"]) == wanted
    assert recipe["package"] == {"name": "isochunk", "version": isochunk.__version__}
    (program,) = project["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [" = ".join(program)]
    assert recipe["about"]["license"] == project["license"]
    assert recipe["about"]["summary"] == project["description"]
