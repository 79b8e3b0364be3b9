"""What Linux control groups allow this process: memory and CPU time, of cgroup v1, v2 and hosts that mix them.

Only reading and parsing. What follows from the numbers is decided in `budget.py`. Every path is taken below a
`root`, so that a copy of another machine's ``/proc`` and ``/sys`` can be read as well.

Sources: Linux, Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst; proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNLIMITED = 1 << 60
"""cgroup v1 says "no limit" by a number near 2**63, rounded to pages; no machine has an exbibyte."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The tightest limits over a process's own group and all those above it.

    Attributes:
        memory: bytes that the group may hold before it is killed or throttled; None where nothing limits it.
        memory_left: bytes that may still be taken before one of the limits is reached, which may be that of
            another group than `memory`; None where nothing limits it.
        cpus: CPU seconds per second (a fraction is possible); None where nothing limits it.
    """

    memory: int | None = None
    memory_left: int | None = None
    cpus: float | None = None


def read_limits(root: Path = Path("/")) -> Limits:
    """The limits of this process; all None where there are no control groups, or none that can be read."""
    memory: list[tuple[int, int]] = []
    cpus: list[float] = []
    for controller, version, folder in groups(root):
        if controller == "memory":
            limits, used, kept = _memory(version, folder)
            # File pages not used lately are given back at once under pressure and so do not count as used: the working
            # set as Kubernetes defines it.
            memory.extend((limit, max(0, used - kept.get("inactive_file", 0))) for limit in limits)
        else:
            quota = _cpus_v2(folder) if version == 2 else _cpus_v1(folder)
            cpus.extend([] if quota is None else [quota])
    return Limits(
        memory=min((limit for limit, _ in memory), default=None),
        memory_left=min((max(0, limit - used) for limit, used in memory), default=None),
        cpus=min(cpus, default=None),
    )


class MemoryGauge:
    """Memory that this process's groups, and the machine, may still take before something is killed.

    Unlike `read_limits` no file pages count as used, nor, where version 2 tells it, what can be reclaimed of the
    kernel's own (names and inodes, of a data set of millions of files), since the kernel drops all of that before it
    kills; and the groups are looked for once, so that a look is cheap.

    Args:
        root: where ``/proc`` and ``/sys`` are found.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._meminfo = root / "proc/meminfo"
        self._folders = [(version, folder) for name, version, folder in groups(root) if name == "memory"]

    def read(self) -> tuple[int, int] | None:
        """Bytes that may be held, and how many of those are left, where the least are; None where nobody knows."""
        found = [each for version, folder in self._folders if (each := _room(version, folder)) is not None]
        machine = _meminfo(self._meminfo)
        if machine is not None:
            found.append(machine)
        return min(found, key=lambda each: each[1], default=None)


def _room(version: int, folder: Path) -> tuple[int, int] | None:
    """The limit of a group, those below it included, and what is left of it; None if it has none."""
    limits, used, kept = _memory(version, folder)
    if not limits:
        return None
    dropped = sum(kept.get(name, 0) for name in ("inactive_file", "active_file", "slab_reclaimable"))
    limit = min(limits)
    return limit, max(0, limit - max(0, used - dropped))


def _memory(version: int, folder: Path) -> tuple[list[int], int, dict[str, int]]:
    """Limits of a group, those below it included; if it has some, bytes that it uses and what they are, by name."""
    # Above `high` a group is not killed but throttled until it hardly moves: as bad for a job.
    names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    limits = [limit for name in names if (limit := _number(folder / name)) is not None and limit < UNLIMITED]
    if not limits:
        return [], 0, {}
    used = _number(folder / ("memory.current" if version == 2 else "memory.usage_in_bytes")) or 0
    prefix = "" if version == 2 else "total_"
    counts = _counts(folder / "memory.stat").items()
    return limits, used, {n.removeprefix(prefix): count for n, count in counts if n.startswith(prefix)}


def _meminfo(path: Path) -> tuple[int, int] | None:
    """Bytes of memory in all and available (proc_meminfo(5))."""
    known: dict[str, int] = {}
    for line in _lines(path)[:3]:
        name, _, value = line.partition(":")
        number = value.strip().removesuffix("kB").strip()
        if number.isdecimal():
            known[name] = int(number) * 1024
    if "MemTotal" not in known or "MemAvailable" not in known:
        return None
    return known["MemTotal"], known["MemAvailable"]


def groups(root: Path) -> Iterator[tuple[str, int, Path]]:
    """(controller, version, folder) of this process's groups, its own first, then each above it."""
    mounts = _mounts(root)
    for line in _lines(root / "proc/self/cgroup"):
        _, colon, rest = line.partition(":")
        names, second, path = rest.partition(":")
        if not colon or not second or not path.startswith("/"):
            continue
        if names == "":
            controllers, version, mount = ["memory", "cpu"], 2, mounts.get("unified")
        else:
            controllers, version = [name for name in names.split(",") if name in ("memory", "cpu")], 1
            mount = mounts.get(controllers[0]) if controllers else None
        if mount is None:
            continue
        for folder in _upwards(root, mount, path):
            for controller in controllers:
                yield controller, version, folder


def _mounts(root: Path) -> dict[str, tuple[str, str]]:
    """(mount point, the group shown there) of each v1 controller, and of v2 under ``"unified"``."""
    found: dict[str, tuple[str, str]] = {}
    for line in _lines(root / "proc/self/mountinfo"):
        left, dash, right = line.partition(" - ")
        place, kind = left.split(" "), right.split(" ")
        if not dash or len(place) < 5 or len(kind) < 3:
            continue
        shown, point = _unescape(place[3]), _unescape(place[4])
        if kind[0] == "cgroup2":
            found.setdefault("unified", (point, shown))
        elif kind[0] == "cgroup":
            for option in kind[2].split(","):
                found.setdefault(option, (point, shown))
    return found


def _unescape(text: str) -> str:
    """The kernel writes blanks in paths as octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _upwards(root: Path, mount: tuple[str, str], path: str) -> Iterator[Path]:
    """Folders from a group up to the mount point.

    In a container the group's path may be that of the host while only the container's part is mounted, or the
    whole path may be hidden by a namespace (then it holds ``..``); what is not there is passed over, so that at
    least the mount point itself is read.
    """
    point, shown = mount
    try:
        below = PurePosixPath(path).relative_to(shown)
    except ValueError:
        below = PurePosixPath(path.lstrip("/"))
    base = root / point.lstrip("/")
    if ".." not in below.parts:
        for part in [below, *below.parents]:
            if part.parts and os.path.isdir(base / part):  # False also where it may not be looked at
                yield base / part
    yield base


def _counts(path: Path) -> dict[str, int]:
    """A file of ``name number`` lines; empty if there is none."""
    parts = (line.partition(" ") for line in _lines(path))
    return {name: int(value) for name, _, value in parts if value.isdecimal()}


def _cpus_v1(folder: Path) -> float | None:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _cpus_v2(folder: Path) -> float | None:
    quota, _, period = next(iter(_lines(folder / "cpu.max")), "").strip().partition(" ")
    if not quota.isdecimal() or not period.isdecimal() or int(quota) == 0 or int(period) == 0:
        return None
    return int(quota) / int(period)


def _number(path: Path) -> int | None:
    """The number a file holds; None for ``max``, -1, anything else, or no file."""
    text = next(iter(_lines(path)), "").strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    """Lines of a file, none if it cannot be read: controllers come and go, and containers hide some."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
