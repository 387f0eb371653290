"""A written volume in neuroglancer, beside its source."""

from __future__ import annotations

from isochunk.core.geometry import Box, triple
from isochunk.storage.access import Access
from isochunk.storage.open import open_volume
from isochunk.viewing.neuroglancer import as_seen, contrast_range
from isochunk.viewing.server import RunningViewer, view

CONTRAST_REACH = (32, 128, 128)
"""How far around the middle the data sets the contrast, in voxels."""


def view_result(url: str, source: str | None, access: Access) -> RunningViewer:
    """Show a volume, beside its source if that is given; see :func:`isochunk.viewing.server.view`.

    Contrast is set from the middle of the data.

    Raises:
        UsageError: a volume cannot be opened or shown.
        StorageError: storage failed.
    """
    result = open_volume(url, access.beside())
    beside = as_seen(open_volume(source, access).spec, access) if source else None
    whole = result.spec.box
    middle = triple((a + b) // 2 for a, b in zip(whole.lo, whole.hi, strict=True))
    sample = result.read(Box(middle, middle).grow(CONTRAST_REACH) & whole)
    return view(as_seen(result.spec, access), beside, contrast_range(sample))
