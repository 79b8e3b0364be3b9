"""Which executor runs a pipeline: by name, what it may use, its workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from intune.pipelines.budget import Budget, Usable, connected
from intune.pipelines.errors import ConfigError
from intune.pipelines.reading.files import OpenFiles
from intune.pipelines.run import Run
from intune.pipelines.stages import Map


class Fleet(Protocol):
    """Workers that run tasks; what an executor is to the loader."""

    chunk_rows: int

    @property
    def workers_lost(self) -> int:
        """Worker processes that died."""

    def default_slots(self, budget: Budget) -> int:
        """Tasks to run at once where nobody says how many."""

    def start(self, run: Run, threads: int) -> None:
        """Work on a run."""

    def resize(self, threads: int, processes: int | None = None) -> None:
        """Be able to run `threads` tasks at once, of which `processes` at most are in processes of their own."""

    def stop(self, run: Run | None = None) -> None:
        """Leave the run under way, if it is `run` or none is named."""

    def close(self) -> list[str]:
        """End all workers; names of those that could not be ended."""

    def pids(self) -> list[int]:
        """Worker processes, beside this one."""


def make_fleet(executor: str, maps: Sequence[Map], budget: Budget, files: OpenFiles | None) -> Fleet:
    """The workers of an executor.

    Args:
        executor: ``"threads"`` or ``"ray"``.
        maps: functions of the pipeline; some may want processes.
        budget: what they may use.
        files: open files for threads to share.
    """
    if executor == "ray":
        from intune.pipelines.executors.ray import RayFleet

        return RayFleet(budget)
    from intune.pipelines.executors.processes import process_pool
    from intune.pipelines.executors.threads import ThreadFleet

    return ThreadFleet(processes=process_pool(maps), files=files, budget=budget)


def choose(executor: str) -> str:
    """The executor that a name means: ``"auto"`` is Ray where this process is connected to a cluster, or
    ``RAY_ADDRESS`` names one; else threads."""
    if executor in ("threads", "ray"):
        return executor
    if executor != "auto":
        raise ConfigError(f"`executor`={executor!r} is unknown; use 'auto', 'threads' or 'ray'")
    return "ray" if _connected() or os.environ.get("RAY_ADDRESS") else "threads"


def budget_for(executor: str, given: Budget | None = None, world_size: int = 1) -> Budget:
    """What a trainer's pipeline may use: what is given, else see `usable_by`."""
    if given is None:
        reach(executor)
        return Budget.detect(usable=usable_by(executor, world=world_size))
    if not isinstance(given, Budget):
        raise ConfigError(
            f"`budget` must be a Budget, but {type(given).__name__} was given; "
            "write Budget.detect(cpus=…, memory='4GiB')"
        )
    return given


def reach(executor: str) -> None:
    """Connect to Ray where it is to run the pipeline and there is a cluster: what may be used is the cluster's then."""
    if executor == "ray":
        from intune.pipelines.executors.ray_cluster import attach

        attach()


def usable_by(executor: str | None, *, here: int = 1, world: int = 1) -> Usable:
    """What one of several trainers may use. Memory is this machine's and is not divided.

    Args:
        executor: with threads CPUs are this machine's alone, wherever else a Ray that is connected has some; on Ray
            they are those free in the placement group that this process starts things in, else the cluster's, but for
            those that the trainers hold. None for something else, which may well run
            there too.
        here: trainers on this machine, each of which gets the same part of its CPUs.
        world: trainers altogether, each of which gets the same part of a cluster's.
    """
    usable = Usable.detect(modules={}) if executor == "threads" else Usable.detect()
    of_cluster = executor == "ray" and _connected()
    if of_cluster and (reserved := _reserved()):
        return replace(usable, cpus=max(1, reserved // world))
    parts, held = (world, world * _held()) if of_cluster else (here, 0.0)
    return replace(usable, cpus=max(1, int(usable.cpus - held) // parts))


def _connected() -> bool:
    """Whether this process is connected to a Ray cluster."""
    return connected(sys.modules.get("ray"))


def _reserved() -> int:
    """CPUs free in the placement group where this process, a trial of Ray Tune say, has what it starts run."""
    from intune.pipelines.executors.ray_cluster import capturing_group, free_cpus

    ray = sys.modules["ray"]
    group = capturing_group(ray)
    return 0 if group is None else free_cpus(ray, group)


def _held() -> float:
    """CPUs of the cluster that this process has to itself, as a worker of Ray Train does; the other ranks have as many.
    Without them the last rank would find none free."""
    ray = sys.modules["ray"]
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return 0.0  # the cluster's driver, which holds none, or a client
    return float(context.get_assigned_resources().get("CPU", 0.0))
