"""`Budget`: CPUs and bytes a pipeline may use, by default a share of what this job may really use."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from intune.pipelines import cgroup
from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least, whole

logger = logging.getLogger("intune")

DEFAULT_SHARE = 0.25
"""Part of the memory still free that a pipeline holds unless told otherwise. A loader works beside a trainer
whose tables, optimiser state and activations are not there yet when it is made; with a quarter it never is
what ends the job, and a quarter of even a small machine holds dozens of row groups."""

LEAST_MEMORY = 1 << 20
"""No useful block fits less; such a number is most likely meant in another unit."""

_ray_is_inherited = False

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


@dataclass(frozen=True, kw_only=True)
class Usable:
    """What this job may use, read from the system.

    Attributes:
        cpus: whole CPUs, at least 1.
        memory: bytes that this job may hold altogether: above it, it is killed.
        memory_left: bytes of those that are not taken yet.
    """

    cpus: int
    memory: int
    memory_left: int

    @classmethod
    def detect(
        cls,
        *,
        root: Path = Path("/"),
        machine: Callable[[], tuple[int, int]] | None = None,
        affinity: Callable[[], int] | None = None,
        modules: Mapping[str, Any] | None = None,
    ) -> Usable:
        """Read control groups (v1 and v2, every level), CPU affinity, free memory, and Ray where it runs.

        A CPU quota is rounded down, since a group that exceeds it stands still, trainer and all, until the next
        period. Where this process is connected to Ray, Ray's CPUs count: no more than those on one node, and
        all of a cluster's where it has several. Memory is that of this machine, since every block may end in
        the trainer's process; Ray's own allowance caps it where Ray runs on this node alone.

        Args:
            root: where ``/proc`` and ``/sys`` are found.
            machine: bytes of memory in all and available; by default asked of psutil.
            affinity: number of CPUs this process may run on; by default asked of the system.
            modules: where an imported Ray is found; by default ``sys.modules`` (Ray is never imported here).
        """
        limits = cgroup.read_limits(root)
        total, available = (machine or _machine)()
        cpus = (affinity or affine_cpus)()
        if limits.cpus is not None:
            cpus = min(cpus, int(limits.cpus))
        memory = total if limits.memory is None else min(total, limits.memory)
        left = available if limits.memory_left is None else min(available, limits.memory_left)
        ray = _ray((sys.modules if modules is None else modules).get("ray"))
        if ray is not None:
            cpus = min(cpus, ray.cpus) if ray.nodes == 1 else ray.cpus
            left = min(left, ray.memory) if ray.nodes == 1 and ray.memory else left
        return cls(cpus=max(1, cpus), memory=memory, memory_left=min(left, memory))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a pipeline may use.

    Attributes:
        cpus: CPUs its workers may keep busy.
        memory: bytes its blocks may hold together. Enforced by admission, whatever is asked of the pipeline.

    Raises:
        ConfigError: `cpus` below 1, `memory` below 1 MiB, or either no whole number.
    """

    cpus: int
    memory: int

    def __post_init__(self) -> None:
        cpus = at_least("cpus", self.cpus, 1, "give the number of CPUs the pipeline may keep busy")
        remedy = "these are bytes; Budget.detect, tune and the command line also take text such as '24GiB'"
        memory = at_least("memory", self.memory, LEAST_MEMORY, remedy)
        object.__setattr__(self, "cpus", cpus)
        object.__setattr__(self, "memory", memory)

    @classmethod
    def detect(
        cls,
        *,
        cpus: int | None = None,
        memory: int | str | None = None,
        share: float = DEFAULT_SHARE,
        usable: Usable | None = None,
    ) -> Budget:
        """A budget that this job can keep to: what is given, and for the rest what the job may really use.

        Args:
            cpus: CPUs; by default all that the job may use (see `Usable.detect`).
            memory: bytes, or text as ``"24GiB"``; by default `share` of the memory still free.
            share: above 0, at most 1.
            usable: what the job may use; by default read from the system.

        Raises:
            ConfigError: a value that makes no sense, or more memory than the job may hold at all: it would be
                killed. More than is free just now, or more CPUs than the job has, is only warned about, since
                others may give back memory and tasks that wait for storage need no CPU.
        """
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ConfigError(f"`share`={share!r} must be above 0 and at most 1, the part of the free memory")
        usable = usable if usable is not None else Usable.detect()
        default = max(LEAST_MEMORY, int(usable.memory_left * share))
        budget = cls(
            cpus=usable.cpus if cpus is None else cpus,
            memory=default if memory is None else parse_bytes(memory),
        )
        budget.check(usable)
        return budget

    def check(self, usable: Usable | None = None) -> None:
        """Compare with what the job may use; see `detect` for what is an error and what a warning.

        Raises:
            ConfigError: `memory` is more than this job may hold.
        """
        usable = usable if usable is not None else Usable.detect()
        if self.memory > usable.memory:
            raise ConfigError(
                f"`memory`={format_bytes(self.memory)} is more than the {format_bytes(usable.memory)} this job "
                "may hold (limit of its control group, or the machine's memory); it would be killed: give less"
            )
        if self.memory > usable.memory_left:
            logger.warning(
                "`memory`=%s is more than the %s free at present; the job may be killed if nothing is given back",
                format_bytes(self.memory),
                format_bytes(usable.memory_left),
            )
        if self.cpus > usable.cpus:
            logger.warning("`cpus`=%d, but this job may use %d; they will be shared", self.cpus, usable.cpus)


def parse_bytes(value: int | float | str, name: str = "memory") -> int:
    """A number of bytes from what a person writes.

    ``"24GiB"`` and ``"24Gi"`` count in powers of 1024; ``"24GB"``, ``"24G"`` and so on in powers of 1000, as SI
    and Kubernetes have it; a bare number is bytes. Case and blanks do not matter; ``"1.5GiB"`` is allowed.

    Args:
        value: text or a number.
        name: of the argument, for the message.

    Raises:
        ConfigError: not a number of bytes above 0.
    """
    bytes_ = 0
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([KMGTP]?)(I?)B?\s*", value.upper())
        if match is not None and (match[2] or not match[3]):
            unit = (1024 if match[3] else 1000) ** _UNITS[match[2]]
            bytes_ = int(match[1]) * unit if match[1].isdecimal() else int(float(match[1]) * unit)
    elif isinstance(value, float):
        bytes_ = int(value) if math.isfinite(value) else 0
    else:
        bytes_ = whole(value) or 0
    if bytes_ <= 0:
        raise ConfigError(
            f"`{name}`={value!r} is no amount of memory; give bytes above 0 as a number, or text such as '24GiB' or "
            "'512MB'"
        )
    return bytes_


def format_bytes(count: float) -> str:
    """Bytes for a person: three digits and the largest binary unit that leaves 1 or more (``"1.50 GiB"``)."""
    size = abs(count)
    if size < 1023.5:
        return f"{count:.0f} B"
    units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    at = 0
    # 1023.5 and above would be shown as 1024 of the smaller unit.
    while size >= 1023.5 and at < len(units) - 1:
        size /= 1024
        at += 1
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{'-' if count < 0 else ''}{size:.{digits}f} {units[at]}"


def _machine() -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def affine_cpus() -> int:
    """Processors that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity to ask for
        return os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class _Ray:
    nodes: int
    cpus: int
    memory: int


def connected(ray: Any) -> bool:
    """Whether this process has a connection to Ray, where that is imported (else it is None), that it can use."""
    return hasattr(ray, "is_initialized") and bool(ray.is_initialized()) and not _ray_is_inherited


def ray_is_inherited() -> bool:
    """Whether this process is the fork of one that was connected to Ray: it has none of the threads that serve the
    connection, and would wait for ever for an answer, that to `ray.shutdown` too."""
    return _ray_is_inherited


def _after_fork() -> None:
    global _ray_is_inherited
    _ray_is_inherited = _ray_is_inherited or connected(sys.modules.get("ray"))


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def _ray(module: Any) -> _Ray | None:
    """What a connected Ray offers; None where it is not imported, not connected, or without CPUs."""
    if not connected(module):
        return None
    resources = module.cluster_resources()
    cpus = int(resources.get("CPU", 0))
    if cpus < 1:
        return None
    nodes = sum(bool(node.get("Alive")) for node in module.nodes())
    memory = int(resources.get("memory", 0)) + int(resources.get("object_store_memory", 0))
    return _Ray(nodes=max(1, nodes), cpus=cpus, memory=memory)
