"""Training from URLs to a checkpoint: volumes are opened, made isotropic if need be, and learnt."""

from __future__ import annotations

from isochunk.engine.windowed import open_rounded
from isochunk.storage.access import Access
from isochunk.train.config import TrainConfig
from isochunk.train.first_pass import isotropic_volume, require_room_for_crops, slices_config
from isochunk.train.loop import TrainReport, fit
from isochunk.train.run import require_free
from isochunk.train.sources import require_coarse, with_factors, with_sections

DEFAULT = Access()


def train(config: TrainConfig, access: Access = DEFAULT) -> TrainReport:
    """Train a network from the volumes of a config, or go on where a killed run stopped.

    Of several processes started by ``torchrun``, each calls this; the first validates and writes.

    Args:
        config: what to train.
        access: how volumes are reached.

    Returns:
        How it ended; that of the network for slices where mode ``self3d`` came no further.

    Raises:
        UsageError: a volume has voxels of the wrong proportions, is constant or smaller than a
            crop, its axes seem to be in another order, the section table does not fit, or there is
            no such device.
        TargetConflictError: ``out`` holds a training of another config, or another checkpoint; or
            what is there as the first pass was made of another volume or by another network.
        StorageError: a volume cannot be read, or not all of the first pass could be written.
    """
    window = config.read_window()
    opened = tuple(open_rounded(url, access, window) for url in config.sources)
    known, volumes = with_sections(config, opened)
    if config.mode != "self3d":
        return fit(known, volumes)
    (source,) = volumes
    require_coarse(source, config.averages)
    known = with_factors(known, volumes)
    require_free(known)
    first = config.first_pass
    if not first.isotropic:
        require_room_for_crops(known, source)
    if not (first.slices or first.isotropic):
        report = fit(slices_config(known), volumes)
        if report.stopped != "finished":
            return report
    return fit(known, (isotropic_volume(config, source, access),))
