"""Sizes of tiles, blocks, tasks, buffers and records, in one place, each with its reason."""

from __future__ import annotations

from isochunk.core.geometry import Triple

# A worker's memory

MAX_DEPTH = 4
"""Blocks in flight in one worker: reading, waiting, computing, writing."""

PROCESS_BYTES = 600 << 20
"""What a worker process holds besides blocks and tiles: torch, tensorstore, Dask and their threads,
435 MiB resident with a small network open, and cached source chunks."""

CACHE_BYTES = 128 << 20
"""Decoded source chunks that a volume keeps for neighbouring reads: halos."""

WORKSPACE = 1.25
"""Memory of the kernels' own buffers, relative to live tensors, in what checkpoints record."""

ALLOCATOR_SLACK = 1.6
"""Resident memory over what tensors need at once: 1.3 to 2 were measured over the shipped and
users' networks and tiles of 128^3 and 256^3, since the heap that keeps memory has gaps; what is
beyond is given back, see ``host.ceiling``."""

DEVICE_SLACK = 1.25
"""The same on a GPU: what torch's own allocator loses to gaps, and cuDNN takes as workspace. Not
measured yet; where it is too little a tile is halved."""

TRACER_BYTES = 200 << 20
"""What a process holds besides once it has traced a user's network."""

# Tiles

DEFAULT_TILE: Triple = (128, 256, 256)
"""Target voxels of a tile where no plan says."""

MIN_TILE = 8
"""Smallest extent of a tile in target voxels: below, a network computes mostly halo."""

DEVICE_ELEMENTS = 2**31 - 1
"""Most elements that a call on a GPU may see: as far as many CUDA kernels count."""

DEVICE_PAGE = 2 << 20
"""Bytes by which torch takes memory of a GPU for a large tensor."""

LARGEST_BLOCK = 1024
"""Most target voxels of a block along an axis, unless one object is larger."""

CPU_MACS_PER_S = 40e9
"""Multiply-adds a second of a worker on a CPU: two cores with AVX2, 45% of their peak, measured."""

GPU_MACS_PER_S = {"fp32": 1e13, "tf32": 5e13, "fp16": 1e14, "bf16": 1e14}
"""The same on a GPU, by precision: a third of what data sheets say."""

STORAGE_BYTES_PER_S = 200e6
"""What one worker reads from a bucket, decoded."""

BLOCK_S = 0.1
"""Requests and records of a block, whatever its size."""

WORKER_LIFE_S = 8 * 3600.0
"""How long a worker lives on machines that come and go, or until its wall time ends."""

ASSUMED_WORKERS = 4
"""Workers that blocks are shared out to where it is not known how many there will be."""

MAX_SPLIT = 16
"""Most parts into which a block is cut along an axis to make tiles."""

PIXELS_AT_ONCE = 1 << 18
"""Pixels of slices that pass through a network together: memory does not grow with the tile."""

DEVICE_PIXELS_AT_ONCE = 1 << 22
"""The same on a GPU: fewer are computed before the next are launched. The paper's niiv holds 5 GiB
of them in half precision."""

INTERPOLATED_VOXELS = 1 << 20
"""Target voxels interpolated at a time, so that intermediates stay in cache."""

COST_TILE: Triple = (32, 128, 128)
"""Source voxels of the tile on which cost is counted, before alignment."""

AXIAL_COST_TILE = 128
"""The same for networks on slices: target voxels along z and x."""

AXIAL_COST_SLICES = 8
"""Slices of that tile that are counted; more do not pass through a network together."""

# Blocks, shards and levels

BLOCK_EXTENT = 256
"""Default blocks grow to at least this many voxels along each axis."""

LARGE_VOLUME = 1 << 36
"""Volumes of more voxels than this get shards of 512 instead of 256: 64 GiB are then 512 objects a
level and not 4096."""

MAX_FUSED_LEVELS = 3
"""Levels one stage writes: the first and two pooled from it. More would make too small shards."""

MAX_LEVELS = 16
"""Levels written where nothing else is said: by then any volume is one chunk."""

# Reads

MASK_VOXELS = 1 << 24
"""Mask voxels read at a time, unless a single block needs more."""

WHOLE_OBJECTS_BYTES = 64 << 20
"""Voxels of whole objects that are read together, where no ranges are served."""

# Tasks and the record

TASK_VOXELS = 1 << 26
"""Target voxels of one Dask task, at least, so that scheduling costs little."""

AUDIT_VOXELS = 1 << 30
"""Stored target voxels of one Dask task of an audit, at most: reading is faster than computing."""

TASK_BLOCKS = 1024
"""Blocks of one Dask task, at most: what is redone if its worker or client dies."""

TASKS_PER_WORKER = 8
"""Parts into which a worker's share of what is left of a stage is cut, at least: tasks shrink
towards its end, so that the load evens out."""

RECORD_S = 0.5
"""Seconds between records of finished blocks, at most: what a killed client may have to redo."""
