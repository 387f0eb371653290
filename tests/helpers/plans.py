"""Plans of volumes that are nowhere."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from isochunk.core.geometry import Box, Spacing
from isochunk.core.job import Job
from isochunk.core.spec import Intensity, LevelSpec, VolumeSpec
from isochunk.models.interpolation import interpolation_spec
from isochunk.planning.blocks import Workers
from isochunk.planning.make import Inputs, make_plan
from isochunk.planning.plan import Plan


def volume(box: str, spacing: str = "46,4.6,4.6", **changes: object) -> VolumeSpec:
    level = LevelSpec("0", Box.parse(box), Spacing.parse(spacing), (20, 256, 256), None)
    zero = (Fraction(0), Fraction(0), Fraction(0))
    values = {"format": "precomputed", "dtype": "uint8", "encoding": "raw", "corner_nm": zero}
    return VolumeSpec(url="file:///in/", levels=(level,), **{**values, **changes})  # type: ignore[arg-type]


def plan(source: VolumeSpec, model: str = "cubic", **options: object) -> Plan:
    job = Job(source=source.url, target="out", model=model, **options)  # type: ignore[arg-type]
    target = "zarr3" if job.format == "ome-zarr" else "precomputed"
    spec = interpolation_spec(model)
    found = Inputs(source, spec, Intensity(), "file:///out/", target)
    return make_plan(job, replace(found, workers=Workers(job.memory or 4 << 30)))
