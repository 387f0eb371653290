"""How far a run or an audit is, in a notebook."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape

from isochunk.engine.audit import AuditProgress
from isochunk.engine.report import Report
from isochunk.engine.sentences import audit_line, run_line
from isochunk.errors import UsageError

SHOWN_S = 0.5
"""Seconds between changes of what is shown."""


def notebook_bar() -> Callable[[Report | AuditProgress], None]:
    """Show a bar below the cell, for ``watch`` of a run, an audit or both parts of a repair.

    Returns:
        What is called with how far it is.

    Raises:
        UsageError: IPython, which every notebook has, is not installed.
    """
    try:
        from IPython.display import HTML, display
    except ModuleNotFoundError as error:
        raise UsageError(
            "notebook_bar shows its bar through IPython, which is not installed; leave watch out, "
            "or give a function of your own"
        ) from error
    bar = display(HTML("starting"), display_id=True)
    shown = 0.0

    def watch(progress: Report | AuditProgress) -> None:
        nonlocal shown
        done, line = _line(progress)
        ended = done == progress.total
        if time.monotonic() - shown < SHOWN_S and not ended:
            return
        shown = time.monotonic()
        bar.update(
            HTML(f'<progress value="{done}" max="{progress.total}"></progress> {escape(line)}')
        )

    return watch


def _line(progress: Report | AuditProgress) -> tuple[int, str]:
    if isinstance(progress, Report):
        return progress.done, run_line(progress)
    return progress.read, audit_line(progress)
