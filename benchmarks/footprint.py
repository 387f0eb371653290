"""What an installation weighs, and how long the program takes to start: a table in Markdown.

Run it in an environment into which isochunk was installed, with nothing else at work:
    python benchmarks/footprint.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import distributions, version
from pathlib import Path

import isochunk
from isochunk.core.amounts import in_bytes

ROUNDS = 5
STARTED = {
    "`import isochunk`": ["-c", "import isochunk"],
    "`isochunk --version`": ["-m", "isochunk.cli", "--version"],
    "`isochunk run --help`": ["-m", "isochunk.cli", "run", "--help"],
    "`isochunk.plan`, imported": ["-c", "import isochunk; isochunk.plan"],
    "`import torch`, for comparison": ["-c", "import torch"],
}
LARGEST = 6
"""Packages that are listed by name."""


def size_bytes(folder: Path) -> int:
    """Sum what lies below a folder, without byte code."""
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def installed() -> dict[str, int]:
    """Return what each installed package takes, in bytes, largest first."""
    sizes = {
        found.name: sum(
            path.stat().st_size
            for file in found.files or ()
            if (path := Path(str(found.locate_file(file)))).is_file() and path.suffix != ".pyc"
        )
        for found in distributions()
    }
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def median_s(arguments: list[str]) -> float:
    """Return how long a fresh interpreter takes, in seconds."""
    taken = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def main() -> None:
    """Print the tables."""
    package = Path(isochunk.__file__).parent
    shipped = size_bytes(package / "models" / "shipped") + size_bytes(
        package / "models" / "baselines"
    )
    tissue = (package / "core" / "medulla.png").stat().st_size
    own = size_bytes(package)
    sizes = installed()
    print("| what | size |\n|---|---|")
    print(f"| isochunk {isochunk.__version__} itself | {in_bytes(own)} |")
    print(f"| of that weights, cards and curves | {in_bytes(shipped)} |")
    print(f"| of that the demo's tissue | {in_bytes(tissue)} |")
    print(f"| of that code | {in_bytes(own - shipped - tissue)} |")
    whole = size_bytes(Path(sysconfig.get_path("purelib")))
    print(f"| all {len(sizes)} packages | {in_bytes(whole)} |")
    for name in list(sizes)[:LARGEST]:
        print(f"| of that {name} {version(name)} | {in_bytes(sizes[name])} |")
    print("\n| started | median s |\n|---|---|")
    for name, arguments in STARTED.items():
        print(f"| {name} | {median_s(arguments):.2f} |")


if __name__ == "__main__":
    main()
