"""`one_thread`: torch on the calling thread alone, for learning beside a trainer whose processors these are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch uses the calling thread only; threads that are at work already keep as many as they had.

    Networks of a few thousand parameters gain nothing from more, and waiting for them on a busy machine takes a
    hundred times as long as the work.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
