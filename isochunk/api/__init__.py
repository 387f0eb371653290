"""What users call; :mod:`isochunk` itself names what is public."""

from isochunk.api.jobs import (
    audit,
    calibrate,
    estimate_cost,
    isotropic,
    load_model,
    open_cluster,
    plan,
    repair,
    report,
    run,
    start_cluster,
    status,
)
from isochunk.api.notebook import notebook_bar
from isochunk.api.tissue import sample_tissue
from isochunk.api.volumes import Volume, inspect, inspect_on, open

__all__ = [
    "Volume",
    "audit",
    "calibrate",
    "estimate_cost",
    "inspect",
    "inspect_on",
    "isotropic",
    "load_model",
    "notebook_bar",
    "open",
    "open_cluster",
    "plan",
    "repair",
    "report",
    "run",
    "sample_tissue",
    "start_cluster",
    "status",
]
