"""Isotropic volumes from anisotropic ones, chunk by chunk, on any Dask cluster."""

__version__ = "0.1.0"
