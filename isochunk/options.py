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

TRAIN_OPTIONS: Mapping[str, str] = {
    "arch": "srunet, fsrcnn, a2i, niiv, pssr or pssr-mf; trained as its paper says by default",
    "factor": "target voxels per section: 4, 9.5, 225/23, or several for niiv and a2i: 2,4,8; "
    "default of those two: how much coarser z is",
    "mode": "supervised: the source is isotropic; self: it is not, and teaches itself",
    "degradation": "how input is made: avg, skip or psf; of pssr em, fluorescence, gaussian, "
    "poisson or coarse",
    "steps": "steps altogether",
    "out": "folder that becomes the checkpoint",
    "device": "auto, cpu or cuda",
    "precision": "arithmetic of the layers: fp32, bf16 or fp16",
    "seed": "seed of weights and crops",
    "patch": "Z,Y,X target voxels of a crop, the coarse axis first",
    "batch": "crops per step, over all processes",
    "encoder": "pssr: file of ResNet34 weights to start from",
    "licence": "licence the weights are given",
    "trained-on": "the data in words, with attribution",
}
"""Options of train that are fields of TrainConfig."""

TRAIN_PARTS: Mapping[str, tuple[str, str, str]] = {
    "lr": ("optimisation", "lr", "learning rate; the highest, where it changes"),
    "vgg": ("loss", "vgg", "file of VGG16 weights for perceptual losses"),
    "dists": ("loss", "dists", "file of DISTS' weights"),
    "validate-every": ("keeping", "validate_every", "steps between validations"),
    "save-every": ("keeping", "save_every", "steps between saves of the whole state"),
}
"""Options of train that are fields of its tables: which table, which field."""

NETWORK_OPTIONS: Mapping[str, str] = {
    "variant": "srunet, fsrcnn: kernels, paper, compact or planar (for mode self)",
    "residual": "interpolation added to the answer: none, linear or cubic; of a2i, niiv: true",
    "width": "srunet, a2i, niiv, pssr: feature maps at the finest level",
    "levels": "srunet, a2i: resolution levels",
    "convs": "srunet: convolutions per level",
    "maps": "fsrcnn: feature maps, d",
    "shrunk": "fsrcnn: feature maps of the mapping, s",
    "mappings": "fsrcnn: mapping layers, m",
    "blocks": "a2i: blocks per level; niiv: residual blocks, 16 or 6",
    "window": "a2i: side of an attention window",
    "heads": "a2i: attention heads of each level, as 1,2,4,8",
    "expansion": "a2i: maps inside the gated layer, relative to those outside",
    "attention": "a2i: residual or printed; pssr: true for self-attention",
    "hidden": "niiv: width of the field's layers",
    "layers": "niiv: hidden layers of the field",
    "tile": "niiv: pixels of a training tile, in which positions are measured",
    "sections": "pssr: neighbouring sections used on each side",
    "depths": "pssr: residual blocks of the encoder's stages, as 3,4,6,3",
}
"""Options of train that are hyperparameters of an architecture."""

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
