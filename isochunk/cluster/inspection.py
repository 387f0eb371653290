"""Measure sections on a Dask cluster: parts of the stack are tasks, and small records come back.

What is measured of a section rests on the few before it, which a task reads too. So the records are
those of one process bit for bit, and all of them are judged by the client.
"""

from __future__ import annotations

import logging
import time
from itertools import chain
from typing import Any

from distributed import Client
from distributed.scheduler import KilledWorker

from isochunk.cluster.plugin import (
    HoldingPlugin,
    drop_plugin,
    held_here,
    send_plugin,
    wait_for_a_worker,
)
from isochunk.core.geometry import ceil_div
from isochunk.core.section_profile import SectionProfile
from isochunk.core.spec import VolumeSpec
from isochunk.engine.inspection import profile_part
from isochunk.engine.section_reading import Reading, Slab, cut_slabs
from isochunk.engine.timeouts import Timeouts
from isochunk.engine.windowed import Opening
from isochunk.errors import ClusterError
from isochunk.storage.volume import Volume

log = logging.getLogger(__name__)

TASK_SECTIONS = 128
"""Sections of a task, about: those before it, read twice, are few beside these."""
TASKS = 2000
"""Tasks at most; they are longer where there are more sections."""
TRIES = 3
"""Times that a part is tried which could not be read."""


class SectionsPlugin(HoldingPlugin[Volume]):
    """Holds the open volume in a worker process."""

    def __init__(self, name: str, opening: Opening) -> None:
        """Take what is needed to open the volume on the worker."""
        super().__init__(name)
        self.opening = opening

    def open(self, worker: Any) -> Volume:
        """Open the volume."""
        del worker
        return self.opening.fixed()[0]

    def close(self, held: Volume) -> None:
        """Leave it to the garbage collector."""
        del held


def measure_part(name: str, reading: Reading, part: Slab, pool: int) -> tuple[SectionProfile, ...]:
    """Measure some sections on a worker."""
    return profile_part(held_here(name), reading, part, pool)


class DaskMeasure:
    """Measures sections on the workers of a client."""

    def __init__(
        self, client: Client, spec: VolumeSpec, opening: Opening, timeouts: Timeouts
    ) -> None:
        """Take the way to the workers, what they open, and how."""
        self.client = client
        self.spec = spec
        self.opening = opening
        self.timeouts = timeouts

    def __call__(self, reading: Reading, pool: int) -> tuple[SectionProfile, ...]:
        """Measure every section that is to be read.

        Raises:
            UsageError: no worker came, or a worker could not open the volume.
            ClusterError: workers kept dying, or the scheduler is gone.
            StorageError: a box cannot be read.
        """
        wait_for_a_worker(self.client, self.timeouts)
        name = f"isochunk-inspect-{time.time_ns():x}"
        send_plugin(self.client, SectionsPlugin(name, self.opening))
        try:
            return self._gathered(name, reading, pool)
        finally:
            drop_plugin(self.client, name)

    def _gathered(self, name: str, reading: Reading, pool: int) -> tuple[SectionProfile, ...]:
        lo, hi = reading.windows[0].lo[0], reading.windows[0].hi[0]
        own = self.spec.levels[reading.level]
        most = max(TASK_SECTIONS, own.chunk[0], ceil_div(hi - lo, TASKS))
        parts = cut_slabs(own, lo, hi, most)
        futures = [
            self.client.submit(
                measure_part, name, reading, part, pool, key=f"{name}-{part[0]}", retries=TRIES - 1
            )
            for part in parts
        ]
        try:
            return tuple(chain.from_iterable(self.client.gather(futures)))
        except KilledWorker as error:
            raise ClusterError(
                f"workers kept dying while they read sections: {error}; give them more memory, or "
                "read a coarser --level"
            ) from error
