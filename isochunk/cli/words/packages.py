"""What was written for other programs, in words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from isochunk.cli.words.layout import advice, facts
from isochunk.core.amounts import by, in_bytes
from isochunk.planning.sentences import AXES


def export(found: Mapping[str, Any]) -> RenderableType:
    """Say what a package is."""
    said = facts(
        (
            ("package", f"{found['out']}, {in_bytes(found['bytes'])}"),
            ("network", f"{found['name']}, at a factor of {found['factor']} along z"),
            (
                "block",
                f"{by(found['block'])} source voxels ({AXES}), exact inside a halo of "
                f"{by(found['halo'])}",
            ),
            (
                "intensity",
                f"{found['mean']:.2f} is 0 and {found['deviation']:.2f} grey levels are 1, "
                "whatever the volume",
            ),
            ("remarks", found["warnings"]),
        )
    )
    return Group(said, advice(f"bioimageio test {shlex.quote(found['out'])} tries it elsewhere"))
