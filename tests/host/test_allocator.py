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


ELSEWHERE = """
import concurrent.futures, resource, threading, time
from isochunk.host.allocator import computing_thread, keep_memory

for _ in range({threads}):  # as in a Dask worker: threads with arenas of their own
    threading.Thread(target=lambda: (bytearray(200_000), time.sleep(60)), daemon=True).start()
import torch

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for _ in range(25):
        before = faults()
        torch.ones(25_000_000)
        print(faults() - before)

if {kept}:
    keep_memory()
    thread = computing_thread("test")
else:
    thread = concurrent.futures.ThreadPoolExecutor(1)
thread.submit(work).result()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
@pytest.mark.slow
@pytest.mark.parametrize("threads", [0, 3, 12, 40])
def test_a_process_that_others_started_gets_its_buffers_back_too(threads):
    # As Dask's nannies set it; what nannies of other tests left behind would hide what is tested.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    env = {**clean, "MALLOC_TRIM_THRESHOLD_": "65536"}
    faults = {}
    for kept in (True, False):
        code = ELSEWHERE.format(threads=threads, kept=kept)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
        )
        faults[kept] = [int(n) for n in done.stdout.split()]
    assert max(faults[True][20:]) < 1000
    assert min(faults[False][20:]) > 20_000
