"""What a plan says, in sentences: for the terminal, and for a notebook.

Each takes the JSON object of ``isochunk plan``, or the part of it that is a volume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from isochunk.core.amounts import by, counted, in_bytes, in_memory, in_percent, in_voxels
from isochunk.core.sentence import Sentence

AXES = "z, y, x"
LISTED = 12
"""Sections listed one by one."""
WORTHWHILE = 0.05
"""Share of the computing that twice the memory must save, to be said."""


def volume(found: Mapping[str, Any], label: str = "volume") -> Iterator[Sentence]:
    """Say what a volume is, in three lines."""
    shape, encoding, shard = found["shape"], found["encoding"], found["shard"]
    stored = f"{found['format']}, {encoding}" if encoding else found["format"]
    pieces = f"chunks of {by(found['chunk'])}" + (f" in shards of {by(shard)}" if shard else "")
    yield Sentence(label, found["url"])
    yield Sentence(
        "",
        f"{by(shape)} voxels ({AXES}) of {by(found['spacing_nm'])} nm, {found['dtype']}: "
        f"{in_voxels(math.prod(shape))}",
    )
    yield Sentence("", f"{stored}, {counted(found['levels'], 'level')}, {pieces}")


def listed(numbers: Sequence[int]) -> str:
    """List a few sections, and say how many more there are."""
    said = ", ".join(map(str, numbers[:LISTED])) or "none"
    more = len(numbers) - LISTED
    return f"{said} and {more:,} more" if more > 0 else said


def planned(found: Mapping[str, Any]) -> Iterator[Sentence]:
    """Say what would be read, made and written, with what memory, and how exactly."""
    source, target = found["source"], found["target"]
    thick, thin = source["spacing_nm"][0], target["spacing_nm"][0]
    yield from volume(source, "read")
    yield Sentence("", f"{in_bytes(found['bytes_read'])} in all, what halos read again included")
    yield Sentence(
        "make", f"sections of {thin:g} nm from those of {thick:g} nm, by {found['model']}"
    )
    yield Sentence(
        "",
        f"{counted(found['blocks'], 'block')} of {by(found['block'])} voxels; halos of "
        f"{by(found['halo'])} add {in_percent(found['compute_overhead'])} to the computing",
    )
    yield from volume(target, "write")
    yield Sentence(
        "",
        f"{counted(found['objects_written'], 'object')}, "
        f"{in_bytes(found['bytes_written'])} before compression",
    )
    yield Sentence("", _stored(found))
    yield Sentence("memory", f"{in_memory(found['worker_memory_bytes'])} for each worker")
    yield _exactness(found)


def _stored(found: Mapping[str, Any]) -> str:
    size, month, how = found["bytes_stored"], found.get("storage_month"), "as EM has it"
    if cost := found.get("cost"):
        kept, how = cost["storage"][0], "as measured"
        size = kept["quantity"] * 2**30
        month = {**cost, "cost": kept["cost"]}
    said = f"about {in_bytes(size)} as {found['target']['encoding']}, {how}"
    if not month or not month["cost"]:
        return said
    return (
        f"{said}: {month['cost']:,.2f} {month['currency']} a month at prices of "
        f"{month['prices_as_of']}"
    )


def _exactness(found: Mapping[str, Any]) -> Sentence:
    if not found["exact"]:
        return Sentence("exact", "no: this model's tiles do not join exactly", good=False)
    said, same = "blocks join as if the volume were one", found["identical_to_fp32"]
    if same is not None:
        share = "every voxel" if same == 1 else f"{in_percent(same)} of voxels"
        said += f"; {share} as in float32"
    return Sentence("exact", said)


def to_mind(found: Mapping[str, Any]) -> Iterator[Sentence]:
    """Say what is out of the ordinary."""
    window, sections, more = found["window"], found["sections"], found["with_twice_the_memory"]
    if window is not None:
        said = f"{window['low']:g} to {window['high']:g} become black to white"
        yield Sentence("grey levels", said)
    if sections is not None:
        said = f"{len(sections['lost'])} filled from those around them"
        yield Sentence("sections", f"{said}, {sections['corrected']} corrected")
    if found["invented_voxels"]:
        said = f"{in_voxels(found['invented_voxels'])} in sections that are filled"
        yield Sentence("invented", said, good=False)
    if more and found["compute_overhead"] - more["compute_overhead"] > WORTHWHILE:
        yield Sentence(
            "mind",
            f"twice the memory: blocks of {by(more['block'])}, and halos add "
            f"{in_percent(more['compute_overhead'])}",
        )
    if found["padded_because"]:
        said = f"every tile is padded: {found['padded_because']}"
        yield Sentence("mind", said, good=False)
    if hint := found.get("sections_hint"):
        yield Sentence(
            "mind",
            f"of {counted(hint['looked_at'], 'section')} looked at, {len(hint['lost'])} look lost "
            f"(z = {listed(hint['lost'])}) and {len(hint['uneven'])} uneven "
            f"(z = {listed(hint['uneven'])}):",
            good=False,
        )
