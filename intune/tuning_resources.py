"""What a tuned job may use: of what there is, the part of one of the ranks on this machine."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from intune.envs.resources import ResourceReader, Resources
from intune.pipelines.budget import DEFAULT_SHARE, Budget, Usable, affine_cpus
from intune.pipelines.executors.choice import choose, reach, usable_by
from intune.pipelines.whole import at_least

LAUNCHERS = ("SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
"""Where Slurm's srun, Open MPI and MPICH say how many of a job's processes there are on this machine."""


def budget_of(cpus: int | None, memory: int | str | None, options: Mapping[str, Any]) -> Budget:
    """A rank's part of what there is, where nothing is said.

    Args:
        cpus, memory: what is said.
        options: of the loader, of which the executor says whose CPUs they are.
    """
    executor = choose(options.get("executor", "auto"))
    ranks = ranks_here()
    reach(executor)
    world = max(at_least("world_size", options.get("world_size", 1), 1), ranks)
    usable = usable_by(executor, here=_sharing(), world=world) if cpus is None else usable_by(executor)
    return Budget.detect(cpus=cpus, memory=memory, share=DEFAULT_SHARE / ranks, usable=usable)


def _usable_part(executor: str | None, world: int) -> Usable:
    """A rank's part of what there is now: what is free may be taken by all of them at once."""
    ranks = ranks_here()
    usable = usable_by(executor, here=_sharing(), world=max(world, ranks))
    return replace(usable, memory_left=usable.memory_left // ranks)


def resources_of(inner: Any) -> Callable[[], Resources]:
    """What reads a loader's resources: its own method, or what looks at this machine."""
    own = getattr(inner, "resources", None)
    if callable(own):
        return own  # type: ignore[no-any-return]
    executor = getattr(inner, "executor", None)
    part = partial(_usable_part, executor, getattr(inner, "world_size", 1))
    # The workers of a Ray that this process started are its children, but their own clocks count them.
    return ResourceReader(inner.budget, children=executor != "ray", detect=part)


def ranks_here() -> int:
    """Trainers on this machine: ``LOCAL_WORLD_SIZE``, as torchrun, Accelerate and Ray Train set it, or what srun or
    mpirun say.

    Lightning only says how many there are in all, and which of those here this is, and `torch.multiprocessing.spawn`
    says nothing, so that the process group has to: then it is all of them, but no more than this machine has
    accelerators, where it has any.
    """
    for name in ("LOCAL_WORLD_SIZE", *LAUNCHERS):
        if local := _whole(name):
            return local
    world = _whole("WORLD_SIZE") if _whole("LOCAL_RANK") is not None else _spawned()
    if not world:
        return 1
    devices = torch.cuda.device_count() if (torch := sys.modules.get("torch")) is not None else 0
    return min(world, devices) if devices else world


def _spawned() -> int:
    """Ranks of the process group, where this is one of processes that a Python program began for it; else 0."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or multiprocessing.parent_process() is None:
        return 0
    begun = distributed.is_available() and distributed.is_initialized()
    world: int = distributed.get_world_size() if begun else 0
    return world


def _sharing() -> int:
    """Those that share the CPUs of this one: none but itself, where its launcher has bound each to its own."""
    ranks = ranks_here()
    launched = not _whole("LOCAL_WORLD_SIZE") and any(map(_whole, LAUNCHERS))
    return 1 if launched and ranks * affine_cpus() <= (os.cpu_count() or 1) else ranks


def _whole(name: str) -> int | None:
    """A number from the environment; of Slurm's one for every node, ``5,4(x3)``, the largest."""
    counts = [part.partition("(")[0] for part in os.environ.get(name, "").split(",")]
    return max(map(int, counts)) if all(map(str.isdecimal, counts)) else None
