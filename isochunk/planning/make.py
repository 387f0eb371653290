"""A job and what was found, made a plan. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction

from isochunk.core.consistency import require_consistent
from isochunk.core.encodings import default_encoding
from isochunk.core.geometry import AXES, Box, Triple, factor_between, sub, target_box, triple
from isochunk.core.job import FoundDevice, Job, Precision
from isochunk.core.limits import MAX_DEPTH
from isochunk.core.option_names import option
from isochunk.core.sections import SectionTable
from isochunk.core.spec import DTYPES, Format, Intensity, ModelSpec, VolumeSpec
from isochunk.core.tile_costs import TileCosts
from isochunk.core.window import GREY, Window
from isochunk.errors import GeometryError, UsageError
from isochunk.planning.blocks import Workers, choose_block, fit_workers
from isochunk.planning.layout import LayoutOptions, lay_out
from isochunk.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class Inputs:
    """What planning learned from outside before it plans."""

    source: VolumeSpec
    """The source as found."""
    model: ModelSpec
    """The model as found, its factor not yet resolved."""
    intensity: Intensity
    """As measured, or the full range."""
    target_url: str
    """Canonical URL of the target."""
    target_format: Format
    """Storage format of the target."""
    mask: VolumeSpec | None = None
    """The mask as found."""
    window: Window | None = None
    """Which stored values become black and white; None where they are used as they are."""
    sections: SectionTable | None = None
    """Which sections are not used as they are stored."""
    workers: Workers = field(default_factory=lambda: Workers(4 << 30))
    """What workers have."""
    device: FoundDevice | None = None
    """Where they were found to compute; None where that is not known, or was not asked."""
    block: Triple | None = None
    """The block by which the target was begun, if it was; taken up where the job asks for none."""
    encoding: str | None = None
    """The encoding by which the target was begun, as with the block."""
    costs: Callable[[ModelSpec, Precision], TileCosts | None] | None = None
    """Tells what tiles cost, once factor and plane are fixed."""


def make_plan(job: Job, found: Inputs) -> Plan:
    """Resolve a job against what was found.

    Raises:
        UsageError: the job cannot be done; the message says what would work.
    """
    source = found.source
    if source.dtype not in DTYPES and found.window is None:
        raise UsageError(
            f"source {source.url} holds {source.dtype}; uint8 and uint16 are supported"
        )
    region = converted_region(job.box, source)
    spacing = job.spacing or found.model.target_spacing(source.spacing)
    factor = factor_between(source.spacing, spacing)
    model = found.model.for_factor(factor)
    if not model.exact and not job.allow_inexact:
        raise UsageError(
            f"model {model.name!r} cannot be tiled exactly; {option('allow_inexact')} accepts "
            "that, and the report then says how much tiles differ at their seams"
        )
    if job.consistent:
        require_consistent(model)
    anchored = target_box(region, factor, source.box)
    shift, corner = placement(source, anchored, found.target_format, spacing=tuple(spacing))
    dtype = job.dtype or (source.dtype if found.window is None else GREY)
    encoding = job.encoding or found.encoding or default_encoding(found.target_format, dtype)
    options = LayoutOptions(
        found.target_format, job.chunk, job.shard, job.block, job.levels, lossy=encoding == "jpeg"
    )
    costs = None if found.costs is None else found.costs(model, job.precision)

    def made(block: Triple | None) -> Plan:
        levels, stages = lay_out(anchored.shift(shift), spacing, replace(options, block=block))
        return Plan(
            job=job,
            source=source,
            target=VolumeSpec(
                url=found.target_url,
                format=found.target_format,
                dtype=dtype,
                encoding=encoding,
                corner_nm=corner,
                levels=levels,
            ),
            model=model,
            intensity=found.intensity,
            region=region,
            shift=shift,
            stages=stages,
            mask=found.mask,
            window=found.window,
            sections=found.sections,
            precision=job.precision,
            tile=stages[0].block,
            depth=MAX_DEPTH,
            costs=costs,
            found_device=found.device,
        )

    def chosen(workers: Workers) -> Plan:
        fixed = job.block or found.block
        return choose_block(made, workers) if fixed is None else fit_workers(made(fixed), workers)

    plan, roomier = chosen(found.workers), chosen(found.workers.with_twice_the_memory())
    return replace(
        plan,
        with_twice_the_memory=(roomier.stages[0].block, roomier.tile, roomier.compute_overhead()),
    )


def converted_region(box: Box | None, source: VolumeSpec) -> Box:
    """Return the source voxels to convert.

    Raises:
        GeometryError: the box reaches outside the volume.
    """
    if box is None:
        return source.box
    if box not in source.box:
        raise GeometryError(
            f"box {box} reaches outside the volume {source.box} of {source.url}; "
            f"--box {box & source.box if (box & source.box).size else source.box} works"
        )
    return box


def placement(
    source: VolumeSpec,
    anchored: Box,
    format: Format,
    spacing: tuple[Fraction, ...],
) -> tuple[Triple, tuple[Fraction, Fraction, Fraction]]:
    """Find the stored grid of the target.

    OME-Zarr arrays start at 0 and lie anywhere. A precomputed grid starts at 0 nm, so the source's
    corner must be a whole number of target voxels away; where it is not because the source's
    translation ignores the half voxel of OME's convention, the translation itself is used and the
    half voxel stays in ``corner_nm``, for the viewer to add.

    Returns:
        Shift from anchored to stored voxels, and ``corner_nm`` of the target.

    Raises:
        GeometryError: no whole voxel offset exists.
    """
    if format == "precomputed":
        centred = [c + s / 2 for c, s in zip(source.corner_nm, source.spacing, strict=True)]
        for position in (source.corner_nm, centred):
            steps = [p / s for p, s in zip(position, spacing, strict=True)]
            if all(step.denominator == 1 for step in steps):
                shift = triple(steps)
                break
        else:
            where = ", ".join(f"{a} {float(c):g}" for a, c in zip(AXES, centred, strict=True))
            raise GeometryError(
                f"the source's translation ({where} nm) is no whole number of target voxels, which "
                "precomputed cannot store; use --format ome-zarr"
            )
    else:
        shift = sub((0, 0, 0), anchored.lo)
    z, y, x = (c - h * s for c, h, s in zip(source.corner_nm, shift, spacing, strict=True))
    return shift, (z, y, x)
