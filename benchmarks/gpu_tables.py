"""The tables of ``gpu.py``: what rows measured, and the goals of one H200 against it.

E = (output voxels / rate of bare forward passes) / wall time, as in ``efficiency_tables.py``; but
passes here are of isochunk's own tiles, whose halo is in their rate already, so that E tells what
reading, writing, copying and starting cost. ``steady E`` is the same from the first block that is
done to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from efficiency_tables import Goal, cells, number

Found: TypeAlias = Mapping[str, Any]
"""Whether it is the CPU form, and what became of each row."""
Line: TypeAlias = Mapping[str, Any]
Column: TypeAlias = tuple[str, Callable[[Line], str]]
"""Title, and what stands in it."""

NOT_MEASURED = "not measured"
H3, NIIV = "3D-SRU-Net h3 w64 d3", "niiv of the paper"


def lines_of(found: Found, table: str) -> list[Line]:
    """Return the lines of a table."""
    return [line for row in found["rows"] if row["table"] == table for line in row["lines"]]


def text(key: str) -> Callable[[Line], str]:
    """Return what writes a word."""
    return lambda line: str(line.get(key, ""))


def figure(key: str, digits: int = 2) -> Callable[[Line], str]:
    """Return what writes a number."""
    return lambda line: number(line.get(key), digits)


def share(key: str, digits: int = 0) -> Callable[[Line], str]:
    """Return what writes a share in percent."""
    return lambda line: "" if line.get(key) is None else f"{100 * line[key]:.{digits}f}%"


def ratio(one: str, other: str) -> Callable[[Line], str]:
    """Return what writes one figure over another."""
    return lambda line: number(over(line, one, other))


def over(line: Line, one: str, other: str) -> float | None:
    """Return one figure over another; None where either is not known."""
    top, bottom = line.get(one), line.get(other)
    return None if top is None or not bottom else top / bottom


CORRECTNESS: tuple[Column, ...] = (
    ("network", text("network")),
    ("weights", text("weights")),
    ("source", text("dtype")),
    ("precision", text("precision")),
    ("same as float64", share("same_as_double", 3)),
    ("same as fp32", share("same_as_fp32", 3)),
    ("rms", figure("rms", 4)),
    ("largest", figure("max", 3)),
    ("NaN", lambda line: "yes" if line.get("nan") else "no"),
    ("same in other tiles", share("seam_same", 3)),
    ("at most apart", text("seam_max")),
)
SPECIAL: tuple[Column, ...] = (
    ("what", text("what")),
    ("passed", lambda line: "yes" if line["passed"] else "NO"),
    ("", text("detail")),
)
CEILINGS: tuple[Column, ...] = (
    ("what", text("what")),
    ("", lambda line: f"{line['value']:.4g}"),
    ("unit", text("unit")),
)
FORWARD: tuple[Column, ...] = (
    ("network", text("network")),
    ("precision", text("precision")),
    ("tile", lambda line: f"{line['tile']} ({line['tile_is']})"),
    ("s", figure("seconds", 4)),
    ("Mvox/s", figure("mvox_s", 1)),
    ("peak GiB", figure("peak_gib", 1)),
    ("taken GiB", figure("taken_gib", 1)),
    ("planned GiB", figure("planned_gib", 1)),
    ("peak / planned", ratio("peak_gib", "planned_gib")),
    ("taken / planned", ratio("taken_gib", "planned_gib")),
    ("error", text("error")),
)


def end_to_end(found: Found) -> tuple[Column, ...]:
    """Return the columns of whole conversions, which need the rates of bare forward passes."""
    return (
        ("network", text("network")),
        ("precision", text("precision")),
        ("where", text("where")),
        ("wall s", figure("wall_s")),
        ("Mvox/s", figure("mvox_s", 1)),
        ("E", lambda line: number(efficiency(found, line, "mvox_s"))),
        ("steady E", lambda line: number(efficiency(found, line, "steady_mvox_s"))),
        ("busy", share("busy")),
        ("computing", share("computing")),
        ("first block s", figure("first_s")),
        ("blocks", text("blocks")),
        ("block", text("block")),
        ("tile", text("tile")),
        ("halo", share("halo")),
        ("peak GiB", figure("peak_gib", 1)),
        ("taken GiB", figure("taken_gib", 1)),
        ("planned GiB", figure("planned_gib", 1)),
    )


NOTES: Mapping[str, str] = {
    "Correctness": "Shares of stored voxels; errors of answers before rounding, in grey levels. "
    "The reference is the network in float64 on the CPU. Random weights tell whether code is "
    "right, shipped ones what a precision costs.",
    "Other things that must hold": "",
    "Ceilings": "Medians. Copies count each byte that is read and each that is written only where "
    "it says so.",
    "Bare forward passes": "Output voxels by median time; `planned` is the planner's own tile. "
    "`peak` is what tensors took, `taken` what torch's allocator took for them.",
    "End to end": "`busy` is the share of the time in which the GPU had kernels, as nvidia-smi "
    "says; `computing` that between a block's arrival and its answer, as the GPU's clock says. "
    "`planned` is the tile alone.",
}
"""What is to be known of each table."""


def tables(found: Found) -> str:
    """Write everything that is known."""
    parts = [head(found)]
    for (title, note), name, columns in zip(
        NOTES.items(),
        ("correctness", "special", "ceilings", "forward", "end to end"),
        (CORRECTNESS, SPECIAL, CEILINGS, FORWARD, end_to_end(found)),
        strict=True,
    ):
        lines = lines_of(found, name)
        if lines:
            parts.append("\n\n".join(filter(None, (f"## {title}", note, table(columns, lines)))))
    parts.append(f"## Goals of one H200\n\n{goals_table(found)}")
    missing = [row for row in found["rows"] if row["status"] != "done"]
    if missing:
        said = (f"- {row['row']}: {row['status']}, {row.get('reason', '')}" for row in missing)
        parts.append("\n".join(["## Not measured", "", *said]))
    return "\n\n".join(parts)


def head(found: Found) -> str:
    """Write what the figures depend on."""
    said = [
        f"{key} {number(value, 1) if isinstance(value, float) else value}"
        for line in lines_of(found, "machine")
        for key, value in line.items()
    ]
    form = "the CPU form: times tell nothing" if found["small"] else "one GPU"
    return "\n\n".join(filter(None, (f"# isochunk on {form}", ", ".join(said))))


def table(columns: Iterable[Column], lines: Iterable[Line]) -> str:
    """Write lines as a table."""
    columns = tuple(columns)
    return "\n".join(
        [
            cells(title for title, _ in columns),
            cells("---" for _ in columns),
            *(cells(write(line) for _, write in columns) for line in lines),
        ]
    )


def rate(found: Found, network: str, precision: str) -> float | None:
    """Return the Mvox/s of the fastest bare forward passes; None where none ran."""
    rates = (
        line["mvox_s"]
        for line in lines_of(found, "forward")
        if (line["network"], line["precision"]) == (network, precision) and "mvox_s" in line
    )
    return max(rates, default=None)


def efficiency(found: Found, line: Line, key: str) -> float | None:
    """Return E of a conversion, by its whole time or by its steady part."""
    bare, got = rate(found, line["network"], line["precision"]), line.get(key)
    return None if not bare or got is None else got / bare


def conversion(found: Found, network: str, precision: str) -> Line | None:
    """Return a conversion in one process; None where it was not measured."""
    wanted = (network, precision, "one process")
    for line in lines_of(found, "end to end"):
        if (line["network"], line["precision"], line["where"]) == wanted:
            return line
    return None


def e_of(network: str, precision: str) -> Callable[[Found], str]:
    """Return E of a conversion, and of its steady part."""

    def measured(found: Found) -> str:
        line = conversion(found, network, precision)
        parts = [line and efficiency(found, line, key) for key in ("mvox_s", "steady_mvox_s")]
        whole, steady = (number(part) for part in parts)
        return f"{whole} ({steady} steady)" if whole and steady else whole

    return measured


def speed_of(network: str, precision: str) -> Callable[[Found], str]:
    """Return the Mvox/s of a conversion."""

    def measured(found: Found) -> str:
        line = conversion(found, network, precision)
        return f"{line['mvox_s']:.0f} Mvox/s" if line else ""

    return measured


def least_same(precision: str) -> Callable[[Found], str]:
    """Return the least share of voxels as in fp32, over shipped networks, and whose it is."""

    def measured(found: Found) -> str:
        shares = {
            line["network"]: line["same_as_fp32"]
            for line in lines_of(found, "correctness")
            if line["precision"] == precision
            and line["weights"] == "shipped"
            and "same_as_fp32" in line
        }
        if not shares:
            return ""
        worst = min(shares, key=shares.__getitem__)
        return f"{shares[worst]:.2%} ({worst})"

    return measured


def memory_range(found: Found) -> str:
    """Return the least and the largest share of planned memory that a planned tile took."""
    shares = [
        part
        for line in lines_of(found, "forward")
        if line["tile_is"] == "planned" and (part := over(line, "taken_gib", "planned_gib"))
    ]
    return f"{min(shares):.2f} to {max(shares):.2f}" if shares else ""


GOALS: tuple[Goal, ...] = (
    Goal("`srunet-z4` in fp16, E", "0.70", "0.85", e_of("srunet-z4", "fp16")),
    Goal("`srunet-z4` in fp32, E", "0.90", "0.95", e_of("srunet-z4", "fp32")),
    Goal("3D-SRU-Net h3 w64 d3 in fp16, E", "0.90", "0.95", e_of(H3, "fp16")),
    Goal(
        "3D-SRU-Net h3 w64 d3 in fp16, end to end", "40 Mvox/s", "60 Mvox/s", speed_of(H3, "fp16")
    ),
    Goal(
        "niiv of the paper in fp16, end to end", "100 Mvox/s", "200 Mvox/s", speed_of(NIIV, "fp16")
    ),
    Goal(
        "`srunet-z4` in fp16, end to end",
        "600 Mvox/s",
        "1200 Mvox/s",
        speed_of("srunet-z4", "fp16"),
    ),
    Goal("`identity`, end to end", "1500 Mvox/s", "3000 Mvox/s", speed_of("identity", "")),
    Goal("identical uint8 voxels, fp16 against fp32", "99.5%", "", least_same("fp16")),
    Goal("identical uint8 voxels, bf16 against fp32", "98%", "", least_same("bf16")),
    Goal("GPU memory taken over planned", "0.90 to 1.00", "never above 1", memory_range),
)
"""What is promised of one H200."""


def goals_table(found: Found) -> str:
    """Write the goals against what was measured, which the CPU form did not do."""
    lines = [cells(("", "goal", "stretch", "measured")), cells(["---"] * 4)]
    for goal in GOALS:
        measured = "" if found["small"] else goal.measured(found)
        lines.append(cells((goal.what, goal.goal, goal.stretch, measured or NOT_MEASURED)))
    return "\n".join(lines)
