"""GPUs as a process tells of them. Values alone; :mod:`isochunk.models.gpus` asks torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from isochunk.core.job import Precision

WRONG_CUDNN = ((9, 8), (9, 15))
"""The first cuDNN whose 3D convolutions in low precision are wrong or refused, and the first that
is mended: PyTorch's issues 163539, 166122 and 166643."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that a process sees."""

    uuid: str
    """The same in every process and container that sees it."""
    name: str
    """As its maker calls it."""
    total_bytes: int
    """Its memory."""


@dataclass(frozen=True, slots=True)
class SeenGpus:
    """What one process sees, and with what it would compute there."""

    gpus: tuple[Gpu, ...]
    """In the order in which it counts them."""
    torch: str
    """Version of torch."""
    cuda: str | None = None
    """Version of CUDA that torch was built for; None for a torch without."""
    cudnn: str | None = None
    """Version of cuDNN; None where nothing is seen."""
    driver: str | None = None
    """Version of the kernel's driver; None where it does not tell."""


def device_summary(used: Iterable[tuple[Gpu, SeenGpus]]) -> dict[str, Any] | None:
    """Return what a report says of the GPUs that a job runs on, as JSON.

    Args:
        used: the GPU of each worker, and what the worker sees.

    Returns:
        Names and versions, each once, and how many GPUs; None where there is none.
    """
    used = list(used)
    if not used:
        return None
    return {
        "name": _each_once(gpu.name for gpu, _ in used),
        "count": len({gpu.uuid for gpu, _ in used}),
        "torch": _each_once(seen.torch for _, seen in used),
        "cuda": _each_once(seen.cuda for _, seen in used),
        "cudnn": _each_once(seen.cudnn for _, seen in used),
        "driver": _each_once(seen.driver for _, seen in used),
    }


def wrong_cudnn(device: Mapping[str, Any] | None, precision: Precision) -> str | None:
    """Return the cuDNN of a summary that computes a precision wrongly; None if all is well.

    Args:
        device: of :func:`device_summary`.
        precision: arithmetic of the network's layers.
    """
    if device is None or precision not in ("fp16", "bf16"):
        return None
    first, mended = WRONG_CUDNN
    found = [v for v in (device["cudnn"] or "").split(", ") if v]
    wrong = [v for v in found if first <= tuple(map(int, v.split(".")[:2])) < mended]
    return ", ".join(wrong) or None


def _each_once(values: Iterable[str | None]) -> str | None:
    """Join values that differ."""
    return ", ".join(sorted({value for value in values if value})) or None
