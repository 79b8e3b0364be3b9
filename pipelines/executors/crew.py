"""Threads of a worker process: no more than calls ever ran at once, those that worked last work next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from intune.pipelines.idle import LastFirst, Rest


class Crew:
    """Runs calls on threads that give freed memory back when they have nothing to do.

    Args:
        most: threads at most; further calls wait for one.
        name: of the threads.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._lock = threading.Lock()
        self._work = LastFirst(self._lock)
        self._calls: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._threads = self._free = 0

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` returns, or raises, on one of the threads."""
        future: Future[Any] = Future()
        with self._lock:
            self._calls.append((future, function, arguments))
            if len(self._calls) <= self._free:
                self._work.notify()
            elif self._threads < self._most:
                self._begin()
        return future.result()

    def _begin(self) -> None:
        self._threads += 1
        try:
            threading.Thread(target=self._serve, name=f"{self._name}-{self._threads}", daemon=True).start()
        except RuntimeError:  # the system allows no more: one of those there are will do it
            self._threads -= 1
            if not self._threads:
                self._calls.pop()
                raise

    def _serve(self) -> None:
        rest = Rest()
        while True:
            future, function, arguments = self._next(rest)
            try:
                made = function(*arguments)
            except BaseException as error:  # it is the caller's
                future.set_exception(error)
            else:
                future.set_result(made)
                del made
            # Nothing of a call outlives it.
            del future, function, arguments

    def _next(self, rest: Rest) -> tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]:
        while True:
            with self._lock:
                if self._calls:
                    rest.work()
                    return self._calls.popleft()
                self._free += 1
                try:
                    woken = self._work.wait(rest.patience)
                finally:
                    self._free -= 1
            if not woken:
                rest.pause()
