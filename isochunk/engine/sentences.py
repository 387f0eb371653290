"""What a run's report says, in sentences: for the terminal, a notebook, and the page.

Each takes the JSON object of ``isochunk run``, where it says no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from isochunk.core.amounts import counted, in_bytes, in_percent, in_time, in_voxels
from isochunk.core.sentence import Sentence

if TYPE_CHECKING:
    from isochunk.engine.audit import AuditProgress
    from isochunk.engine.report import Report

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


def run_line(report: Report) -> str:
    """Write on one line how far a run is; nothing of its rate before there is one."""
    said = [f"{report.done:,} of {counted(report.total, 'block')}"]
    finished = report.done - report.resumed
    if finished:
        left_s = (report.total - report.done) * report.wall_s / finished
        rate = report.voxels / max(report.wall_s, 1e-9)
        said.append(f"{in_voxels(rate)}/s")
        if left_s:
            said.append(f"about {in_time(left_s)} left")
    if report.workers > 1:
        said.append(f"{report.workers:,} workers")
    for number, name in ((report.failed, "failed"), (report.retries, "tried again")):
        if number:
            said.append(f"{number:,} {name}")
    return ", ".join(said)


def audit_line(progress: AuditProgress) -> str:
    """Write on one line how far an audit is."""
    said = f"{progress.read:,} of {counted(progress.total, 'block')} read"
    said += f", {progress.blocks_per_s:.3g} blocks/s"
    if progress.left_s:
        said += f", about {in_time(progress.left_s)} left"
    return f"{said}, {counted(progress.holes, 'hole')}"
