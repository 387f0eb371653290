"""Memory that is freed and asked for again comes without page faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource, threading
from isochunk.host.allocator import keep_memory

print({setup})
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for _ in range(25):
        before = faults()
        torch.ones(25_000_000)
        print(faults() - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def page_faults(setup: str, **env: str) -> tuple[str, list[int]]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(setup=setup)],
        capture_output=True,
        text=True,
        check=True,
        env=clean | env,
    )
    told, *counts = done.stdout.split()
    return told, [int(n) for n in counts]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
@pytest.mark.slow
def test_a_thread_gets_its_buffers_back_without_faults():
    told, kept = page_faults("keep_memory()")
    assert told == "True"
    _, default = page_faults("None")
    assert kept[0] > 20_000  # 100 MB of 4 KiB pages
    # At first the heap grows: glibc seldom fits an aligned buffer where an equal one was.
    assert max(kept[20:]) < 1000
    assert min(default[20:]) > 20_000


@pytest.mark.slow
def test_what_the_user_set_stays():
    told, _ = page_faults("keep_memory()", MALLOC_ARENA_MAX="3")
    assert told == "False"
