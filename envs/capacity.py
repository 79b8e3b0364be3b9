"""What stages can do if nothing but their slots limited them, and how many of those are at work where fewer rows pass.
Pure.

Formulas and symbols are explained in `model`; "Service" there, and of the shared limits the knee.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intune.envs.conditions import Conditions
from intune.envs.jobs import Bools, Floats, Jobs
from intune.envs.prepared import LEAST_KNEE, TINY, Prepared

ROUNDS = 2
"""In which it is reckoned how many slots are at work where not all can be: each further one changes less."""


@dataclass(frozen=True, slots=True)
class Able:
    """What stages could do if nothing but their slots limited them.

    Attributes:
        capacity: ``[N, S]`` slots that work; at_once: those that contend with each other, 1 or more.
        cpu: ``[N, S]`` processor seconds per row; took: with waiting.
        rate: ``[N, S + 1]`` rows/s, the trainer's as well.
        room: ``[N, S]`` rows that the queue behind the stage may hold.
        eased: ``[N]`` what the knee leaves of the rates; cpus: of the processors.
    """

    capacity: Floats
    at_once: Floats
    cpu: Floats
    took: Floats
    rate: Floats
    room: Floats
    eased: Floats | float
    cpus: Floats


def service(
    cpu: Floats,
    wait: Floats,
    slots: Floats,
    contention: Floats,
    coherence: Floats,
    crowding: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Processor and waiting seconds per row with `slots` at work at once (Universal Scalability Law).

    Args:
        cpu, wait: seconds per row of one slot alone, ``[N, S]``.
        slots: at work at once, 1 or more.
        contention, coherence: sigma and kappa.
        crowding: see `Jobs`; None for none.
    """
    others = slots - 1.0
    alone = cpu + wait
    work = cpu + alone * (coherence * slots * others)
    if crowding is not None:
        work = work + cpu * (crowding * others)
    return work, wait + alone * (contention * others)


def able_of(
    prepared: Prepared,
    now: Conditions,
    slots: Floats,
    pool: Floats,
    pooled: Bools | None,
    running: Floats,
) -> Able:
    """What stages could do.

    Args:
        prepared, now: as of `model.advance`.
        slots: ``[N, S]`` that have joined.
        pool: ``[N]`` the same of those that all stages share; pooled: ``[N, 1]`` where they do, None if nowhere.
        running: ``[N, S]`` slots that were at work in the last interval: those of a pool contend as they did.
    """
    jobs, parts = prepared.jobs, prepared.parts
    if now.lost.any():
        slots = slots * (1.0 - now.lost)[:, None]
    capacity = np.minimum(slots, jobs.most_slots)
    np.maximum(capacity, TINY, out=capacity)
    at_once = np.maximum(capacity, 1.0)
    if pooled is not None:
        at_once = np.where(pooled, np.minimum(running, at_once), at_once)
    cpu, wait = now.cpu, now.wait
    if parts.scaling:
        cpu, wait = service(cpu, wait, at_once, jobs.contention, jobs.coherence, prepared.crowding)
    took = cpu + wait
    rate = np.empty((len(jobs), jobs.stages + 1), order="F")
    np.divide(capacity, took, out=rate[:, :-1])
    eased: Floats | float = 1.0
    cpus = now.cpus
    if parts.knee:
        needed = cpu
        if parts.scaling:
            needed, _ = as_few(prepared, now, rate[:, :-1].min(axis=1, keepdims=True), cpu, took, at_once)
        load = _load(jobs, now, rate[:, :-1], needed, took, pool)
        left = knee(load, jobs.knee)
        eased, cpus = np.where(load <= 1.0, left, 1.0), np.where(load > 1.0, left, 1.0) * cpus
        rate[:, :-1] *= eased[:, None]
        took = took / eased[:, None]
    if parts.storage:
        np.minimum(rate[:, :-1], prepared.storage_rate, out=rate[:, :-1])
    rate[:, -1] = prepared.step_rate
    room = prepared.queue_rows * at_once
    if parts.queue_limit:
        asked = np.add.reduce(room * jobs.row_bytes, axis=1)
        room *= np.minimum(1.0, jobs.queue_bytes / np.maximum(asked, TINY))[:, None]
    return Able(
        capacity=capacity, at_once=at_once, cpu=cpu, took=took, rate=rate, room=room, eased=eased, cpus=cpus
    )


def as_few(
    prepared: Prepared,
    now: Conditions,
    rate: Floats,
    cpu: Floats,
    took: Floats,
    at_once: Floats,
    eased: Floats | float = 1.0,
) -> tuple[Floats, Floats]:
    """Processor seconds per row, and with waiting, ``[N, S]``, where no more rows pass than `rate`.

    Slots without input, without room for their output or in a queue for storage contend with nobody: those at work
    are as many as the rows that pass take (Little's law), and the fewer they are the less each takes.

    Args:
        prepared, now: as of `advance`.
        rate: ``[N, S]`` rows/s at most.
        cpu, took: ``[N, S]`` seconds per row with `at_once` slots at work.
        at_once: ``[N, S]`` slots.
        eased: ``[N]``, see `Able`; `took` is that much longer.
    """
    jobs = prepared.jobs
    for _ in range(ROUNDS):
        running = np.minimum(np.maximum(rate * took, 1.0), at_once)
        cpu, wait = service(now.cpu, now.wait, running, jobs.contention, jobs.coherence, prepared.crowding)
        took = (cpu + wait) / np.reshape(eased, (-1, 1))
    return cpu, took


def _load(jobs: Jobs, now: Conditions, rate: Floats, cpu: Floats, took: Floats, pool: Floats) -> Floats:
    """``[N]`` what slots would take of the processors, of what there is; 0 of a pool that can never queue for them."""
    slots = rate.min(axis=1)
    shared = pool > 0
    if shared.any():
        slots = np.where(shared, np.minimum(slots, pool / np.add.reduce(took, axis=1)), slots)
        slots = np.where(shared & (pool <= now.cpus), 0.0, slots)
    return np.asarray(slots * (np.add.reduce(cpu, axis=1) + jobs.step_cpu) / now.cpus)


def knee(load: Floats, width: Floats) -> Floats:
    """Factor by which a rate is below the lesser of two limits, of which one is `load` times the other.

    A smooth minimum: ``(1 + load^p)^(-1/p)`` instead of ``1 / max(1, load)``, with ``p = 1 / width``.
    """
    low = np.minimum(load, 1.0 / np.maximum(load, TINY))
    # (low^p + 1)^(-1/p), without overflow; low is 0 to 1.
    return np.where(width > 0, (1.0 + low ** (1.0 / np.maximum(width, LEAST_KNEE))) ** -width, 1.0)
