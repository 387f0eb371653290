"""A process that would keep too much is given memory back; one that does not is left alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="not glibc on Linux"
)

CODE = """
import threading, time
from pathlib import Path
from isochunk.host.allocator import keep_memory
from isochunk.host.ceiling import MemoryCeiling

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) >> 10

def watching():
    return any(thread.name == "isochunk-ceiling" for thread in threading.enumerate())

def use(mib):
    "Take a buffer, touch its pages, and free it."
    buffer = bytearray(mib << 20)
    buffer[::4096] = b"1" * (mib << 8)

keep_memory()
if {mib}:
    ceiling = MemoryCeiling({mib} << 20)
    assert watching()
for mib in (500, 400, 300):
    use(mib)
left, end = resident(), time.monotonic() + {wait_s}
while (resident() > {below} or {mib} and not ceiling.times) and time.monotonic() < end:
    time.sleep(0.02)  # memory is back before that is counted
print(left, resident(), ceiling.times if {mib} else 0)
if {mib}:
    ceiling.stop()
    end = time.monotonic() + 10
    while watching() and time.monotonic() < end:
        time.sleep(0.02)
    before = ceiling.times
    use(500)
    time.sleep(0.2)
    print(int(watching()), ceiling.times - before)
"""


def watched(mib: int, below: int, wait_s: float = 1.5) -> list[int]:
    """Return MiB resident after buffers were freed, and later; how often memory was given back."""
    return run(CODE.format(mib=mib, below=below, wait_s=wait_s))


def run(code: str) -> list[int]:
    """Run code in a process of its own and return the numbers it prints."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean)
    return [int(n) for n in done.stdout.split()]


def test_beyond_the_ceiling_what_is_too_much_is_given_back_until_it_is_stopped() -> None:
    limit = 400 - 128  # the margin
    _, later, times, watching, after = watched(400, limit, wait_s=20)
    assert times > 0
    assert later < limit
    assert (watching, after) == (0, 0)


def test_below_the_ceiling_memory_is_kept() -> None:
    left, later, times, *_ = watched(2000, 200)
    assert times == 0
    assert later >= left > 400


def test_without_a_ceiling_memory_is_kept() -> None:
    """Else the first test proves nothing."""
    left, later, _ = watched(0, 200)
    assert later >= left > 400


GIVING = """
from pathlib import Path
from isochunk.host.allocator import give_back, keep_memory

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) >> 10

keep_memory()
buffer = bytearray(400 << 20)
buffer[::4096] = b"1" * (400 << 8)
del buffer
before = resident()
give_back(100 << 20)
print(before, resident())
"""


def test_just_so_much_is_given_back() -> None:
    before, after = run(GIVING)
    assert 95 <= before - after <= 105
