"""A process kept below the memory it was planned to take.

What is freed is kept for the next tile, see ``allocator``, and how much that becomes depends on the
order in which buffers of different sizes come and go: 1.25 to 1.8 times what is alive were
measured. So the plan allows for the usual, and what is beyond is given back while it is free.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from isochunk.host.allocator import give_back, give_back_memory, is_glibc, start_daemon

POLL_S = 0.02
"""Time between looks; a process touches some 100 MiB of new memory meanwhile at most."""

PAUSE_S = 0.5
"""Time until the next look where giving back did not help: what is left is alive."""

MARGIN = 0.03
"""Share of the ceiling at which memory is given back before it is reached, and at least"""
MARGIN_BYTES = 128 << 20

STEP_BYTES = 32 << 20
"""What is given back beyond what is too much, so that it need not be done all the time."""

STATM = Path("/proc/self/statm")


class MemoryCeiling:
    """Watches this process from a thread of its own until :meth:`stop`."""

    def __init__(self, ceiling_bytes: int) -> None:
        """Start to watch; does nothing where the system does not tell.

        Args:
            ceiling_bytes: resident memory that is not to be exceeded.
        """
        self.limit_bytes = ceiling_bytes - max(MARGIN_BYTES, int(MARGIN * ceiling_bytes))
        self.times = 0
        """How often memory was given back."""
        self._stopped = threading.Event()
        if is_glibc() and STATM.exists():
            start_daemon("isochunk-ceiling", self._watch)

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def _watch(self) -> None:
        file = os.open(STATM, os.O_RDONLY)
        try:
            pause_s = POLL_S
            while not self._stopped.wait(pause_s):
                pause_s = POLL_S
                over = _resident_bytes(file) - self.limit_bytes
                if over > 0:
                    give_back(over + STEP_BYTES)
                    if _resident_bytes(file) > self.limit_bytes:  # no gap was as large
                        give_back_memory()
                    self.times += 1
                    pause_s = PAUSE_S if _resident_bytes(file) > self.limit_bytes else POLL_S
        finally:
            with suppress(OSError):
                os.close(file)


def _resident_bytes(statm: int) -> int:
    """Read this process's resident memory from its open ``statm``."""
    return int(os.pread(statm, 128, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")
