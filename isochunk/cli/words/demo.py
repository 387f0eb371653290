"""What the demo did, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from isochunk.cli.words import jobs, targets
from isochunk.cli.words.layout import advice, facts


def demo(found: Mapping[str, Any]) -> RenderableType:
    """Say what the demo did, and what may be done next."""
    target = found["plan"]["target"]["url"]
    commands = (found["view"], f"isochunk audit {target}", "isochunk plan YOUR_VOLUME TARGET")
    return Group(
        jobs.run(found["run"]),
        facts([("audit", targets.audit(found["audit"]))]),
        "next:",
        *map(advice, commands),
    )
