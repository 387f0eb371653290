"""How long a run waits for what is slow, silent or gone before it does something about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Waits of one run. Nothing here changes the output."""

    backup_factor: float = 3.0
    """A task gets a speculative copy once it takes this many times the median."""
    backup_min_s: float = 10.0
    """No task that took less gets a copy."""
    hang_factor: float = 20.0
    """A task is given up, and its worker restarted, once it takes this many times the median."""
    hang_min_s: float = 1800.0
    """No task that took less is given up."""
    no_workers_s: float = 120.0
    """How long there may be no worker at all."""
    no_scheduler_s: float = 30.0
    """How long the scheduler may be out of reach."""
    record_s: float = 60.0
    """How long the record of finished blocks may fail to be stored."""
    record_refused_s: float = 5.0
    """The same, where storage says that access is refused."""
    retry_pauses_s: tuple[float, ...] = (1.0, 10.0)
    """Pauses before blocks are tried again that failed in a way that may pass."""
