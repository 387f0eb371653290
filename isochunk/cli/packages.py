"""Networks for other programs: as packages for the BioImage Model Zoo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from isochunk.cli.options import DONE, Command, Result, access_arguments
from isochunk.cli.words import packages as words
from isochunk.core.text_forms import read_ratio, read_shape
from isochunk.errors import UsageError


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``isochunk export``."""
    parser.add_argument("name", help="a shipped network, or a checkpoint folder")
    parser.add_argument(
        "--bioimageio", metavar="FILE", required=True, help="package to write, a .zip"
    )
    parser.add_argument(
        "--factor", help="whole target voxels per section; default: the network's own"
    )
    parser.add_argument(
        "--block", help="source voxels Z,Y,X it takes at a time; default: its halo and some more"
    )
    parser.add_argument(
        "--source",
        help="uint8 volume whose intensity the package keeps; default: the demo's tissue",
    )


def export(options: argparse.Namespace) -> Result:
    """``isochunk export``."""
    from isochunk.models.packing.write import Packing, write_package

    told: dict[str, Any] = {}
    if options.factor is not None:
        told["factor"] = read_ratio(options.factor, "--factor")
    if options.block is not None:
        told["block"] = read_shape(options.block, "--block")
    if options.source is not None:
        told["intensity"] = intensity_of(options)
    packing = Packing(Path(options.bioimageio), **told)
    return write_package(options.name, packing).summary(), DONE


def intensity_of(options: argparse.Namespace) -> Any:
    """Measure the volume that a package is for."""
    from isochunk.models.load import describe
    from isochunk.planning.intensity import measure_intensity
    from isochunk.storage.access import Access
    from isochunk.storage.open import open_volume

    volume = open_volume(options.source, Access(**access_arguments(options)))
    if volume.spec.dtype != "uint8":
        raise UsageError(
            f"{options.source} holds {volume.spec.dtype}; packages take uint8, so choose a volume "
            "of uint8"
        )
    return measure_intensity(volume, describe(options.name).normalisation)


COMMANDS = (
    Command(
        "export",
        "write a network as a package for bioimage.io",
        export_arguments,
        export,
        words.export,
    ),
)
