"""The rows of ``gpu.py``; this file carries them out, in a process of its own.

    python benchmarks/gpu_rows.py FOLDER full|small

It reads names of rows, one a line, and answers each with a line of JSON. So a row that hangs, or
loses the GPU to its process, costs no more than itself.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gpu_correctness as correctness
import gpu_end_to_end as end_to_end
from gpu_forward import forward
from gpu_machine import Line, NotHereError, Setting, copies, first_line, machine, products
from gpu_networks import (
    A2I,
    FSRCNN_D240,
    FSRCNN_Z4,
    H3,
    H4,
    IDENTITY,
    NIIV,
    NIIV_Z2_10,
    PSSR_PAPER,
    SRUNET_Z4,
    TINY,
    Subject,
    all_shipped,
)

from isochunk.core.job import Precision
from isochunk.errors import DeviceError
from isochunk.host.allocator import keep_memory


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to measure."""

    name: str
    """What it is called; names differ."""
    table: str
    """Which table its lines are of."""
    run: Callable[[Setting], list[Line]]
    """Measures."""
    least_s: float = 10.0
    """Seconds without which it is not begun."""
    most_s: float = 90.0
    """Seconds after which it hangs."""


def rows(*, small: bool) -> list[Row]:
    """Return all rows, those of most worth first; all are there in the CPU form, in small."""
    return [
        Row("machine", "machine", machine),
        Row("sources", "sources", end_to_end.write_sources),
        *(small_rows() if small else full_rows()),
    ]


def small_rows() -> Iterator[Row]:
    """Yield those of the CPU form."""
    yield from compared([FSRCNN_Z4, *TINY])
    yield from ceilings()
    tiny = TINY[0]
    yield from forwards([(tiny, "fp32")])
    yield from conversions([(IDENTITY, "fp32"), (tiny, "fp32")])
    yield from conversions([(tiny, "fp32")], cluster=True)
    yield from others()


def full_rows() -> Iterator[Row]:
    """Yield those of a GPU."""
    shipped = list(all_shipped())
    yield from compared(shipped[:1])
    yield from ceilings()
    main: list[tuple[Subject, Precision]] = [
        (SRUNET_Z4, "fp16"),
        (SRUNET_Z4, "fp32"),
        (H3, "fp16"),
        (NIIV_Z2_10, "fp16"),
        (NIIV, "fp16"),
    ]
    yield from forwards(main)
    yield from conversions([(IDENTITY, "fp32"), *main])
    yield from compared([*shipped[1:], *TINY])
    yield from conversions([(IDENTITY, "fp32"), *main[:3]], cluster=True)
    yield from others()
    low: tuple[Precision, ...] = ("tf32", "bf16")
    yield from forwards((SRUNET_Z4, p) for p in low)
    yield from forwards((s, "fp16") for s in (FSRCNN_Z4, FSRCNN_D240, H4, A2I, PSSR_PAPER))
    yield from forwards((s, "fp32") for s in (FSRCNN_Z4, NIIV_Z2_10, A2I, PSSR_PAPER, NIIV))
    yield from forwards((s, p) for p in low for s in (H3, FSRCNN_Z4, NIIV_Z2_10, A2I, PSSR_PAPER))
    yield from forwards((s, p) for p in low for s in (FSRCNN_D240, H4, NIIV))
    # In single precision these take seconds a tile.
    yield from forwards((s, "fp32") for s in (H3, FSRCNN_D240, H4))


def compared(subjects: Iterable[Subject]) -> Iterator[Row]:
    """Yield comparisons with double precision."""
    for subject in subjects:
        run = partial(correctness.network, subject=subject)
        yield Row(f"correctness of {subject.name}", "correctness", run, least_s=15, most_s=120)


def others() -> Iterator[Row]:
    """Yield what else must be right."""
    yield Row("correctness on uint16", "correctness", correctness.sixteen_bits, least_s=15)
    yield Row("correctness of users' networks", "correctness", correctness.users_networks, 30)
    for name, run in correctness.SPECIAL.items():
        yield Row(name, "special", run, least_s=20)


def ceilings() -> Iterator[Row]:
    """Yield what the machine can do at most."""
    yield Row("copies", "ceilings", copies)
    yield Row("products", "ceilings", products)


def forwards(which: Iterable[tuple[Subject, Precision]]) -> Iterator[Row]:
    """Yield bare forward passes."""
    for subject, precision in which:
        run = partial(forward, subject=subject, precision=precision)
        yield Row(f"forward of {subject.name} in {precision}", "forward", run)


def conversions(
    which: Iterable[tuple[Subject, Precision]], *, cluster: bool = False
) -> Iterator[Row]:
    """Yield whole conversions, in one process or on a cluster."""
    for subject, precision in which:
        function = end_to_end.on_cluster if cluster else end_to_end.here
        run = partial(function, subject=subject, precision=precision)
        where = "on a cluster" if cluster else "in one process"
        name = f"{subject.name} in {precision} end to end {where}"
        yield Row(name, "end to end", run, least_s=30 if cluster else 20, most_s=120)


def carried_out(row: Row, setting: Setting) -> tuple[dict[str, object], bool]:
    """Carry out a row.

    Returns:
        Its status, reason and lines; and whether this process is of use for others.
    """
    try:
        return {"status": "done", "lines": row.run(setting)}, True
    except NotHereError as reason:
        return {"status": "left out", "reason": str(reason), "lines": []}, True
    except Exception as error:  # noqa: BLE001 - a row that fails is a result
        traceback.print_exc()
        lost = isinstance(error, DeviceError) or "CUDA error" in str(error)
        return {"status": "failed", "reason": first_line(error), "lines": []}, not lost


def main() -> None:
    """Carry out rows as they are asked for."""
    work, form = sys.argv[1:]
    setting = Setting(Path(work), form == "small")
    keep_memory()
    # Answers alone go out; whatever else is printed here goes to the error stream.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = {row.name: row for row in rows(small=setting.small)}
    for text in sys.stdin:
        answer, useful = carried_out(known[text.strip()], setting)
        print(json.dumps(answer), file=answers, flush=True)
        if not useful:
            break


if __name__ == "__main__":
    main()
