"""What a worker has done, for Prometheus; Dask serves it at ``/metrics`` of every worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from isochunk.planning.block import Reports


class WorkerMetrics:
    """Sums over the blocks of one job in one worker process: a Prometheus collector."""

    def __init__(self, job: str) -> None:
        """Take the label that tells jobs apart."""
        self.job = job
        self._sums: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def add(self, reports: Reports) -> None:
        """Take blocks that have run."""
        done, failed = reports.done, len(reports.failed)
        empty = int(done["empty"].sum())
        sums = {
            ("blocks", "stored"): len(done) - empty,
            ("blocks", "background"): empty,
            ("blocks", "failed"): failed,
            ("voxels", "written"): int(done["voxels"].sum()) if reports.stage == 0 else 0,
            ("bytes", "read"): int(done["bytes_read"].sum()),
            ("bytes", "written"): int(done["bytes_written"].sum()),
            ("seconds", "read"): float(done["read_s"].sum()),
            ("seconds", "compute"): float(done["compute_s"].sum()),
            ("seconds", "write"): float(done["write_s"].sum()),
        }
        with self._lock:
            for name, value in sums.items():
                self._sums[name] = self._sums.get(name, 0) + value

    def describe(self) -> list[Any]:
        """Name nothing in advance: two jobs in one process may say the same names."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield a counter for blocks, voxels, bytes and seconds, each by kind."""
        from prometheus_client.core import CounterMetricFamily

        with self._lock:
            sums = dict(self._sums)
        for name in ("blocks", "voxels", "bytes", "seconds"):
            counter = CounterMetricFamily(
                f"isochunk_{name}", f"{name} of isochunk's blocks", labels=("job", "kind")
            )
            for (family, kind), value in sums.items():
                if family == name:
                    counter.add_metric((self.job, kind), value)
            yield counter

    def register(self) -> None:
        """Join what Dask serves; nothing happens where prometheus_client is not installed."""
        try:
            from prometheus_client import REGISTRY
        except ImportError:
            return
        REGISTRY.register(self)

    def unregister(self) -> None:
        """Leave what Dask serves."""
        try:
            from prometheus_client import REGISTRY

            REGISTRY.unregister(self)
        except (ImportError, KeyError):  # it never joined
            return
