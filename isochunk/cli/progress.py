"""Progress of a run or an audit on standard error: a bar on a terminal, lines in a log file."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from isochunk.cli.words.layout import console
from isochunk.core.amounts import in_time
from isochunk.engine.audit import AuditProgress
from isochunk.engine.report import Report
from isochunk.engine.sentences import audit_line, run_line

log = logging.getLogger(__name__)

LINE_S = 10.0
"""Seconds between lines in a log file."""
BAR = 24
"""Columns of a bar."""


class Shown:
    """A bar on a terminal, or a line every ten seconds. Use it as a context manager."""

    def __init__(self) -> None:
        """Take standard error as it is."""
        columns = (BarColumn(BAR), TaskProgressColumn(), TextColumn("{task.fields[said]}"))
        self.terminal = sys.stderr.isatty()
        self.bar = Progress(*columns, console=console(sys.stderr), disable=not self.terminal)
        self.task = self.bar.add_task("", total=None, said="starting")
        self._line = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it stands."""
        self.bar.stop()

    def show(self, done: int, total: int, said: str) -> None:
        """Bring the bar to a count, with words after it; or write those, if it is time."""
        if self.terminal:
            self.bar.update(self.task, completed=done, total=total, said=said)
        elif time.monotonic() - self._line >= LINE_S:
            self._line = time.monotonic()
            log.info("%s", said)


class RunProgress(Shown):
    """Shows blocks done, voxels a second, time left, workers, and what failed."""

    _first_said = False

    def __enter__(self) -> RunProgress:
        """Return itself."""
        self.bar.start()
        return self

    def __call__(self, report: Report) -> None:
        """Show a report."""
        if report.first_block_s is not None and not (self._first_said or self.terminal):
            self._first_said = True
            log.info("the first block was done after %s", in_time(report.first_block_s))
        self.show(report.done, report.total, run_line(report))


class AuditBar(Shown):
    """Shows blocks read, blocks a second, time left and holes found."""

    def __enter__(self) -> AuditBar:
        """Return itself."""
        self.bar.start()
        return self

    def __call__(self, progress: AuditProgress) -> None:
        """Show how far an audit is."""
        self.show(progress.read, progress.total, audit_line(progress))
