"""Isotropic volumes from anisotropic ones, chunk by chunk, on any Dask cluster."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isochunk.core.job import Job

if TYPE_CHECKING:
    from isochunk.api import audit, isotropic, load_model, plan, run
    from isochunk.api import open_any as open

__version__ = "0.1.0"

__all__ = ["Job", "audit", "isotropic", "load_model", "open", "plan", "run"]

_LAZY = {
    "audit": ("api", "audit"),
    "isotropic": ("api", "isotropic"),
    "load_model": ("api", "load_model"),
    "open": ("api", "open_any"),
    "plan": ("api", "plan"),
    "run": ("api", "run"),
}


def __getattr__(name: str) -> Any:
    """Bring in torch, tensorstore and dask only when something is done with them."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(import_module(f"isochunk.{module}"), attribute)
