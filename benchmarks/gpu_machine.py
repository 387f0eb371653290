"""What ``gpu.py`` measures with: the device, its versions, clocks, and its ceilings."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

import isochunk
from isochunk.core.geometry import Triple
from isochunk.core.job import Device, Precision
from isochunk.models.predictor import DTYPES, set_arithmetic

Line: TypeAlias = dict[str, Any]
"""Figures of one line of a table; anything JSON holds."""

PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16")
MIB = 1 << 20
GIB = 1 << 30


class NotHereError(Exception):
    """This machine lacks what a row needs; the text says what."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a row is measured, and in what size."""

    work: Path
    """Folder of sources, checkpoints and targets; in memory where there is room."""
    small: bool
    """The CPU form, or the full one on a GPU."""

    @property
    def device_name(self) -> Device:
        """What a job calls the device."""
        return "cpu" if self.small else "cuda"

    @property
    def device(self) -> torch.device:
        """The device that all rows use."""
        return torch.device("cpu") if self.small else torch.device("cuda", 0)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that differ here: a CPU computes tf32 as fp32."""
        return tuple(p for p in PRECISIONS if not (self.small and p == "tf32"))

    @property
    def source_shape(self) -> Triple:
        """Sections, rows and columns of the source of what runs end to end."""
        return (16, 64, 64) if self.small else (256, 1024, 1024)


def machine(setting: Setting) -> list[Line]:
    """Return what a figure depends on beside the code."""
    line: Line = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "isochunk": isochunk.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "device": "CPU, precisions emulated",
    }
    if not setting.small:
        card = torch.cuda.get_device_properties(0)
        line |= {
            "device": card.name,
            "device_gib": card.total_memory / GIB,
            "multiprocessors": card.multi_processor_count,
            "driver": asked_of_driver("driver_version"),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return [line]


def asked_of_driver(field: str) -> str | None:
    """Ask ``nvidia-smi`` for a field of the GPU in use; None where it does not answer."""
    command = ["nvidia-smi", f"--id={card_id()}", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def card_id() -> str:
    """Return what ``nvidia-smi`` calls the GPU, which counts others than torch where some hide."""
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    return "0" if uuid is None else f"GPU-{uuid}"


def median_s(
    setting: Setting, work: Callable[[], object], total_s: float = 1.0, most: int = 20
) -> float:
    """Return the median time of some work, after it was done once to warm up.

    Args:
        setting: on a GPU, its own clock is read.
        work: what to time.
        total_s: about how long to go on; at least three times, but once where it takes longer.
        most: times, at most.
    """
    first = timed(setting, work)
    if setting.small:
        total_s /= 10
    if first > total_s:
        return timed(setting, work)
    count = max(3, min(most, int(total_s / max(first, 1e-6))))
    return statistics.median(timed(setting, work) for _ in range(count))


def timed(setting: Setting, work: Callable[[], object]) -> float:
    """Return the seconds of some work: by events on a GPU, by the clock on a CPU."""
    if setting.small:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun
    begun_at, ended_at = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun_at.record()
    work()
    ended_at.record()
    ended_at.synchronize()
    return float(begun_at.elapsed_time(ended_at)) / 1000


def copies(setting: Setting) -> list[Line]:
    """Measure how fast memory is copied: on the device, and to and from it."""
    size = 64 * MIB if setting.small else GIB
    device = setting.device
    one, other = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = median_s(setting, lambda: other.copy_(one))
    lines = [speed("copy within the device, read and written", 2 * size, seconds, "GB/s")]
    if setting.small:
        return lines
    size //= 4
    there = one[:size]
    for kind, pinned in (("pinned", True), ("pageable", False)):
        host = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
        # Events also enclose copies of pageable memory, which are over when the call is.
        up = median_s(setting, lambda host=host: there.copy_(host, non_blocking=True))
        down = median_s(setting, lambda host=host: host.copy_(there, non_blocking=True))
        lines.append(speed(f"{kind} memory to the device", size, up, "GB/s"))
        lines.append(speed(f"the device to {kind} memory", size, down, "GB/s"))
    return lines


def products(setting: Setting) -> list[Line]:
    """Measure matrix products and 3D convolutions in each precision."""
    return [line for p in setting.precisions for line in (matrix(setting, p), kernel(setting, p))]


def matrix(setting: Setting, precision: Precision) -> Line:
    """Multiply square matrices."""
    side = 256 if setting.small else 8192
    set_arithmetic(setting.device, precision)
    one, other = (
        torch.randn(side, side, device=setting.device).to(DTYPES[precision]) for _ in range(2)
    )
    with torch.inference_mode():
        seconds = median_s(setting, lambda: one @ other)
    return speed(f"matrix product of {side}, {precision}", 2 * side**3, seconds, "TFLOP/s")


def kernel(setting: Setting, precision: Precision) -> Line:
    """Convolve 64 maps with 3x3x3 kernels, as 3D-SRU-Net does most of the time."""
    maps, side = (8, 16) if setting.small else (64, 128)
    set_arithmetic(setting.device, precision)
    layer = nn.Conv3d(maps, maps, 3, bias=False).to(setting.device, DTYPES[precision])
    x = torch.randn(1, maps, *(side,) * 3, device=setting.device).to(DTYPES[precision])
    x = x.to(memory_format=torch.channels_last_3d)
    layer.to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        seconds = median_s(setting, lambda: layer(x))
    work = 2 * 27 * maps**2 * (side - 2) ** 3
    return speed(f"3x3x3 convolution of {maps} maps, {precision}", work, seconds, "TFLOP/s")


def speed(what: str, amount: float, seconds: float, unit: str) -> Line:
    """Return a line of the ceilings."""
    scale = {"GB/s": 1e9, "TFLOP/s": 1e12}[unit]
    return {"what": what, "value": amount / seconds / scale, "unit": unit}


def memory_peak(setting: Setting, work: Callable[[], object]) -> tuple[float | None, float | None]:
    """Return the GiB that some work takes of the device beyond what it holds.

    Returns:
        Bytes of tensors, and bytes that torch's allocator took from the driver for all; None on
        a CPU.
    """
    if setting.small:
        work()
        return None, None
    torch.cuda.empty_cache()
    tensors, taken = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    peaks = torch.cuda.max_memory_allocated() - tensors, torch.cuda.max_memory_reserved() - taken
    return peaks[0] / GIB, peaks[1] / GIB


def first_line(error: BaseException, most: int = 300) -> str:
    """Return what an error says, in short."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:most]


def extents(shape: Sequence[int]) -> str:
    """Write a shape."""
    return " x ".join(map(str, shape))
