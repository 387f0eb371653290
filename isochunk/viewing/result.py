"""A written volume in neuroglancer, beside its source."""

from __future__ import annotations

import logging

from isochunk.core.geometry import Box, triple
from isochunk.engine.ledger import read_job
from isochunk.errors import IsochunkError
from isochunk.storage.access import Access
from isochunk.storage.open import open_store, open_volume
from isochunk.viewing.neuroglancer import FilledSections, as_seen, contrast_range, filled_sections
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
    beside = as_seen(open_volume(source, access).spec, access) if source else None
    whole = result.spec.box
    middle = triple((a + b) // 2 for a, b in zip(whole.lo, whole.hi, strict=True))
    sample = result.read(Box(middle, middle).grow(CONTRAST_REACH) & whole)
    filled = _recorded_as_filled(result.spec.url, access)
    return view(as_seen(result.spec, access), beside, contrast_range(sample), filled)


def _recorded_as_filled(url: str, access: Access) -> FilledSections | None:
    """Return which sections a result was not made from; None where no record says so."""
    try:
        made = read_job(open_store(url, access))
    except IsochunkError as error:  # volumes of others are shown all the same
        log.info("no record of sections can be read at %s: %s", url, error)
        return None
    return None if made is None else filled_sections(made.source, made.sections)
