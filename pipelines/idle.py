"""Threads that wait for work: which one is woken, and what it gives back when it has none.

Memory allocators keep freed memory for the thread that had it, and only that thread can give it back (a heap of
mimalloc, Arrow's allocator, is one thread's own). So those that worked last work next, and the others, which a smaller
allocation leaves without work, let go of what they keep. Where all rest (between two epochs, or while the trainer does
something else) they keep it for a while: what is given back has to be mapped in again, page by page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from intune.pipelines.allocators import give_back

PATIENCE = (0.2, 0.6, 2.0, 8.0, 20.0)
"""Seconds without work after which a thread gives memory back, and again after the next ones: blocks that it made may
be let go of by others only later. Short beside the time between two decisions, long beside a task's. Where nobody else
worked either, only after all of them."""


class LastFirst:
    """A condition that wakes the thread that began to wait last, where `threading.Condition` wakes the first: of many
    threads with little work a few then do it all, with warm caches, and the others rest.

    Args:
        lock: held by whoever calls the methods.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._waiting: list[threading.Lock] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Let go of the lock until woken, or for `timeout` seconds; whether it was woken."""
        mine = threading.Lock()
        mine.acquire()
        self._waiting.append(mine)
        self._lock.release()
        woken = False
        try:
            woken = mine.acquire(timeout=-1 if timeout is None else max(timeout, 0.0))
        finally:
            self._lock.acquire()
            if mine in self._waiting:
                self._waiting.remove(mine)
            else:
                woken = True  # perhaps just when the time was over
        return woken

    def notify(self) -> None:
        """Wake the thread that began to wait last, if one waits."""
        if self._waiting:
            self._waiting.pop().release()

    def notify_all(self) -> None:
        """Wake all."""
        while self._waiting:
            self.notify()


class Rest:
    """What one thread does while it has nothing to do.

    Args:
        release: gives memory back.
    """

    def __init__(self, release: Callable[[], None] | None = None) -> None:
        self._release = give_back if release is None else release
        self._times = 0
        self._waited = 0.0

    @property
    def patience(self) -> float | None:
        """Seconds to wait for work before the next time; None: as long as it takes."""
        return max(PATIENCE[self._times] - self._waited, 0.0) if self._times < len(PATIENCE) else None

    def waited(self, seconds: float) -> bool:
        """It waited for `seconds` more, for a reason of its own; whether `pause` is due."""
        self._waited += seconds
        return self.patience is not None and self.patience <= 0

    def work(self) -> None:
        """There is work: begin anew when it is done."""
        self._times, self._waited = 0, 0.0

    def pause(self, spare: bool = True) -> None:
        """There was none for so long.

        Args:
            spare: whether others worked meanwhile, or memory is short; else all rest.
        """
        self._times, self._waited = self._times + 1, 0.0
        if spare or self._times == len(PATIENCE):
            self._release()
