"""Options of the command line by name, with what ``--help`` says of them."""

from __future__ import annotations

from collections.abc import Mapping

JOB_OPTIONS: Mapping[str, str] = {
    "spacing": "Z,Y,X of the target in nm; default: isotropic, or what the model's factor gives",
    "source-spacing": "Z,Y,X of the source in nm, where it does not say",
    "box": "source voxels to convert, z0:z1,y0:y1,x0:x1",
    "mask": "URL of a volume over the same space; where it is all zero nothing is computed",
    "block": "Z,Y,X target voxels of one unit of work",
    "format": "target format",
    "encoding": "target compression",
    "chunk": "Z,Y,X of target chunks",
    "shard": "Z,Y,X of target shards, or none",
    "levels": "resolution levels to write",
    "dtype": "target voxel type; default: the source's",
    "missing": "what an absent source object means; auto: as the format says",
    "device": "where networks run",
    "precision": "arithmetic of networks",
    "plane": "slices that an axial network runs on; xz+yz: the mean of both",
    "memory": "host memory of one worker, as 8GiB",
    "device-memory": "share of a GPU's memory that one worker may take, as 0.9",
    "timeout": "seconds that storage may take for one answer, retries included",
    "requests": "requests that one process has in flight",
    "slow-start": "requests a second that one process starts with; doubles in 20 minutes",
    "workers": "worker processes; with cuda at most one per GPU, and all GPUs by default",
    "scheduler": "address of a running Dask scheduler, tcp://host:8786",
    "cluster": "local, cuda, or a TOML file that describes a cluster",
}
"""Options of plan and run that take a value, named as the fields of Job."""

JOB_SWITCHES: Mapping[str, str] = {
    "allow-inexact": "accept a model whose tiles do not join exactly",
    "trust": "accept a model that runs code of its own",
    "overwrite": "delete what is stored at the target first",
}
"""Options of plan and run without a value."""

RUN_FIELDS = (
    "model",
    "device",
    "memory",
    "device-memory",
    "timeout",
    "requests",
    "slow-start",
    "workers",
    "scheduler",
    "cluster",
    "trust",
)
"""Fields of Job that a repair may change: none of them changes the output."""

INTEGERS = ("levels", "workers", "requests")


SECONDS = {"timeout": "timeout_s"}
"""Options whose fields carry the unit."""

EVALUATE_OPTIONS: Mapping[str, str] = {
    "factor": "truth voxels that become one, along the axes that models refine; 4, 2.5 or 225/23",
    "degradation": "how: avg is the mean over a section, skip its first voxel",
    "plane": JOB_OPTIONS["plane"],
    "average": "Z,Y,X voxels of the truth averaged to one first; boxes count those",
    "learn-from": "isotropic volume that a dictionary is learnt from",
    "box": "part of the truth, z0:z1,y0:y1,x0:x1",
    "background": "part of the truth without signal, to measure SNR against",
    "device": JOB_OPTIONS["device"],
    "report": "folder to write index.html, evaluation.json and evaluation.md to",
}
"""Options of evaluate that take one value."""

EVALUATE_CHOICES = {
    "degradation": ("avg", "skip", "psf"),
    "plane": ("xz", "yz", "xz+yz"),
    "device": ("auto", "cpu", "cuda"),
}
"""Values allowed for those of them that take one of a few words."""
