"""What a simulated job settles at under an allocation, from the simulator's own parameters. For measuring only.

The fixed point of `envs.model.advance` under constant conditions, in closed form where stages have slots of their
own, by iteration where they share a pool. Agents other than the oracle never come here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from intune.envs.capacity import ROUNDS, knee, service
from intune.envs.jobs import Bools, Floats, Jobs, slot_limit
from intune.envs.model import ALL
from intune.envs.pools import pooled_peak
from intune.envs.prepared import TINY, prepare

SETTLING = 200
"""Intervals after which the slots at work of a shared pool are taken to have settled: near the size at which
contention runs away they grow slowly."""


@dataclass(frozen=True, slots=True)
class World:
    """N jobs under constant conditions: what a steady state depends on.

    Attributes:
        present: ``[N, S]``; cpu, wait: seconds per row; contention, coherence, crowding, most_slots: see `Jobs`.
        slot_bytes: ``[N, S]`` working set to reckon with, margin included; queue_bytes: of a slot's full queue.
        storage_rate: ``[N, S]`` rows/s that storage has for each stage; memory_rate: ``[N]`` that memory has for all.
        uses_traffic: ``[N, S]``; memory_limited: ``[N]`` whether its bandwidth is.
        step_rate: ``[N]`` rows/s that the trainer takes at most, and that reach it; step_cpu: processor seconds of one.
        cpus: ``[N]``; oversubscription, switching, knee: see `Jobs`.
        slots: ``[N]`` that may be given out.
        room: ``[N]`` bytes that working sets and queues may take: of the tightest node, as if it were all of them.
        all_queues: ``[N]`` bytes that queues may hold.
    """

    present: Bools
    cpu: Floats
    wait: Floats
    contention: Floats
    coherence: Floats
    crowding: Floats
    most_slots: Floats
    slot_bytes: Floats
    queue_bytes: Floats
    storage_rate: Floats
    memory_rate: Floats
    uses_traffic: Bools
    memory_limited: Bools
    step_rate: Floats
    step_cpu: Floats
    cpus: Floats
    oversubscription: Floats
    switching: Floats
    knee: Floats
    slots: Floats
    room: Floats
    all_queues: Floats

    def __len__(self) -> int:
        return len(self.present)

    def rows(self, rows: Any) -> World:
        """The jobs at `rows`, in their order, again where they are named again."""
        return World(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def world(jobs: Jobs, *, cpus: Any = 1.0, memory: Any = 1.0, slower: Any = 1.0, margin: float = 0.0) -> World:
    """Jobs under constant conditions.

    Args:
        jobs: N jobs.
        cpus, memory: ``[N]`` or one for all: multiples of CPUs and memory at first, as of a resize.
        slower: ``[N, S]`` or one for all: multiple of all times per row, as of drift.
        margin: standard deviations of the working sets' noise to reckon with on top of their mean.
    """
    count = len(jobs)
    prepared = prepare(jobs)
    share = prepared.share
    there = np.maximum(np.floor(jobs.cpus.sum(axis=1) * cpus + 1e-9), 1.0)
    skew = np.exp(margin * jobs.memory_noise)[:, None]
    free = jobs.memory * np.broadcast_to(np.asarray(memory, dtype=np.float64), (count,))[:, None]
    free[:, 0] -= jobs.base_bytes
    room = np.where(share > 0, free / np.where(share > 0, share, 1.0), np.inf).min(axis=1)
    return World(
        present=jobs.present,
        cpu=jobs.cpu * slower,
        wait=jobs.wait * slower,
        contention=jobs.contention,
        coherence=jobs.coherence,
        crowding=jobs.crowding,
        most_slots=jobs.most_slots,
        slot_bytes=jobs.slot_bytes * skew,
        queue_bytes=jobs.queue_blocks * jobs.block_rows * jobs.row_bytes,
        storage_rate=prepared.storage_rate,
        memory_rate=jobs.memory_bandwidth / np.maximum(jobs.traffic.sum(axis=1), TINY),
        uses_traffic=prepared.uses_traffic,
        memory_limited=np.isfinite(jobs.memory_bandwidth),
        step_rate=prepared.step_rate,
        step_cpu=jobs.step_cpu,
        cpus=there,
        oversubscription=jobs.oversubscription,
        switching=jobs.switching,
        knee=jobs.knee,
        slots=slot_limit(there, jobs.slots_per_cpu, jobs.present.sum(axis=1)).astype(np.float64),
        room=room,
        all_queues=jobs.queue_bytes,
    )


def capacity(world: World, slots: Floats) -> Floats:
    """``[N, S]`` rows/s that each stage would make if it were always at work; inf for absent stages."""
    used = np.minimum(slots, world.most_slots)
    at_once = np.maximum(used, 1.0)
    cpu, wait = service(world.cpu, world.wait, at_once, world.contention, world.coherence, world.crowding)
    return np.where(world.present, used / np.maximum(cpu + wait, TINY), np.inf)


def rate_of_stages(world: World, slots: Floats) -> Floats:
    """``[N]`` rows/s delivered in the steady state with slots of their own for all stages.

    All flows are equal then: the least of the stages', the storage's, the network's and the trainer's, slowed down
    where memory bandwidth or processors are short.
    """
    used = np.maximum(np.minimum(slots, world.most_slots), 1.0)
    cpu, wait = service(world.cpu, world.wait, used, world.contention, world.coherence, world.crowding)
    took = cpu + wait
    able = capacity(world, slots).min(axis=1)
    eased, there = _knee(world, able * _work(world, _as_few(world, able, took, used)) / world.cpus)
    wished = np.minimum(np.minimum(able * eased, world.storage_rate.min(axis=1)), world.step_rate)
    flow = np.minimum(wished, world.memory_rate)
    work = _work(world, _as_few(world, wished, took / eased[:, None], used, eased[:, None]))
    return np.asarray(flow * _of_cpus(world, flow * work / there) / _switched(world, wished * work))


def memory_of_stages(world: World, slots: Floats) -> Floats:
    """``[N]`` bytes of working sets and queues, if all queues are full. To be compared with `World.room`."""
    queued = world.queue_bytes * np.maximum(np.minimum(slots, world.most_slots), 1.0) * world.present
    held = np.where(world.present, slots * world.slot_bytes, 0.0).sum(axis=1)
    return np.asarray(held + np.minimum(queued.sum(axis=1), world.all_queues))


def pooled(world: World, pool: Floats, *, settling: int = SETTLING) -> tuple[Floats, Floats]:
    """Rows/s delivered, and bytes of working sets and full queues, both ``[N]``, of a pool of slots for all stages.

    How many slots of a stage are at work decides how long its rows take, and these how many are at work: the
    fixed point is reached as the simulated job reaches it, from one slot a stage. Where the two swing about it
    instead, the rate is the mean of two intervals, the memory the larger.
    """
    most = np.minimum(pool[:, None], world.most_slots)
    running = np.ones(world.present.shape)
    rate = np.zeros(len(world))
    rate_before, at_work = rate, np.zeros_like(running)
    at_work_before = at_work
    for _ in range(settling):
        at_work_before, rate_before = at_work, rate
        at_once = np.maximum(np.minimum(running, most), 1.0)
        cpu, wait = service(world.cpu, world.wait, at_once, world.contention, world.coherence, world.crowding)
        took = np.where(world.present, cpu + wait, 0.0)
        alone = np.where(world.present, most / np.maximum(took, TINY), np.inf).min(axis=1)
        able = np.minimum(alone, pool / np.maximum(took.sum(axis=1), TINY))
        eased, there = _knee(world, np.where(pool <= world.cpus, 0.0, able * _work(world, cpu) / world.cpus))
        cpu, wait = _served(world, at_once, cpu + wait)
        took = np.where(world.present, cpu + wait, 0.0) / eased[:, None]
        able = np.minimum(alone * eased, pool / np.maximum(took.sum(axis=1), TINY))
        wished = np.minimum(np.minimum(able, world.storage_rate.min(axis=1)), world.step_rate)
        work = _work(world, cpu)
        flow = np.minimum(wished, world.memory_rate)
        of_cpus = _of_cpus(world, flow * work / there)
        lost = _switched(world, wished * work)
        rate = flow * of_cpus / lost
        stalled = np.where(world.uses_traffic, (flow / wished)[:, None], 1.0)
        longer = took + cpu * ((lost / of_cpus)[:, None] / stalled - 1.0)
        now = np.minimum(np.maximum(rate[:, None] * longer, 1.0), at_once)
        cpu, wait = service(world.cpu, world.wait, now, world.contention, world.coherence, world.crowding)
        used = (rate * lost)[:, None] * cpu / stalled * world.present
        busy = used / (of_cpus * eased)[:, None] + rate[:, None] * wait
        busy = np.where(world.present, np.minimum(busy, most), 0.0)
        # Slots that nothing but storage keeps from more queue for it.
        full = wished[:, None] >= world.storage_rate * ALL
        left = np.maximum(pool - busy.sum(axis=1), 0.0) * (rate / wished) / np.maximum(full.sum(axis=1), 1)
        at_work = np.minimum(busy + full * left[:, None], most)
        running = np.maximum(at_work, 1.0)
    at_work = np.maximum(at_work, at_work_before)
    held = pooled_peak(at_work, pool, world.slot_bytes)
    queued = (world.queue_bytes * np.maximum(at_work, 1.0) * world.present).sum(axis=1)
    return 0.5 * (rate + rate_before), (held * world.slot_bytes).sum(axis=1) + np.minimum(
        queued, world.all_queues
    )


def _work(world: World, cpu: Floats) -> Floats:
    """``[N]`` processor seconds per row of all stages and the trainer."""
    return np.asarray(np.where(world.present, cpu, 0.0).sum(axis=1) + world.step_cpu)


def _as_few(world: World, rate: Floats, took: Floats, at_once: Floats, eased: Floats | float = 1.0) -> Floats:
    """``[N, S]`` processor seconds per row where `rate` rows/s pass: as `envs.model` reckons them."""
    cpu = world.cpu
    for _ in range(ROUNDS):
        running = np.minimum(np.maximum(rate[:, None] * took, 1.0), at_once)
        cpu, wait = service(world.cpu, world.wait, running, world.contention, world.coherence, world.crowding)
        took = (cpu + wait) / eased
    return cpu


def _served(world: World, at_once: Floats, took: Floats) -> tuple[Floats, Floats]:
    """`service` of slots of which `took` seconds per row are known, without those that queue for storage."""
    served = np.minimum(np.maximum(world.storage_rate * took, 1.0), at_once)
    return service(world.cpu, world.wait, served, world.contention, world.coherence, world.crowding)


def _of_cpus(world: World, load: Floats) -> Floats:
    excess = np.maximum(load - 1.0, 0.0)
    slowed: Floats = 1.0 / (np.maximum(load, 1.0) * (1.0 + world.oversubscription * excess))
    return slowed


def _knee(world: World, load: Floats) -> tuple[Floats, Floats]:
    """``[N]`` what the knee leaves of the stages' rates where slots are the limit, and the processors it leaves where
    those are."""
    left = knee(load, world.knee)
    return np.where(load <= 1.0, left, 1.0), world.cpus * np.where(load > 1.0, left, 1.0)


def _switched(world: World, at_work: Floats) -> Floats:
    """Factor by which all is slower where `at_work` slots would use a processor, more than there are."""
    slower: Floats = 1.0 + world.switching * np.maximum(at_work - world.cpus, 0.0)
    return slower
