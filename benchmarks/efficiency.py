"""Efficiency on this machine: E, its factors, and the goals, for isochunk and for other tools.

Every contender runs the same 3D-SRU-Net (width 8, three levels, 3x3x3 kernels, random weights,
fp32) over the same volume into the same kind of store (zarr v3, raw, shards of 128, chunks of 64),
in a process of its own, interleaved with the others; the tables show medians, and the least and the
most. isochunk is started as a user starts it: through its Python API, in a plain process or on a
cluster of the user's own, with default options and no variables set; it writes coarser levels
besides. Outputs are compared with one another, so that speed cannot come from skipping work.

    python benchmarks/efficiency.py [--rows user|cluster|all] [--repeats 3] [--json FILE]

Planning and starting a cluster are not in the wall time, opening the job in every process is.
``contenders.py`` says what each row does, ``efficiency_tables.py`` what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from contenders import CONTENDERS, Row, environment
from efficiency_tables import goals_table, table
from workload import FACTOR, check_same, prepare, stored

from isochunk.core.geometry import Triple

RUNNER = Path(__file__).with_name("contenders.py")


def measure(repeats: int, shape: Triple, names: list[str]) -> dict[str, list[Row]]:
    """Run every contender ``repeats`` times, interleaved.

    Args:
        repeats: rounds.
        shape: sections, rows and columns of the source.
        names: of :data:`contenders.CONTENDERS`.

    Returns:
        The figures of every run.

    Raises:
        ValueError: the output of one is not that of the others.
    """
    runs: dict[str, list[Row]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(work, shape)
        reference = None
        for repeat in range(repeats):
            for name in names:
                runs[name].append(run_apart(name, work))
                print(f"{repeat + 1}/{repeats} {name}: {runs[name][-1]}", file=sys.stderr)
                voxels = stored(work / "target")
                if voxels is not None:
                    reference = voxels if reference is None else reference
                    check_same(reference, voxels, name)
                    shutil.rmtree(work / "target")
    return runs


def run_apart(name: str, work: Path) -> Row:
    """Run a contender in a process of its own."""
    command = [sys.executable, str(RUNNER), name, str(work)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment(name))
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def chosen_names(rows: str, only: list[str] | None) -> list[str]:
    """Return the contenders asked for; with bare forward passes, by which E is counted."""
    if only:
        return [name for name in CONTENDERS if name in only]
    return [
        name
        for name, contender in CONTENDERS.items()
        if rows in ("all", contender.rows) or name.startswith("bare forward")
    ]


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--shape", default="64,512,512", help="source voxels, z,y,x")
    options.add_argument("--rows", default="all", choices=["user", "cluster", "all"])
    options.add_argument("--only", action="append", choices=list(CONTENDERS), help="repeatable")
    options.add_argument("--json", type=Path, help="file for the figures of every run")
    chosen = options.parse_args()
    z, y, x = (int(n) for n in chosen.shape.split(","))
    runs = measure(chosen.repeats, (z, y, x), chosen_names(chosen.rows, chosen.only))
    if chosen.json:
        chosen.json.write_text(json.dumps(runs, indent=1))
    print(table(runs, z * y * x * FACTOR))
    print()
    print(goals_table(runs))


if __name__ == "__main__":
    main()
