"""What torch says of the GPUs that this process sees."""

from __future__ import annotations

import re
from pathlib import Path

from isochunk.core.gpus import Gpu, SeenGpus

DRIVER = Path("/proc/driver/nvidia/version")
"""Where the kernel's driver tells its version."""


def seen_gpus() -> SeenGpus:
    """Return the GPUs that this process sees, and with what it would compute there.

    No memory of a GPU is taken by asking: a process may see many on which it never computes.
    """
    import torch

    if not torch.cuda.is_available():
        return SeenGpus((), torch.__version__, torch.version.cuda)
    known = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return SeenGpus(
        tuple(Gpu(str(one.uuid), one.name, one.total_memory) for one in known),
        torch.__version__,
        torch.version.cuda,
        _cudnn(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        _driver(DRIVER),
    )


def free_bytes(index: int) -> int:
    """Return what is free of a GPU; this process then holds some memory there for good.

    Args:
        index: its number among those that this process sees.
    """
    import torch

    free, _ = torch.cuda.mem_get_info(torch.device("cuda", index))
    return free


def _cudnn(number: int | None) -> str | None:
    """Write the number of a cuDNN, as 91002 since 9.0, as its version."""
    return None if number is None else f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


def _driver(file: Path) -> str | None:
    """Read the version of the kernel's driver."""
    try:
        found = re.search(r"\s(\d+\.[\d.]+)\s", file.read_text())
    except OSError:
        return None
    return found[1] if found else None
