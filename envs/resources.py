"""What the machine says beside the pipeline's own counters: memory and CPUs that the job may use and uses.

Reads ``/proc`` and ``/sys``; elsewhere psutil, or NaN. Nothing is decided here.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from intune.pipelines.budget import Budget, Usable
from intune.pipelines.memory import resident_bytes

CHILDREN_EVERY = 8
"""Readings between two looks for child processes: the look costs more than all the rest, and they rarely change."""

MOST_CLOCKS = 8
"""Processors whose clock is read: they mostly run alike, and every one is a file."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """One reading.

    Attributes:
        cpu_s: processor seconds of this process and its children so far; NaN if unknown.
        resident: their resident bytes.
        cpus: CPUs that the job may use.
        memory_limit: bytes that it may hold altogether: what it holds, and what is still free to it; infinite where
            nothing limits it.
        clock: of the processors, as a share of their highest; NaN where it cannot be read.
        traffic: bytes moved between processor and memory so far; NaN where it cannot be read.
        idle_s: seconds so far that the processors this job may run on had nothing to do, summed over them; NaN where it
            cannot be read.
        delay_s: seconds so far that threads of this process and its children that could have worked waited for a
            processor, summed over the threads there are; NaN where it cannot be read.
    """

    cpu_s: float = math.nan
    resident: float = math.nan
    cpus: float
    memory_limit: float
    clock: float = math.nan
    traffic: float = math.nan
    idle_s: float = math.nan
    delay_s: float = math.nan


class ResourceReader:
    """Reads `Resources`; some 0.5 ms without child processes, of which two thirds go into limits (control groups).

    Args:
        budget: of the pipeline. Where it has fewer CPUs than the job at first, somebody wanted it so and it stays
            an upper limit; otherwise the CPUs follow the job's, up and down.
        children: whether to count child processes. Not those of Ray, which are counted by its workers' own clocks.
        root: where ``/proc`` and ``/sys`` are found.
        detect: what the job may use.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        children: bool = True,
        root: Path = Path("/"),
        detect: Callable[[], Usable] = Usable.detect,
    ) -> None:
        self._root = root
        self._detect = detect
        self._most = budget.cpus if budget.cpus < detect().cpus else None
        self._count_children = children
        self._children: tuple[psutil.Process, ...] = ()
        self._readings = 0

    def __call__(self) -> Resources:
        """Read all of it now."""
        usable = self._detect()
        cpu_s, resident = time.process_time(), float(resident_bytes(proc=self._root / "proc"))
        delay_s = read_delay("self", self._root)
        for child in self._find_children():
            try:
                times = child.cpu_times()
                resident += child.memory_info().rss
            except psutil.Error:
                self._readings = 0  # one has ended: look again next time
                continue
            cpu_s += times.user + times.system
            delay_s += read_delay(str(child.pid), self._root)
        return Resources(
            cpu_s=cpu_s,
            resident=resident,
            cpus=float(usable.cpus if self._most is None else min(self._most, usable.cpus)),
            memory_limit=min(float(usable.memory), resident + usable.memory_left),
            clock=read_clock(self._root),
            traffic=read_traffic(self._root),
            idle_s=read_idle(self._root),
            delay_s=delay_s,
        )

    def _find_children(self) -> tuple[psutil.Process, ...]:
        if self._count_children and self._readings % CHILDREN_EVERY == 0:
            # Only where this process has any at all is the costly look at all processes of the machine needed.
            self._children = tuple(psutil.Process().children(recursive=True)) if _has_children() else ()
        self._readings += 1
        return self._children


def read_clock(root: Path = Path("/")) -> float:
    """The processors' clock now as a share of their highest, on average; NaN where either cannot be read."""
    shares = []
    for number in range(min(os.cpu_count() or 1, MOST_CLOCKS)):
        folder = root / f"sys/devices/system/cpu/cpu{number}/cpufreq"
        now, most = _number(folder / "scaling_cur_freq"), _number(folder / "cpuinfo_max_freq")
        if now is None or most is None or most <= 0:
            break
        shares.append(min(now / most, 1.0))
    return sum(shares) / len(shares) if shares else math.nan


def read_traffic(root: Path = Path("/")) -> float:
    """Bytes between processors and memory since the system started; NaN where no counter is there.

    From the resource control file system (Linux, Documentation/arch/x86/resctrl.rst), where it is mounted.
    """
    folder = root / "sys/fs/resctrl/mon_data"
    if not folder.is_dir():
        return math.nan
    counts = [_number(path) for path in sorted(folder.glob("mon_L3_*/mbm_total_bytes"))]
    known = [count for count in counts if count is not None]
    return float(sum(known)) if known and len(known) == len(counts) else math.nan


def read_idle(root: Path = Path("/"), affinity: Callable[[], Collection[int]] | None = None) -> float:
    """Idle seconds so far of the processors this process may run on, waiting for disks included; NaN where unknown.

    Args:
        root: where ``/proc`` is found (proc_stat(5)).
        affinity: numbers of those processors; by default asked of the system.
    """
    try:
        mine = affinity() if affinity is not None else os.sched_getaffinity(0)
        lines = (root / "proc/stat").read_text(encoding="ascii").splitlines()
        tick = os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError):  # not Linux, or a container that hides it
        return math.nan
    ticks = 0.0
    found = 0
    for line in lines:
        name, _, rest = line.partition(" ")
        number = name.removeprefix("cpu")
        fields = rest.split()
        if number.isdecimal() and int(number) in mine and len(fields) >= 5 and name != number:
            ticks += float(fields[3]) + float(fields[4])
            found += 1
    return ticks / tick if found else math.nan


def read_delay(pid: str, root: Path = Path("/")) -> float:
    """Seconds so far that a process's threads waited for a processor; NaN where unknown.

    Args:
        pid: number of the process, or ``self``.
        root: where ``/proc`` is found (Linux, Documentation/scheduler/sched-stats.rst).
    """
    total = 0
    try:
        for thread in os.listdir(root / "proc" / pid / "task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                total += int((root / "proc" / pid / "task" / thread / "schedstat").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):  # not Linux, or a kernel without these counters
        return math.nan
    return total / 1e9


def _has_children() -> bool:
    """Whether this process has children, as far as that can be told cheaply (else True)."""
    threads = Path("/proc/self/task")
    try:
        for thread in threads.iterdir():
            if (thread / "children").read_bytes().strip():
                return True
    except OSError:
        return True
    return False


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
