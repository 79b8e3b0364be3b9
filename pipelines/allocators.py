"""Memory that allocators keep after it was freed: kept on purpose for the next task, given back where there is none.

Sources: glibc's malloc.c (`malloc_trim`, `heap_trim`, `mallopt`) and mallopt(3); Arrow's `MemoryPool`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

KEPT_BYTES = 1 << 30
"""Freed memory a worker process keeps for the next blocks."""

TRIM_EVERY = 0.1
"""Seconds within which the C library, whose memory all threads share, is not asked again."""

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
LARGEST_TRIM, LARGEST_MMAP = 64 << 20, 32 << 20
"""Where glibc's thresholds end up by themselves in a process that frees large pieces. Older ones than 2.35 refuse a
higher second one."""

KEPT_SHARE = 0.05
"""Of a pipeline's memory, what as many threads as it has CPUs may keep between two tasks, each an equal part, within
`LEAST_KEPT` and `MOST_KEPT`."""

LEAST_KEPT, MOST_KEPT = 4 << 20, 256 << 20

HEAP = 64 << 20
"""What glibc maps at a time for a thread; larger pieces never come out of it."""

LEAST_TRIM = 1 << 20
TOUCHED = 100_000
"""Bytes that are taken and freed to have an arena look at its end: more than glibc's 64 KiB for that, less than what
it would map apart."""

_thresholds = (LARGEST_TRIM, LARGEST_MMAP)
_kept = 0
_lock = threading.Lock()
_trimmed = -TRIM_EVERY


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next block of the same size. For processes of ours only.

    By default it gives large pieces back to the system, which has to clear them and map them in again, page by
    page: a tenth of the time of a worker that makes many megabytes a task. Other C libraries than glibc do not
    know the call and go without.
    """
    _keep(KEPT_BYTES, KEPT_BYTES)


def keep_between_tasks(memory: int, threads: int) -> None:
    """The same for threads of the trainer's process, within a share of the pipeline's memory.

    By itself glibc may or may not: a thread keeps up to twice the largest piece that anyone freed before, so that
    the same job made 4.5 or 5.5 million rows a second from one start to the next, with 100,000 or 15,000 page faults.
    And where memory is scarce, four threads that had run a function with 60 MiB of temporaries kept a quarter of a
    GiB, of which the last call had use for none.

    Args:
        memory: bytes of the pipeline.
        threads: that work at once.
    """
    kept = max(min(int(KEPT_SHARE * memory) // threads, MOST_KEPT), LEAST_KEPT, _kept)
    if not chosen_by_user(os.environ):
        _keep(kept, min(kept, HEAP))


def _keep(trim: int, mmap: int) -> None:
    global _thresholds, _kept
    with contextlib.suppress(OSError, AttributeError), _lock:
        _kept, _thresholds = trim, (trim, mmap)
        _set_thresholds(ctypes.CDLL(None), *_thresholds)


def give_back() -> None:
    """Give freed memory back to the system: Arrow's and the C library's of this thread, and of the C library what
    other threads left between blocks that are in use."""
    global _trimmed
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc has no such calls
        library = ctypes.CDLL(None)
        with _lock:
            if time.monotonic() - _trimmed >= TRIM_EVERY:
                library.malloc_trim(0)
                _trimmed = time.monotonic()
            if not chosen_by_user(os.environ):
                _trim_arena(library)


def chosen_by_user(environment: Mapping[str, str]) -> bool:
    """Whether somebody chose the C library's thresholds; then they stay."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    return bool(
        environment.get("MALLOC_TRIM_THRESHOLD_")
        or environment.get("MALLOC_MMAP_THRESHOLD_")
        or "malloc.trim_threshold" in tunables
        or "malloc.mmap_threshold" in tunables
    )


def _trim_arena(library: Any) -> None:
    """Give back the free end of this thread's own arena.

    `malloc_trim` leaves that of all arenas but the main one as it is: up to twice the largest piece ever freed, for
    each thread. An arena looks at its end when a piece is freed, and cuts what is beyond a threshold. The threshold is
    lowered for that moment, and then set to where glibc's own rule leads.
    """
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    library.free.restype, library.free.argtypes = None, (ctypes.c_void_p,)
    try:
        library.mallopt(TRIM_THRESHOLD, LEAST_TRIM)
        library.free(library.malloc(TOUCHED))
    finally:
        _set_thresholds(library, *_thresholds)


def _renew() -> None:
    global _lock
    _lock = threading.Lock()  # another thread may have held it when this process was forked


os.register_at_fork(after_in_child=_renew)


def _set_thresholds(library: Any, trim: int, mmap: int) -> None:
    if not library.mallopt(MMAP_THRESHOLD, mmap):
        library.mallopt(MMAP_THRESHOLD, min(mmap, LARGEST_MMAP))  # one refused leaves the lowest, for good
    library.mallopt(TRIM_THRESHOLD, trim)
