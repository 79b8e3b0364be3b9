"""How the C library's allocator behaves in a worker process of ours; never in the user's own."""

import contextlib
import ctypes

KEPT_BYTES = 1 << 30
"""Freed memory a worker keeps for the next blocks."""


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next block of the same size.

    By default it gives large pieces back to the system, which has to clear them and map them in again, page by
    page: a tenth of the time of a worker that makes many megabytes a task. Other C libraries than glibc do not
    know the call and go without.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, KEPT_BYTES)
        mallopt(trim_threshold, KEPT_BYTES)
