"""isochunk on one GPU: how exact it is, how fast, and how busy it keeps the card.

    python benchmarks/gpu.py [--seconds 540] [--json FILE] [--small] [--only TEXT]...

Needs a GPU, torch and isochunk; rows that need more say what is missing. Rows are done in order of
worth, in a process of their own that is started anew where one hangs or loses the GPU; those for
which no time is left are named. Results so far are in the file after each row. Without a GPU, or
with ``--small``, the same code runs on the CPU in small sizes: its figures of correctness are of
precisions as a CPU emulates them, and its times tell nothing.

``gpu_rows.py`` lists the rows, ``gpu_tables.py`` says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, TypeAlias

import torch
from gpu_rows import Row, rows
from gpu_tables import tables

import isochunk
from isochunk.host.files import write_atomically

RUNNER = Path(__file__).with_name("gpu_rows.py")

MEMORY = Path("/dev/shm")
ROOM = 6 << 30
"""Free bytes from which on that is used: two sources, a target, and what is in between."""

FIRST = ("machine", "sources")
"""Rows without which others say nothing."""

Result: TypeAlias = dict[str, Any]
"""What became of a row: name, table, status, reason, seconds, and lines of its table."""


class Runner:
    """The process that carries rows out; another one where it is lost."""

    def __init__(self, work: Path, *, small: bool) -> None:
        """Start none yet."""
        self.command = [sys.executable, str(RUNNER), str(work), "small" if small else "full"]
        self.work = work
        self.process: subprocess.Popen[str] | None = None

    def carry_out(self, name: str, limit_s: float) -> Result:
        """Carry a row out.

        Args:
            name: of the row.
            limit_s: seconds after which it is given up.

        Returns:
            Status, reason and lines.
        """
        process = self._started()
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None
        try:
            print(name, file=asked, flush=True)
        except BrokenPipeError:
            return self._lost("the process was gone before it began")
        if not select.select([answers], [], [], limit_s)[0]:
            return self._lost(f"given up after {limit_s:.0f} s")
        return self._read(answers)

    def close(self) -> None:
        """End the process and all that it started."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    stream.close()
        self.process = None

    def _started(self) -> subprocess.Popen[str]:
        if self.process is None or self.process.poll() is not None:
            self.close()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env=environment(self.work),
            )
        return self.process

    def _read(self, answers: IO[str]) -> Result:
        text = answers.readline()
        if text:
            result: Result = json.loads(text)
            return result
        assert self.process is not None
        return self._lost(f"the process ended with {self.process.wait()}")

    def _lost(self, reason: str) -> Result:
        self.close()
        return {"status": "failed", "reason": reason, "lines": []}


def measure(
    wanted: list[Row], work: Path, *, small: bool, seconds: float
) -> Iterator[tuple[Row, Result]]:
    """Carry rows out in their order, as far as time goes.

    Args:
        wanted: rows.
        work: folder for all that is written.
        small: the CPU form.
        seconds: for all of them.

    Yields:
        Each row and what became of it, as soon as it is known.
    """
    end = time.monotonic() + seconds
    runner = Runner(work, small=small)
    try:
        for row in wanted:
            begun = time.monotonic()
            if end - begun < row.least_s:
                yield row, {"status": "not run", "reason": "no time was left", "lines": []}
                continue
            result = runner.carry_out(row.name, min(row.most_s, end - begun))
            yield row, {**result, "took_s": time.monotonic() - begun}
    finally:
        runner.close()


def environment(work: Path) -> dict[str, str]:
    """Return the variables of a process; records of a target want an isochunk that is installed.

    From a checkout that is only on the path, it is given what an installation says of itself.
    """
    try:
        version("isochunk")
    except PackageNotFoundError:
        said = work / "installed" / f"isochunk-{isochunk.__version__}.dist-info" / "METADATA"
        said.parent.mkdir(parents=True, exist_ok=True)
        said.write_text(f"Metadata-Version: 2.1\nName: isochunk\nVersion: {isochunk.__version__}\n")
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(said.parents[1]))))
        return {**os.environ, "PYTHONPATH": path}
    return dict(os.environ)


@contextmanager
def folder(*, small: bool) -> Iterator[Path]:
    """Give a folder in memory, where there is room for it; else where temporary files are."""
    fits = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM
    with tempfile.TemporaryDirectory(dir=MEMORY if fits and not small else None) as made:
        yield Path(made)


def chosen_rows(only: list[str] | None, *, small: bool) -> list[Row]:
    """Return the rows whose names hold one of some texts, and what those need; all by default."""
    return [
        row
        for row in rows(small=small)
        if not only or row.name in FIRST or any(text in row.name for text in only)
    ]


def written(results: list[Result], *, small: bool, file: Path | None) -> str:
    """Write what is known so far to a file, and return its tables."""
    found = {"small": small, "rows": results}
    if file is not None:
        text = json.dumps(found, indent=1)
        write_atomically(file, lambda stream: stream.write(text.encode()))
    return tables(found)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seconds", type=float, default=540, help="for everything")
    options.add_argument("--json", type=Path, help="file for all figures")
    options.add_argument("--small", action="store_true", help="the CPU form, also beside a GPU")
    options.add_argument(
        "--only", action="append", metavar="TEXT", help="rows named so; repeatable"
    )
    chosen = options.parse_args()
    small = chosen.small or not torch.cuda.is_available()
    if small and not chosen.small:
        print("torch sees no GPU: the CPU form, in small sizes", file=sys.stderr)
    results: list[Result] = []
    with folder(small=small) as work:
        wanted = chosen_rows(chosen.only, small=small)
        for row, result in measure(wanted, work, small=small, seconds=chosen.seconds):
            results.append({"row": row.name, "table": row.table, **result})
            said = [f"{result.get('took_s', 0):.1f} s", result["status"], result.get("reason", "")]
            print(f"{row.name}: {', '.join(filter(None, said))}", file=sys.stderr, flush=True)
            written(results, small=small, file=chosen.json)
    print(written(results, small=small, file=chosen.json))


if __name__ == "__main__":
    main()
