"""Progress of a run or an audit on standard error: a bar on a terminal, lines in a log file."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

from isochunk.core.amounts import counted, in_time, in_voxels
from isochunk.engine.audit import AuditProgress
from isochunk.engine.report import Report
from isochunk.planning.plan import Plan

log = logging.getLogger(__name__)

LINE_S = 10.0
"""Seconds between lines in a log file."""


class Progress:
    """A bar on a terminal, or a line every ten seconds. Use it as a context manager."""

    def __init__(self, total: int | None, unit: str) -> None:
        """Take what is counted, and how much of it there is, if that is known yet."""
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total, unit=unit, unit_scale=True, smoothing=0.05, disable=not self.terminal
        )
        self._line = time.monotonic()
        self._first_said = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it stands."""
        self.bar.close()

    def draw(self, count: int, note: str) -> None:
        """Bring the bar to a count, with a note after it."""
        self.bar.update(count - self.bar.n)
        self.bar.set_postfix_str(note, refresh=False)

    def line_due(self) -> bool:
        """Tell whether it is time for a line, and start to wait for the next."""
        due = time.monotonic() - self._line >= LINE_S
        if due:
            self._line = time.monotonic()
        return due


class RunProgress(Progress):
    """Shows target voxels written, voxels a second and time left."""

    def __init__(self, plan: Plan) -> None:
        """Take the plan whose voxels are counted."""
        super().__init__(plan.target.box.size, "vox")

    def __enter__(self) -> RunProgress:
        """Return itself."""
        return self

    def __call__(self, report: Report) -> None:
        """Show a report."""
        first = report.first_block_s
        if self.terminal:
            shown = f"{report.done}/{report.total} blocks"
            if first is not None:
                shown += f", the first after {first:.1f} s"
            self.draw(report.voxels, shown)
            return
        if first is not None and not self._first_said:
            self._first_said = True
            log.info("the first block was done after %.1f s", first)
        if self.line_due():
            log.info("%s", progress_line(report))


def progress_line(report: Report) -> str:
    """Write on one line how far a run is; nothing of its rate before there is one."""
    said = [f"{report.done:,} of {counted(report.total, 'block')}"]
    finished = report.done - report.resumed
    if finished:
        left_s = (report.total - report.done) * report.wall_s / finished
        rate = report.voxels / max(report.wall_s, 1e-9)
        said += [f"{in_voxels(rate)}/s", f"about {in_time(left_s)} left"]
    for number, name in ((report.failed, "failed"), (report.retries, "tried again")):
        if number:
            said.append(f"{number:,} {name}")
    return ", ".join(said)


class AuditBar(Progress):
    """Shows blocks read, blocks a second and time left."""

    def __init__(self) -> None:
        """Wait for the first word of the audit, which has the number of blocks."""
        super().__init__(None, "block")

    def __enter__(self) -> AuditBar:
        """Return itself."""
        return self

    def __call__(self, progress: AuditProgress) -> None:
        """Show how far an audit is."""
        if self.terminal:
            self.bar.total = progress.total
            self.draw(progress.read, f"{progress.holes} holes")
        elif self.line_due():
            left = "" if progress.left_s is None else f", about {progress.left_s:.0f} s left"
            log.info(
                "%d of %d blocks read, %.3g blocks/s%s, %d holes",
                progress.read,
                progress.total,
                progress.blocks_per_s,
                left,
                progress.holes,
            )
