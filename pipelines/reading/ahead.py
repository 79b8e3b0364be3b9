"""Many small things that wait for storage, several at a time: footers, listings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD = 8
"""Results for each thread that may wait to be taken: enough that no thread waits for one slow answer."""


@contextmanager
def made_ahead(
    work: Callable[[Item], Made], items: Iterable[Item], *, threads: int, name: str
) -> Iterator[Iterator[Made]]:
    """What `work` makes of the items, in order, to be read within the block.

    Little is made before it is taken: who takes slowly holds few results, and who leaves the block with the first
    item that is no good waits for what is under way, not for all the others.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        yield _in_order(pool, work, iter(items), threads * (AHEAD + 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Made], items: Iterator[Item], most: int
) -> Iterator[Made]:
    waiting: deque[Future[Made]] = deque(pool.submit(work, item) for item in islice(items, most))
    while waiting:
        made = waiting.popleft().result()
        waiting.extend(pool.submit(work, item) for item in islice(items, 1))
        yield made
