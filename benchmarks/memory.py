"""How much memory a contender and all processes below it hold, shared pages counted once.

The proportional set size (PSS) of Linux divides a shared page among those that map it, so that the sum over
Ray's or a DataLoader's processes counts the object store or a shared tensor once. Where it cannot be read,
the resident set size stands in, and the result says so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import psutil

INTERVAL_S = 0.02
"""Between two looks: a row group takes a contender about 15 ms, and a look at a few processes 1–5 ms."""


def process_bytes(pid: int) -> tuple[int, bool]:
    """Bytes of one process, and whether they are its PSS; 0 for a process that has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1]), True
    except (FileNotFoundError, ProcessLookupError):
        pass  # ended meanwhile, or no such file on this system: the line below knows which
    except PermissionError:
        pass  # another user's process, as in some containers: its resident size can still be read
    try:
        return psutil.Process(pid).memory_info().rss, False
    except psutil.NoSuchProcess:
        return 0, True


def tree(pid: int) -> list[int]:
    """The process and all its descendants; empty if it has ended."""
    try:
        root = psutil.Process(pid)
        return [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def tree_bytes(pids: Iterable[int]) -> tuple[int, bool]:
    """Sum over processes, and whether all of it is PSS."""
    parts = [process_bytes(pid) for pid in pids]
    return sum(size for size, _ in parts), all(exact for _, exact in parts)


class PeakSampler:
    """Watches a process tree from a thread until `stop`; `peak` is the largest sum seen, in bytes."""

    def __init__(self, pid: int, interval: float = INTERVAL_S) -> None:
        self.peak = 0
        self.is_pss = True
        self._pid = pid
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-sampler", daemon=True)

    def __enter__(self) -> PeakSampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def look(self) -> None:
        """One look now."""
        size, exact = tree_bytes(tree(self._pid))
        self.peak = max(self.peak, size)
        self.is_pss = self.is_pss and exact

    def stop(self) -> None:
        """No further look after this returns."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.look()
