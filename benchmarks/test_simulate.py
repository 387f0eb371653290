"""The simulation of many workers, small: twenty that sleep for 0.2 s a task."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SIMULATE = Path(__file__).with_name("simulate.py")


def test_twenty_sleeping_workers() -> None:
    options = ["--workers", "20", "--task-s", "0.2", "--tasks", "3", "--hosts", "2"]
    done = subprocess.run(
        [sys.executable, str(SIMULATE), *options, "--audit", "--json"],
        check=True,
        capture_output=True,
        timeout=280,
    )
    (line,) = done.stdout.splitlines()
    row = json.loads(line)
    assert (row["workers"], row["tasks"]) == (20, 60)
    assert 0 < row["efficiency"] <= 1
    assert 0 < row["audit, efficiency"] <= 1
