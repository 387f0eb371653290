"""Large buffers without paying for their pages again and again.

By default glibc hands buffers of 32 MiB and more back to the kernel as soon as they are freed, and
a network on a CPU asks for such buffers at every layer: faulting their pages in can take as
long as the layer itself. Thresholds can be moved in any process at any time. But only the first of
glibc's arenas can hold large buffers at all, and most threads of a process that others started have
another one for good; so a thread that computes is chosen by its arena.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
M_ARENA_MAX = -8
"""Parameter numbers of glibc's ``mallopt``."""

LARGEST = 2**31 - 1

ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(LARGEST),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(LARGEST),
}
"""The same for a process that is yet to be started; glibc reads it before the first thread."""

OTHER_ARENA = 4
"""Bit in the size of a chunk of glibc's that says that it is from another arena than the first."""

PROBE_BYTES = 1 << 16
"""Too large for a thread's own cache of chunks, and too small to be mapped by itself."""

MADV_DONTNEED = 4
"""Linux's number for: these pages are not needed."""

ARENAS_PER_CORE = 8
"""Arenas that glibc makes at most; after that new threads share those there are, in turn."""


def is_glibc() -> bool:
    """Tell whether the C library is the one that this is about."""
    return platform.libc_ver()[0] == "glibc"


def keep_memory() -> bool:
    """Keep what is freed, from now on; whatever ``MALLOC_*`` variables said.

    New threads share the first arena too, where glibc has not yet settled how many there may be.
    Resident memory stays at its peak, which fragmentation makes about 1.4 times what it would
    be (measured on 3D-SRU-Net tiles; from the third tile on no page is faulted in).

    Returns:
        Whether anything was changed: not where the C library is not glibc.
    """
    if not is_glibc():
        return False
    libc = ctypes.CDLL(None)
    done = (
        libc.mallopt(M_ARENA_MAX, 1),
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST),
        libc.mallopt(M_MMAP_MAX, 0),  # thresholds end at 2 GiB
        libc.mallopt(M_TRIM_THRESHOLD, -1),
    )
    return all(done)


def give_back_memory() -> None:
    """Give what is free now back to the kernel."""
    if is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def give_back(size_bytes: int) -> None:
    """Give so much of what is free back to the kernel, from the first gap that is as large.

    What is given back has to be faulted in again when it is used, so all of it would be too much.
    Call it in a thread of the first arena.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free.argtypes = [ctypes.c_void_p]
    chunk = libc.malloc(size_bytes)
    if not chunk:
        return
    page = os.sysconf("SC_PAGE_SIZE")
    first, end = -(-chunk // page) * page, (chunk + size_bytes) // page * page
    libc.madvise(first, end - first, MADV_DONTNEED)
    libc.free(chunk)


def uses_first_arena() -> bool:
    """Tell whether this thread's memory is from glibc's first arena, or from another library."""
    if not is_glibc():
        return True
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    chunk = libc.malloc(PROBE_BYTES)
    size = ctypes.c_size_t.from_address(chunk - ctypes.sizeof(ctypes.c_size_t)).value
    libc.free(chunk)
    return not size & OTHER_ARENA


def computing_thread(name: str) -> ThreadPoolExecutor:
    """Return an executor of one thread that can keep large buffers; see :func:`keep_memory`.

    Threads are started until one gets the first arena, which takes a millisecond: glibc hands
    arenas out in turn. Where none does, the last is taken.
    """
    tried = [ThreadPoolExecutor(1, name)]
    while not tried[-1].submit(uses_first_arena).result():
        if len(tried) > _most_arenas():
            break
        tried.append(ThreadPoolExecutor(1, name))  # the others live on, and hold their arenas
    *others, chosen = tried
    for other in others:
        other.shutdown(wait=False)
    return chosen


def start_daemon(name: str, run: Callable[[], None]) -> None:
    """Run something in such a thread, which the process does not wait for when it ends."""
    chosen = threading.Event()
    for left in reversed(range(_most_arenas() + 1)):
        takes_it: Future[bool] = Future()

        def body(takes_it: Future[bool] = takes_it, left: int = left) -> None:
            takes_it.set_result(not left or uses_first_arena())
            if takes_it.result():
                run()
            else:
                chosen.wait()  # and hold an arena

        threading.Thread(target=body, name=name, daemon=True).start()
        if takes_it.result():
            break
    chosen.set()


def _most_arenas() -> int:
    """Return how many arenas there may be."""
    return ARENAS_PER_CORE * ((os.cpu_count() or 1) + 1)
