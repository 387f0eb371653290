"""Options of ``isochunk train`` by name, with what ``--help`` says of them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

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

WORDS = ("out", "factor", "encoder", "licence", "trained_on")
"""Options that are text, whatever they look like."""


def with_options(table: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, Any]:
    """Put options of the command line over a recipe's table.

    Args:
        table: as :func:`config_from_table` takes it.
        options: texts by the names of :mod:`isochunk.cli.options`.
    """
    values = {**table, "network": dict(table.get("network", {}))}
    for name, text in options.items():
        if name in TRAIN_PARTS:
            part, field, _ = TRAIN_PARTS[name]
            values[part] = {**values.get(part, {}), field: parse_value(text)}
        elif name in NETWORK_OPTIONS:
            values["network"][name] = parse_value(text)
        else:
            field = name.replace("-", "_")
            values[field] = text if field in WORDS else parse_value(text)
    return values


def parse_value(text: str) -> Any:
    """Read an option of the command line as TOML would: 32, true, ``1,2,4,8`` or a word."""
    if "," in text:
        return [parse_value(part) for part in text.split(",")]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
