"""Values and the arithmetic on them: grids, specs, jobs, voxels.

Everything above is written in these terms. No storage, no network, no thread, and neither torch,
dask nor tensorstore. Read ``geometry``, ``spec``, ``job``, ``voxels``; then the rest as needed.
"""
