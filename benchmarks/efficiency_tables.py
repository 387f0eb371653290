"""The tables of ``efficiency.py``: E and its factors, and the goals against what was measured.

E = (output voxels / rate of bare forward passes) / wall time = E_halo x E_compute x E_overlap:

- E_halo: multiply-adds without halos over those done;
- E_compute: how fast those are done, against bare forward passes; over several processes, by all
  of them together;
- E_overlap: share of the wall time in which a process computes, all that starts up included.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Runs: TypeAlias = Mapping[str, Sequence[Mapping[str, float]]]
"""Figures of each run of each contender."""

COLUMNS = (
    "contender",
    "wall s (min-max)",
    "Mvox/s",
    "E",
    "E_halo",
    "E_compute",
    "E_overlap",
    "first block s",
    "plan s",
    "peak GiB",
    "planned GiB",
    "peak / planned",
)


def median(runs: Runs, name: str, key: str) -> float | None:
    """Return the median of a figure; None where a contender has none, or did not run."""
    values = [run[key] for run in runs.get(name, ()) if key in run]
    return statistics.median(values) if values else None


def ideal_s(runs: Runs) -> float | None:
    """Return the seconds of the fastest bare forward passes; None where none ran."""
    names = (name for name in runs if name.startswith("bare forward"))
    return min((m for n in names if (m := median(runs, n, "wall_s")) is not None), default=None)


def efficiency(runs: Runs, name: str) -> float | None:
    """Return E of a contender."""
    ideal, wall = ideal_s(runs), median(runs, name, "wall_s")
    return None if ideal is None or wall is None else ideal / wall


def factors(runs: Runs, name: str) -> dict[str, float]:
    """Return those of E and its factors that are known of a contender."""
    found: dict[str, float] = {}
    whole, halo = efficiency(runs, name), median(runs, name, "e_halo")
    wall, compute = median(runs, name, "wall_s"), median(runs, name, "compute_s")
    processes = median(runs, name, "processes") or 1
    if whole is not None:
        found["E"] = whole
    if halo is not None:
        found["E_halo"] = halo
    if wall and compute is not None:
        found["E_overlap"] = compute / processes / wall
    if len(found) == 3 and compute:
        found["E_compute"] = found["E"] / found["E_halo"] / found["E_overlap"]
    return found


def memory_share(runs: Runs, name: str) -> float | None:
    """Return the largest peak over what was planned, of any run."""
    shares = [r["peak_gib"] / r["planned_gib"] for r in runs.get(name, ()) if "planned_gib" in r]
    return max(shares, default=None)


def table(runs: Runs, voxels: int) -> str:
    """Write medians as a table.

    Args:
        runs: what was measured.
        voxels: that each contender made.
    """
    lines = [cells(COLUMNS), cells("---" for _ in COLUMNS)]
    for name in runs:
        walls = [run["wall_s"] for run in runs[name]]
        wall = statistics.median(walls)
        parts = factors(runs, name)
        lines.append(
            cells(
                (
                    name,
                    f"{wall:.1f} ({min(walls):.1f}-{max(walls):.1f})",
                    number(voxels / wall / 1e6),
                    *(number(parts.get(key)) for key in COLUMNS[3:7]),
                    *(
                        number(median(runs, name, key), 1)
                        for key in ("first_s", "plan_s", "peak_gib", "planned_gib")
                    ),
                    number(memory_share(runs, name)),
                )
            )
        )
    return "\n".join(lines)


def cells(values: Iterable[str]) -> str:
    """Write one line of a table."""
    return f"| {' | '.join(values)} |"


def number(value: float | None, digits: int = 2) -> str:
    """Write a number; nothing where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of the goals."""

    what: str
    """What is measured."""
    goal: str
    """Wanted."""
    stretch: str
    """Hoped for."""
    measured: Callable[[Runs], str]
    """Returns what was measured; empty where it was not."""


USERS = "isochunk, user's .py"
CHECKPOINT = "isochunk, checkpoint"
PIPELINE = "bare pipeline, checkpoint"
TUNED_LOOPS = ("hand loop 256, tuned", "hand loop 128, tuned")
OVERLAPS = ("map_overlap + to_zarr 256", "map_overlap + to_zarr 128")


def faster_than(others: Sequence[str]) -> Callable[[Runs], str]:
    """Return how many times as fast as the best of others the user's network is."""

    def measured(runs: Runs) -> str:
        ours = median(runs, USERS, "wall_s")
        walls = [wall for name in others if (wall := median(runs, name, "wall_s")) is not None]
        return f"{min(walls) / ours:.2f}x faster" if walls and ours else ""

    return measured


def e_of(name: str) -> Callable[[Runs], str]:
    """Return E of a row."""
    return lambda runs: number(efficiency(runs, name))


def memory_range(runs: Runs) -> str:
    """Return the least and the largest peak over plan, of all rows of isochunk."""
    shares = {name: share for name in runs if (share := memory_share(runs, name)) is not None}
    if not shares:
        return ""
    low, high = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    return f"{shares[low]:.2f} ({low}) to {shares[high]:.2f} ({high})"


def framework_cost(runs: Runs) -> str:
    """Return what loop, ledger and report cost over the bare pipeline."""
    ours, bare = median(runs, CHECKPOINT, "wall_s"), median(runs, PIPELINE, "wall_s")
    return f"{ours / bare:.3f}x" if ours and bare else ""


GOALS = (
    Goal(
        "user's network, one process, against the tuned hand loop at its best block",
        "1.5x faster",
        "2x faster",
        faster_than(TUNED_LOOPS),
    ),
    Goal("E of it", "0.65", "0.80", e_of(USERS)),
    Goal(
        "user's network on the user's own LocalCluster, 32 blocks, E",
        "0.60",
        "0.75",
        e_of("LocalCluster 2 x 1, user's .py, blocks of 128"),
    ),
    Goal("our own network, one process, E", "0.85", "0.92", e_of(CHECKPOINT)),
    Goal(
        "the same on the user's own LocalCluster, 32 blocks, E",
        "0.80",
        "0.90",
        e_of("LocalCluster 2 x 1, checkpoint, blocks of 128"),
    ),
    Goal(
        "the same on isochunk's own cluster, 32 blocks, E",
        "0.80",
        "0.90",
        e_of("isochunk's cluster of 2, checkpoint, blocks of 128"),
    ),
    Goal(
        "user's network, one process, against map_overlap at its best block",
        "2.5x faster",
        "3x faster",
        faster_than(OVERLAPS),
    ),
    Goal("peak memory over plan", "0.85 to 1.00", "never above 1", memory_range),
    Goal("framework cost over the bare pipeline", "1.03x", "1.01x", framework_cost),
)
"""What was promised; blocks of 128 are 32 of the usual volume."""


def goals_table(runs: Runs) -> str:
    """Write the goals against what was measured."""
    lines = [cells(("", "goal", "stretch", "measured")), cells(["---"] * 4)]
    lines += [cells((g.what, g.goal, g.stretch, g.measured(runs))) for g in GOALS]
    return "\n".join(lines)
