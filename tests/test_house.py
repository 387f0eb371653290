"""Rules of the house that no single module can hold: import ranks, packaging, linting."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pytest

import isochunk

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "isochunk"
MAX_LINES = {"isochunk": 450, "examples": 450, "benchmarks": 500, "tests": 500}

# A module imports only from rows above its own. The first digit is the rank of the design.
RANKS = {
    "0.0": "errors",
    "0.1": "allocator atomic geometry metrics text train.pictures",
    "1.0": "codec judging.ceiling judging.spectra judging.stitched options spec storage.url",
    "1.1": "config judging.siren",
    "1.2": "cluster",
    "2.0": "block predict models.placed storage.access train.degrade",
    "2.1": "judging.dictionary judging.figures models.axial models.fsrcnn models.srunet "
    "storage.arrays storage.keys storage.volume train.crappify",
    "2.2": "intensity layout models.a2i models.niiv models.probe models.pssr storage.ome "
    "judging.page judging.truth",
    "2.3": "models.networks planning storage.precomputed train.vgg viewer",
    "2.4": "background models.engines train.config train.perceptual",
    "3.0": "models.checkpoint process storage.events storage.ledger storage.objects train.apply "
    "train.data train.encoder train.presets train.ranks train.schedule",
    "3.1": "storage.cloudvolume storage.recognise storage.source",
    "3.2": "storage.target",
    "3.3": "storage.tensorstore",
    "3.4": "engine.keeper engine.metrics engine.patience engine.report train.run train.sources",
    "4.0": "auditing models.foreign models.predictor serve",
    "4.1": "engine.clusters engine.flock engine.loop models.load progress train.loop",
    "4.2": "cost engine.local judging.references",
    "4.3": "calibrating engine.dask engine.lazy evaluate preview",
    "5.0": "api testing.synthetic",
    "5.1": "demo results",
    "5.2": "cli",
}

# Only these modules know the library; all others see our own types.
OWNERS = {
    "tensorstore": {"storage.objects", "storage.source", "storage.target"},
    "cloudvolume": {"storage.cloudvolume"},
    "dask": {"engine.clusters", "engine.dask", "engine.keeper", "engine.lazy"},
    "distributed": {"engine.clusters", "engine.dask", "engine.flock", "engine.keeper"},
    "neuroglancer": {"serve"},
    "matplotlib": {"judging.page"},
}
HEAVY = ["torch", "dask", "distributed", "tensorstore", "cloudvolume", "scipy", "neuroglancer"]


def sources() -> dict[str, Path]:
    """Return the files of the package by module name, without the package's own name."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        files[name.removesuffix("__init__").rstrip(".")] = path
    return files


def rank_of() -> dict[str, str]:
    return {module: rank for rank, modules in RANKS.items() for module in modules.split()}


def without_type_checking(tree: ast.AST) -> ast.AST:
    """Leave out what is imported for annotations alone."""

    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            self.generic_visit(node)
            named = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return node.orelse if named else node

    return Strip().visit(tree)


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, at its head or inside functions."""
    found = set()
    for node in ast.walk(without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("module", [name for name in sources() if name in rank_of()])
def test_modules_import_only_lower_ranks(module):
    ranks, known = rank_of(), sources()
    for name in imports(sources()[module]):
        head, _, inside = name.partition(".")
        if head != "isochunk" or not inside:
            continue
        other = inside if inside in known else inside.rpartition(".")[0]
        if ranks.get(other):
            assert ranks[other] < ranks[module], f"{module} ({ranks[module]}) imports {other}"


def test_every_module_has_a_rank():
    packages = {name for name, path in sources().items() if path.name == "__init__.py"}
    assert set(sources()) - packages == set(rank_of()), "RANKS lists every module, once"


@pytest.mark.parametrize("library", OWNERS)
def test_libraries_have_one_owner(library):
    users = {
        module
        for module, path in sources().items()
        if any(name.split(".")[0] == library for name in imports(path))
    }
    # The lazy array of isochunk.isotropic is made in the API.
    assert users - OWNERS[library] <= ({"api"} if library == "dask" else set())


@pytest.mark.parametrize("module", ["isochunk", "isochunk.planning", "isochunk.cli"])
def test_importing_is_light(module):
    code = f"import {module}, sys; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def test_only_the_command_line_prints():
    for module, path in sources().items():
        calls = (n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
        prints = any(isinstance(f, ast.Name) and f.id == "print" for f in calls)
        assert not prints or module == "cli", f"{module} prints; log instead"


@pytest.mark.parametrize("folder", MAX_LINES)
def test_files_can_be_read_in_one_sitting(folder):
    lengths = {
        path.name: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: n for name, n in lengths.items() if n > MAX_LINES[folder]} == {}


def pins() -> dict[str, str]:
    lines = [
        line.partition(";")[0].strip()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    return {normal(name): pin for name, _, pin in (line.partition("==") for line in lines)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_version_is_in_one_place():
    assert version("isochunk") == isochunk.__version__
    for path in [*PACKAGE.rglob("*.py"), ROOT / "pyproject.toml", ROOT / "Makefile"]:
        own = path == PACKAGE / "__init__.py"
        assert own or f'"{isochunk.__version__}"' not in path.read_text(), path
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest.group(1) in (isochunk.__version__, "Unreleased")


def test_floors_in_the_project_and_pins_in_the_constraints():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in chain(project["dependencies"], *project["optional-dependencies"].values()):
        name = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=[\d.]+", requirement)
        assert name, f"{requirement} is more than a floor"
        assert normal(name.group(1)) in pins(), f"{requirement} has no pin in constraints.txt"
    assert all(re.fullmatch(r"[\d.]+(post\d+)?", pin) for pin in pins().values())
    assert pins()["dask"] == pins()["distributed"]


def test_what_is_tested_is_what_is_pinned():
    for name in ("torch", "dask", "distributed", "tensorstore", "zarr", "numpy"):
        installed = version(name).partition("+")[0]
        assert f"{name}=={installed}" in (ROOT / "constraints.txt").read_text()


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == files
    assert "isochunk/py.typed" in files
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize("command", ["check --output-format=concise", "format --check"])
def test_ruff(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split(), "--no-cache", "."],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_mypy():
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
