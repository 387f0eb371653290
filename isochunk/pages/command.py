"""The command that makes a job's output again."""

from __future__ import annotations

import shlex
from dataclasses import MISSING, fields
from typing import Any

from isochunk.core.job import Job, RunOptions
from isochunk.core.option_names import option_of
from isochunk.core.window import Window

HOW = {f.name for f in fields(RunOptions)} - {"model", "trust", "requester_pays", "endpoint_url"}
"""Fields that do not change the output, and are another machine's business."""


def command_of(job: Job) -> str:
    """Write a job as ``isochunk run`` takes it: what it says otherwise than by default."""
    words = ["isochunk", "run", job.source, job.target]
    for told in fields(Job):
        value = getattr(job, told.name)
        default = None if told.default is MISSING else told.default
        if told.name in (*HOW, "source", "target") or value == default:
            continue
        words.append(
            option_of(told.name) if value is True else f"{option_of(told.name)}={_text(value)}"
        )
    return shlex.join(words)


def _text(value: Any) -> str:
    if isinstance(value, Window):
        return f"{value.low:g},{value.high:g}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
