"""Isotropic volumes from anisotropic ones, chunk by chunk, on any Dask cluster."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isochunk.config import Job

if TYPE_CHECKING:
    from isochunk.api import audit, isotropic, load_model, plan, run
    from isochunk.api import open_any as open

__version__ = "0.1.0"

__all__ = ["Job", "audit", "isotropic", "load_model", "open", "plan", "run"]

_LAZY = {
    "audit": "audit",
    "isotropic": "isotropic",
    "load_model": "load_model",
    "open": "open_any",
    "plan": "plan",
    "run": "run",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the API holds
    """Bring in torch, tensorstore and dask only when something is done with them."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("isochunk.api"), _LAZY[name])
