"""Sizes of tiles, blocks, tasks, buffers and records, in one place, each with its reason."""

from __future__ import annotations

MAX_DEPTH = 4
"""Blocks in flight in one worker: reading, waiting, computing, writing."""

PROCESS_BYTES = 600 << 20
"""What a worker process holds besides blocks and tiles: libraries, and cached source chunks."""

ALLOCATOR_SLACK = 1.1
"""Resident memory over what tensors need at once, measured on 3D-SRU-Net."""

TASK_VOXELS = 1 << 26
"""Target voxels of one Dask task, at least, so that scheduling costs little."""

TASK_BLOCKS = 1024
"""Blocks of one Dask task, at most: what is redone if its worker or client dies."""

TASKS_PER_WORKER = 8
"""Tasks each worker should get, at least, so that the load evens out."""

RECORD_S = 0.5
"""Seconds between records of finished blocks, at most: what a killed client may have to redo."""

MIN_TILE = 8
"""Smallest extent of a tile in target voxels."""

DEVICE_TILE_BYTES = 1 << 33
"""Largest working memory of a tile on a GPU: no tensor then has more than 2^31 elements, which is
as far as many CUDA kernels count."""

MAX_FUSED_LEVELS = 3
"""Levels one stage writes: the first and two pooled from it. More would make too small shards."""

MAX_LEVELS = 16
"""Levels written where nothing else is said: by then any volume is one chunk."""

BLOCK_EXTENT = 256
"""Default blocks grow to at least this many voxels along each axis."""

LARGE_VOLUME = 1 << 36
"""Volumes of more voxels than this get shards of 512 instead of 256."""
