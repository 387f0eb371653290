"""What a run's report says, in sentences: for the terminal, and for the page.

Each takes the JSON object of ``isochunk run``, where it says no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from isochunk.core.amounts import counted, in_bytes, in_percent, in_time, in_voxels
from isochunk.core.sentence import Sentence

KINDS = {"resumed": "done before", "empty": "all background", "failed": "failed"}
"""Blocks that are counted apart."""


def verdict(report: Mapping[str, Any]) -> str:
    """Say whether all is done."""
    blocks = report["blocks"]
    said = f"{blocks['done']:,} of {counted(blocks['total'], 'block')}"
    known = [f"{blocks[key]:,} {name}" for key, name in KINDS.items() if blocks[key]]
    if known:
        said += f" ({', '.join(known)})"
    return f"{'complete' if report['complete'] else 'not complete'}: {said}"


def audited(audit: Mapping[str, Any]) -> Sentence:
    """Say whether a target is complete, of the JSON object of ``isochunk audit``."""
    objects = counted(audit["expected"], "object")
    if audit["complete"]:
        return Sentence("audit", f"complete: all of {objects} were read again and are as written")
    missing, corrupt = len(audit["missing"]), len(audit["corrupt"])
    said = f"not complete: of {objects} {missing:,} missing, {corrupt:,} corrupt or not readable"
    return Sentence("audit", said, good=False)


def course(report: Mapping[str, Any]) -> Iterator[Sentence]:
    """Say how a run went."""
    first, device = report["first_block_s"], report["device"]
    yield Sentence(
        "time",
        in_time(report["wall_s"])
        + ("" if first is None else f", the first block after {in_time(first)}"),
    )
    yield Sentence(
        "rate", f"{in_voxels(report['voxels_per_s'])}/s, {in_voxels(report['voxels'])} written"
    )
    shares = report["shares"].items()
    yield Sentence("spent on", ", ".join(f"{kind} {in_percent(share)}" for kind, share in shares))
    if device is not None:
        on = f"{device['count']} x {device['name']}, CUDA {device['cuda']}, torch {device['torch']}"
        yield Sentence("on", on)
    yield Sentence(
        "moved", f"{in_bytes(report['bytes_read'])} in, {in_bytes(report['bytes_written'])} out"
    )
    if report["retries"]:
        yield Sentence("tried again", counted(report["retries"], "time"))
    if report["tile_halvings"]:
        said = "memory ran out and tiles were halved: plan with less --memory"
        yield Sentence("mind", said, good=False)


def proofs(report: Mapping[str, Any]) -> Iterator[Sentence]:
    """Say what was measured of the output."""
    seam, source = report["seam"], report["consistency"]
    if seam is not None:
        compared = f"{seam['voxels']:,} voxels compared across blocks' faces"
        same = seam["identical_fraction"]
        said = (
            f"none: all of {compared} are the same"
            if same == 1
            else f"{in_percent(same)} of {compared} are the same, others differ by at most "
            f"{counted(seam['max_difference'], 'grey level')}"
        )
        kept = "promised" not in seam or seam["promised"]["kept"]
        yield Sentence("seams", said if kept else f"{said}: more than promised", good=kept)
    if source is not None:
        yield Sentence(
            "source",
            f"sections made of the output differ by {source['rms']:.2g} grey levels RMS, by "
            f"{source['worst_section_rms']:.2g} at z = {source['worst_section']}",
        )
    if report["invented_voxels"]:
        said = f"{in_voxels(report['invented_voxels'])} in sections filled from those around them"
        yield Sentence("invented", said, good=False)
