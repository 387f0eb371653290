"""What the demo did, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from isochunk.cli.words import jobs, targets
from isochunk.cli.words.layout import advice, facts


def demo(found: Mapping[str, Any]) -> RenderableType:
    """Say what the demo did, and what may be done next."""
    compared = found["compared"]
    rows = [
        *jobs.told_of_run(found["run"]),
        ("audit", targets.audit(found["audit"])),
        (
            "truth",
            f"{compared['psnr']:.2f} dB of PSNR, {compared['over_cubic']:+.2f} over cubic (95 %: "
            f"{compared['low']:+.2f} to {compared['high']:+.2f}); nothing was trained on it",
        ),
    ]
    commands = (
        found["page"],
        found["view"],
        "isochunk inspect YOUR_VOLUME",
        "isochunk plan YOUR_VOLUME TARGET --model anyz-z2-10",
    )
    return Group(facts(rows), "next:", *map(advice, commands))
