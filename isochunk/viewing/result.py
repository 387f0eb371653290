"""A written volume in neuroglancer, beside its source."""

from __future__ import annotations

import logging

from isochunk.core.geometry import Box, triple
from isochunk.engine.ledger import read_job
from isochunk.errors import IsochunkError
from isochunk.planning.plan import Plan
from isochunk.storage.access import Access
from isochunk.storage.open import open_store, open_volume
from isochunk.storage.volume import Volume
from isochunk.viewing.neuroglancer import as_seen, contrast_range, filled_sections
from isochunk.viewing.server import RunningViewer, view

log = logging.getLogger(__name__)

CONTRAST_REACH = (32, 128, 128)
"""How far around the middle the data sets the contrast, in voxels."""


def view_result(url: str, source: str | None, access: Access) -> RunningViewer:
    """Show a volume, beside its source if that is given; see :func:`isochunk.viewing.server.view`.

    Contrast is set from the middle of the data. A layer marks source sections that were lost.

    Raises:
        UsageError: a volume cannot be opened or shown.
        StorageError: storage failed.
    """
    result = open_volume(url, access.beside())
    made = _record(result.spec.url, access)
    filled = None if made is None else filled_sections(made.source, made.sections)
    shown, contrast = as_seen(result.spec, access), _contrast(result)
    if source is None:
        return view(shown, None, contrast, filled)
    beside, own = open_volume(source, access), None
    if made is not None and made.window is not None and made.source.url == beside.spec.url:
        own = made.window.ends
    elif beside.spec.dtype != result.spec.dtype:
        own = _contrast(beside)
    return view(shown, as_seen(beside.spec, access), contrast, filled, source_contrast=own)


def _contrast(volume: Volume) -> tuple[float, float]:
    """Return the range of values in the middle of a volume."""
    whole = volume.spec.box
    middle = triple((a + b) // 2 for a, b in zip(whole.lo, whole.hi, strict=True))
    return contrast_range(volume.read(Box(middle, middle).grow(CONTRAST_REACH) & whole))


def _record(url: str, access: Access) -> Plan | None:
    """Return the job that a result was made by; None where no record of it can be read."""
    try:
        return read_job(open_store(url, access))
    except IsochunkError as error:  # volumes of others are shown all the same
        log.info("no record of a job can be read at %s: %s", url, error)
        return None
