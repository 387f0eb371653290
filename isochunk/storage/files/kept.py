"""Decoded tiles and strips that were read last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from isochunk.core.voxels import Voxels


class KeptSegments:
    """Keeps what was decoded last, up to so many bytes; safe to use from several threads.

    Halos, and blocks narrower than a strip, would have the same segments decoded again and again.
    """

    def __init__(self, limit_bytes: int) -> None:
        """Start empty."""
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._segments: OrderedDict[Hashable, Voxels] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, decode: Callable[[], Voxels]) -> Voxels:
        """Return a segment, decoded only if it is not kept; threads may decode at the same time."""
        with self._lock:
            if key in self._segments:
                self._segments.move_to_end(key)
                return self._segments[key]
        voxels = decode()
        with self._lock:
            if key not in self._segments and voxels.nbytes <= self._limit_bytes:
                self._segments[key] = voxels
                self._bytes += voxels.nbytes
                while self._bytes > self._limit_bytes:
                    _, old = self._segments.popitem(last=False)
                    self._bytes -= old.nbytes
        return voxels
