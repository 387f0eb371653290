"""Progress of a run on standard error: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

from isochunk.engine.report import Report
from isochunk.planning.plan import Plan

log = logging.getLogger(__name__)

LINE_S = 10.0
"""Seconds between lines in a log file."""


class RunProgress:
    """Shows target voxels written, voxels a second and time left. Use it as a context manager."""

    def __init__(self, plan: Plan) -> None:
        """Take the plan whose voxels are counted."""
        self.total = plan.target.box.size
        self.blocks = plan.total_blocks
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=self.total,
            unit="vox",
            unit_scale=True,
            smoothing=0.05,
            disable=not self._terminal,
        )
        self._line = time.monotonic()
        self._first_said = False

    def __enter__(self) -> RunProgress:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def __call__(self, report: Report) -> None:
        """Show a report."""
        if report.first_block_s is not None and not (self._terminal or self._first_said):
            self._first_said = True
            log.info("the first block was done after %.1f s", report.first_block_s)
        if self._terminal:
            self._bar.update(report.voxels - self._bar.n)
            shown = f"{report.done}/{report.total} blocks"
            if report.first_block_s is not None:
                shown += f", the first after {report.first_block_s:.1f} s"
            self._bar.set_postfix_str(shown, refresh=False)
        elif time.monotonic() - self._line >= LINE_S:
            self._line = time.monotonic()
            rate = report.voxels / max(report.wall_s, 1e-9)
            finished = report.done - report.resumed
            left = (report.total - report.done) * report.wall_s / max(finished, 1)
            log.info(
                "%d of %d blocks, %.2f Mvoxel/s, about %.0f s left, %d failed",
                report.done,
                report.total,
                rate / 1e6,
                left,
                report.failed,
            )
