"""A memory limit that kills: a control group of its own for a process tree, or a watchdog where there are none.

Control groups of version 1 or 2, whichever has the memory controller and may be written to.
Sources: Linux, Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from benchmarks.memory import tree, tree_bytes


class Limited(Protocol):
    """What holds a process tree to a limit."""

    kind: str

    def join(self) -> Callable[[], None]:
        """To be called in the child before it runs anything (``preexec_fn``)."""

    def watch(self, pid: int) -> None:
        """The child has started."""

    def used(self) -> int:
        """Bytes that it holds now."""

    def limit(self, size: int) -> bool:
        """Set the limit; False where the system refuses, since more is in use than can be given back."""

    def kills(self) -> int:
        """Processes killed for going beyond it."""

    def __enter__(self) -> Limited: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Names:
    """Files of a memory group."""

    limit: str
    used: str
    events: str
    swap: str


V1 = Names(
    limit="memory.limit_in_bytes",
    used="memory.usage_in_bytes",
    events="memory.oom_control",
    swap="memory.memsw.limit_in_bytes",
)
V2 = Names(limit="memory.max", used="memory.current", events="memory.events", swap="memory.swap.max")


class Group:
    """A control group as long as this context lasts; what is left in it at the end is killed."""

    def __init__(self, parent: Path, names: Names, name: str) -> None:
        self.kind = "control group v1" if names is V1 else "control group v2"
        self._folder = parent / name
        self._names = names

    def __enter__(self) -> Group:
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _ in range(50):
            pids = (self._folder / "cgroup.procs").read_text().split()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            try:
                self._folder.rmdir()
            except OSError:
                time.sleep(0.1)  # its last process is still ending
            else:
                return

    def join(self) -> Callable[[], None]:
        """Writes the child's own number into the group."""
        procs = str(self._folder / "cgroup.procs")

        def enter() -> None:
            with open(procs, "w") as file:
                file.write(str(os.getpid()))

        return enter

    def watch(self, pid: int) -> None:
        """The kernel does."""

    def used(self) -> int:
        """As the kernel counts, without file pages that it can give back at once."""
        inactive = read_events((self._folder / "memory.stat").read_text())
        cached = inactive.get("total_inactive_file", inactive.get("inactive_file", 0))
        return max(0, int((self._folder / self._names.used).read_text()) - cached)

    def limit(self, size: int) -> bool:
        try:
            (self._folder / self._names.limit).write_text(str(size))
        except OSError:
            return False
        with contextlib.suppress(OSError):  # swap is not counted everywhere
            (self._folder / self._names.swap).write_text(str(size if self._names is V1 else 0))
        return True

    def kills(self) -> int:
        return read_events((self._folder / self._names.events).read_text()).get("oom_kill", 0)


class Watchdog:
    """Kills a process tree that holds more than its limit, a look every 10 ms: what stands in for the kernel."""

    kind = "watchdog"

    def __init__(self) -> None:
        self._limit = 1 << 62
        self._pid = 0
        self._kills = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._kill()

    def join(self) -> Callable[[], None]:
        """Nothing to join."""
        return lambda: None

    def watch(self, pid: int) -> None:
        self._pid = pid
        self._thread.start()

    def used(self) -> int:
        """Its tree's proportional set."""
        return tree_bytes(tree(self._pid))[0]

    def limit(self, size: int) -> bool:
        self._limit = size
        return True

    def kills(self) -> int:
        return self._kills

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            if self.used() > self._limit:
                self._kills += 1
                self._kill()
                return

    def _kill(self) -> None:
        for pid in reversed(tree(self._pid) if self._pid else []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def limited(name: str, mounts: str | None = None) -> Limited:
    """A group called `name` where one can be made, else a watchdog.

    Args:
        name: of the group's folder.
        mounts: what ``/proc/mounts`` says.
    """
    for folder, names in places(Path("/proc/mounts").read_text() if mounts is None else mounts):
        trial = Group(folder, names, f"{name}-trial")
        try:
            with trial:
                trial.used()
                if trial.limit(1 << 40):
                    return Group(folder, names, name)
        except OSError:
            continue
    return Watchdog()


def places(mounts: str) -> list[tuple[Path, Names]]:
    """Mount points of memory controllers, version 1 first."""
    first, second = [], []
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) >= 4 and fields[2] == "cgroup" and "memory" in fields[3].split(","):
            first.append((Path(fields[1]), V1))
        elif len(fields) >= 4 and fields[2] == "cgroup2":
            second.append((Path(fields[1]), V2))
    return first + second


def read_events(text: str) -> dict[str, int]:
    """Lines of ``name number``."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdecimal():
            found[name] = int(value)
    return found
