"""What a field is called where: by those who type options, and by those who write Python."""

from __future__ import annotations


def option_of(field: str) -> str:
    """Return the option that sets a field: without the unit, with dashes."""
    return f"--{field.removesuffix('_s').replace('_', '-')}"


def option(field: str, value: str = "") -> str:
    """Name a field in a message, for both.

    Args:
        field: of a job, or of an evaluation.
        value: how it is written, as ``Z,Y,X``; empty where that is plain.

    Returns:
        ``--source-spacing Z,Y,X (source_spacing in Python)``, or the option alone where that is
        the field's own name.
    """
    name = option_of(field)
    shown = f"{name} {value}" if value else name
    return shown if name == f"--{field}" else f"{shown} ({field} in Python)"
