"""What an audit finds: stored objects that are not what they should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from isochunk.core.geometry import Box
from isochunk.engine.pipeline import block_levels
from isochunk.errors import CorruptDataError, NotFoundError, may_pass
from isochunk.planning.block import Block
from isochunk.planning.plan import Plan
from isochunk.storage.keys import object_boxes, object_key

HoleKind: TypeAlias = Literal["missing", "corrupt", "unread"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with an object."""

    kind: HoleKind
    """``missing``, ``corrupt``, or ``unread``: it may be as it should, but that is not known."""
    reason: str
    """What was found."""
    transient: bool = False
    """It was not read for a reason that may pass."""

    @classmethod
    def of(cls, error: Exception) -> Finding:
        """Return what an error in reading says of an object."""
        if isinstance(error, NotFoundError):
            return cls("missing", str(error))
        if isinstance(error, CorruptDataError):
            return cls("corrupt", str(error))
        return cls("unread", f"{type(error).__name__}: {error}", may_pass(error))


ABSENT = Finding("missing", "the object is absent")


@dataclass(frozen=True, slots=True)
class Hole:
    """A stored object that is not what it should be, or of which that is not known."""

    stage: int
    """Stage of the block it belongs to."""
    block: int
    """Number of that block."""
    level: int
    """Level the object belongs to."""
    box: Box
    """Voxels of the object on that level's grid."""
    object: str
    """Key below the target's URL."""
    finding: Finding
    """What is wrong with it."""

    @property
    def kind(self) -> HoleKind:
        """``missing``, ``corrupt`` or ``unread``."""
        return self.finding.kind

    @property
    def reason(self) -> str:
        """What was found."""
        return self.finding.reason

    def summary(self) -> dict[str, Any]:
        """Return the hole as JSON."""
        return {
            "object": self.object,
            "level": self.level,
            "box": str(self.box),
            "stage": self.stage,
            "block": self.block,
            "reason": self.reason,
        }


def hole_of(plan: Plan, block: Block, level: int, cell: Box, finding: Finding) -> Hole:
    """Make a hole of one object of a block."""
    key = object_key(plan.target, level, cell)
    return Hole(block.stage, block.index, level, cell, key, finding)


def holes_in(plan: Plan, block: Block, level: int, box: Box, finding: Finding) -> Iterator[Hole]:
    """Make a hole of every object in a box of a level."""
    for cell in object_boxes(plan.target.levels[level], box):
        yield hole_of(plan, block, level, cell, finding)


def all_holes(plan: Plan, block: Block, finding: Finding) -> Iterator[Hole]:
    """Make a hole of every object that a block writes."""
    for level, box in block_levels(plan, block):
        yield from holes_in(plan, block, level, box, finding)
