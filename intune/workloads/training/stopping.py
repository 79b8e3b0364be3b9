"""How a signal stops training: at once while it waits or evaluates, else after the step under way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """A signal asked training to stop; `Trainer.fit` catches it.

    Not an `Exception`, so that no ``except Exception`` on the data path takes it for a failure.
    """


class Stop:
    """Remembers the signal that asked to stop, and breaks off waits for data and evaluations."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._interruptible = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take a signal in; the second one is for whoever cannot wait."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        if self._interruptible:
            raise Stopped

    def check(self) -> None:
        """Raise `Stopped` if a signal has come."""
        if self.signal is not None:
            raise Stopped

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within, a signal raises `Stopped` at once."""
        self._interruptible = True
        try:
            self.check()
            yield
        finally:
            self._interruptible = False


@contextmanager
def catching_signals() -> Iterator[Stop]:
    """Within, SIGINT, SIGTERM and SIGHUP are remembered instead of ending the process; outside the main thread, nothing
    is changed."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    # The terminal is gone; a job under `nohup` is to live on.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
