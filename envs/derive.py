"""Values of a scenario that are stated relative to others, made absolute.

All arrays end in ``[…, N]``, N jobs, and are changed in place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from intune.envs import optimum
from intune.envs.jobs import slot_limit

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Named = dict[str, Floats]

NOISE_MARGIN = 4.0
"""Standard deviations of a working set's noise that `memory_floor` allows for: exceeded once in 30,000 intervals."""

TOUCH = 1.0 + 1e-9
"""Memory that just holds something is given this much more, lest rounding decides whether it does."""


def add_per_block(stage: Named, job: Named) -> None:
    """CPUs' speed, and what is stated per block, into what is stated per row."""
    stage["cpu"] /= job["speed"]
    stage["wait"] += stage["wait_per_block"] / stage["block_rows"]
    stage["storage_requests"] += stage["requests_per_block"] / stage["block_rows"]
    stage["slot_bytes"] += stage["slot_blocks"] * stage["block_rows"] * stage["row_bytes"]


def relate(stage: Named, present: Bools, job: Named, nodes: Named, event: Named) -> None:
    """Trainer, storage, network and memory from what the best rate takes; see `scenario_fields.JOB`."""
    relative = [name for name in job if name.endswith("_relative") and job[name].any()]
    if relative:
        work = _work(stage, present, job, nodes)
        rate = optimum.best_rate(work)
        rate = _limits(rate, stage, present, job, nodes)
        _replace(job, "step", job["step_relative"] / rate)
        if "memory_relative" in relative:
            _memory(work, np.minimum(rate, 1.0 / job["step"]), stage, job, nodes)
    if job["memory_floor"].any():
        nodes["memory"] = np.maximum(nodes["memory"], memory_floor(stage, job, nodes, event))


def _work(stage: Named, present: Bools, job: Named, nodes: Named) -> optimum.Work:
    cpus = nodes["cpus"].sum(axis=0)
    return optimum.Work(
        cpu=stage["cpu"], wait=stage["wait"], contention=stage["contention"], coherence=stage["coherence"],
        crowding=stage["crowding"], most_slots=stage["most_slots"], step_cpu=job["step_cpu"], cpus=cpus,
        # An absent stage has one slot in the sums of `optimum`, but takes none.
        slots=slot_limit(cpus, job["slots_per_cpu"], present.sum(axis=0)) + (~present).sum(axis=0),
    )  # fmt: skip


def _limits(rate: Floats, stage: Named, present: Bools, job: Named, nodes: Named) -> Floats:
    """Shared limits from multiples of what `rate` takes; the rate that they leave."""
    last = np.take_along_axis(stage["row_bytes"], present.sum(axis=0)[None] - 1, axis=0)[0]
    away = 1.0 - nodes["cpus"][0] / nodes["cpus"].sum(axis=0)
    uses = {
        "storage_bandwidth": stage["storage_bytes"].sum(axis=0),
        "storage_rate": stage["storage_requests"].sum(axis=0),
        "memory_bandwidth": stage["traffic"].sum(axis=0),
        "nic": away * last,
    }
    left = rate
    for name, use in uses.items():
        limits = {"nic": nodes["nic"][0], "nic_relative": job["nic_relative"]} if name == "nic" else job
        relative = limits[f"{name}_relative"]
        limit = np.where(relative > 0, np.where(use > 0, relative * rate * use, np.inf), limits[name])
        limits[name][:] = np.maximum(limit, 1e-9 if name == "storage_rate" else 1.0)
        left = np.minimum(left, limits[name] / np.maximum(use, 1e-30))
    return left


def _memory(work: optimum.Work, rate: Floats, stage: Named, job: Named, nodes: Named) -> None:
    """Memory as a multiple of what slots and queues take at `rate`, beside the base."""
    needed = optimum.slots_for(work, rate * (1.0 - 1e-9))
    slots = np.maximum(np.ceil(np.minimum(needed, work.slots) - 1e-9), 1.0)
    queued = np.minimum((slots * _queue_bytes(stage)).sum(axis=0), job["queue_bytes"])
    takes = (slots * stage["slot_bytes"]).sum(axis=0) + queued
    memory = nodes["cpus"] / nodes["cpus"].sum(axis=0) * (job["memory_relative"] * takes)
    memory[0] += job["base_bytes"]
    nodes["memory"] = np.where(job["memory_relative"] > 0, np.maximum(memory * TOUCH, 1.0), nodes["memory"])


def memory_floor(stage: Named, job: Named, nodes: Named, event: Named) -> Floats:
    """`memory_floor` times what one slot a stage with full queues takes of each node, at its smallest, ``[M, N]``."""
    noise = np.exp(NOISE_MARGIN * job["memory_noise"])
    takes = (stage["slot_bytes"] * noise + _queue_bytes(stage)).sum(axis=0)
    floor = nodes["cpus"] / nodes["cpus"].sum(axis=0) * takes
    floor[0] += job["base_bytes"]
    smallest = np.minimum(event["memory"].min(axis=0, initial=1.0), 1.0)
    result: Floats = floor * TOUCH * job["memory_floor"] / smallest
    return result


def _queue_bytes(stage: Named) -> Floats:
    return stage["queue_blocks"] * stage["block_rows"] * stage["row_bytes"]


def _replace(job: Named, name: str, value: Floats) -> None:
    job[name] = np.where(job[f"{name}_relative"] > 0, np.maximum(value, 1e-15), job[name])
