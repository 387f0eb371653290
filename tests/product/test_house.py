"""Rules of the house that no single module can hold: imports, packaging, linting."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest

import isochunk

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "isochunk"
MAX_LINES = {"isochunk": 450, "examples": 450, "benchmarks": 500, "tests": 500}

HEAVY = ["torch", "dask", "distributed", "tensorstore", "cloudvolume", "scipy", "neuroglancer"]


def sources() -> dict[str, Path]:
    """Return the files of the package by module name, without the package's own name."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        files[name.removesuffix("__init__").rstrip(".")] = path
    return files


@pytest.mark.slow
def test_imports_go_one_way():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout


def imports(path: Path) -> set[str]:
    """Return every name that a file imports from the package, at its head or inside functions."""
    return {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("isochunk")
        for alias in node.names
    }


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_benchmarks_import_what_there_is(path):
    for name in imports(path):
        module, _, inside = name.rpartition(".")
        if name.startswith("isochunk."):
            assert hasattr(import_module(module), inside) or find_spec(name), name


def test_few_modules_lie_at_the_root():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "errors"}


@pytest.mark.parametrize("room", sorted(p.parent for p in PACKAGE.rglob("*/__init__.py")))
def test_a_room_says_what_lives_in_it(room):
    tree = ast.parse((room / "__init__.py").read_text())
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1, f"{room.name}/__init__.py does more than to say it"


@pytest.mark.parametrize("module", ["isochunk", "isochunk.planning.make", "isochunk.cli.main"])
def test_importing_is_light(module):
    code = f"import {module}, sys; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def test_what_runs_a_job_loads_no_scipy():
    """It takes longer to load than all the rest, in each worker too."""
    rooms = "isochunk.api.jobs, isochunk.cli.main, isochunk.cluster.backend"
    code = f"import {rooms}, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "isochunk.api.jobs" in done.stdout.split()
    assert "scipy" not in done.stdout.split()


def test_the_public_names_are_there_and_documented():
    for name in isochunk.__all__:
        assert getattr(isochunk, name).__doc__, name
    with pytest.raises(AttributeError):
        isochunk.resolve  # noqa: B018  a name of isochunk.api that is not public


SHOWN = [
    path
    for folder in ("docs", "deploy", "examples", ".")
    for path in ((ROOT / folder).rglob("*") if folder != "." else ROOT.glob("*.md"))
    if path.suffix in {".md", ".py", ".ipynb"}
    and path.name not in {"CONTRIBUTING.md", "architecture.md"}
    and path.parent.name != "hooks"  # what builds the site looks inside
]


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_users_are_shown_public_names_only(path):
    """What docs, deploy files and examples call is what ``isochunk.__all__`` names."""
    text = path.read_text()
    rooms = "|".join(p.parent.name for p in PACKAGE.glob("*/__init__.py"))
    inside = rf"\bisochunk\.(?:api|{rooms})\b(?!\.toml)"
    launched = {"-m isochunk.cli"}  # torchrun starts modules
    found = [m for m in re.findall(rf"(?:-m )?{inside}", text) if m not in launched]
    assert found == []


def test_only_the_command_line_prints():
    for module, path in sources().items():
        calls = (n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))
        prints = any(isinstance(f, ast.Name) and f.id == "print" for f in calls)
        assert not prints or module.startswith("cli."), f"{module} prints; log instead"


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
        name = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=[\d.]+(?:,!=[\d.]+\.\*)?", requirement)
        assert name, f"{requirement} is more than a floor, and what is known to be wrong"
        assert normal(name.group(1)) in pins(), f"{requirement} has no pin in constraints.txt"
    assert all(re.fullmatch(r"[\d.]+(post\d+)?", pin) for pin in pins().values())
    assert pins()["dask"] == pins()["distributed"]


def test_what_is_tested_is_what_is_pinned():
    for name in ("torch", "dask", "distributed", "tensorstore", "zarr", "numpy"):
        installed = version(name).partition("+")[0]
        assert f"{name}=={installed}" in (ROOT / "constraints.txt").read_text()


def test_the_drawing_of_the_rooms_is_as_they_are():
    subprocess.run([sys.executable, ROOT / "docs" / "draw_rooms.py", "--check"], check=True)


def test_the_page_on_the_architecture_names_what_there_is():
    """Every ``room.module`` and every file that the page names exists."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = "|".join(p.parent.name for p in PACKAGE.glob("*/__init__.py"))
    modules = set(re.findall(rf"\b(?:{rooms})\.[a-z_]+\b", page))
    assert len(modules) > 10
    assert modules <= set(sources())
    files = {f for f in re.findall(r"`([a-z_]+/[\w/.]+)`", page) if "NAME" not in f}
    assert all((PACKAGE / f).exists() or (ROOT / f).exists() for f in files), files


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
