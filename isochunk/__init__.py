"""Isotropic volumes from anisotropic ones, chunk by chunk, on any Dask cluster."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isochunk.core.geometry import Box, Spacing
from isochunk.core.job import Job
from isochunk.core.sections import SectionTable
from isochunk.engine.timeouts import Timeouts

if TYPE_CHECKING:
    from isochunk.api.jobs import (
        audit,
        calibrate,
        estimate_cost,
        isotropic,
        load_model,
        plan,
        repair,
        report,
        run,
        start_cluster,
        status,
    )
    from isochunk.api.notebook import notebook_bar
    from isochunk.api.tissue import sample_tissue
    from isochunk.api.volumes import Volume, inspect, open

__version__ = "0.1.0"

__all__ = [
    "Box",
    "Job",
    "SectionTable",
    "Spacing",
    "Timeouts",
    "Volume",
    "audit",
    "calibrate",
    "estimate_cost",
    "inspect",
    "isotropic",
    "load_model",
    "notebook_bar",
    "open",
    "plan",
    "repair",
    "report",
    "run",
    "sample_tissue",
    "start_cluster",
    "status",
]


HOMES = {"Volume": "volumes", "inspect": "volumes", "open": "volumes"}
HOMES |= {"notebook_bar": "notebook", "sample_tissue": "tissue"}
"""Modules of ``isochunk.api`` by the names that do not come from its ``jobs``."""


def __getattr__(name: str) -> Any:
    """Bring in torch, tensorstore and dask only when something is done with them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"isochunk.api.{HOMES.get(name, 'jobs')}"), name)
