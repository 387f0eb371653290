"""How long a run waits for what is slow, silent or gone before it does something about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Waits of one run. Nothing here changes the output."""

    straggler: float = 3.0
    """A task gets a second copy once it takes this many times the median."""
    straggler_s: float = 10.0
    """No task that took less gets a copy."""
    hung: float = 20.0
    """A task is given up, and its worker restarted, once it takes this many times the median."""
    hung_s: float = 1800.0
    """No task that took less is given up."""
    workers_s: float = 120.0
    """How long there may be no worker at all."""
    scheduler_s: float = 30.0
    """How long the scheduler may be out of reach."""
    storage_s: float = 60.0
    """How long the record of finished blocks may fail to be stored."""
    refused_s: float = 5.0
    """The same, where storage says that access is refused."""
    retries_s: tuple[float, ...] = (1.0, 10.0)
    """Pauses before blocks are tried again that failed in a way that may pass."""
