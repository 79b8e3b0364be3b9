"""Physics of input pipelines on a cluster: N jobs advance by one interval, in vectorised NumPy. Pure.

A job is a line of stages with a bounded queue behind each; the trainer takes from the last one. Rows are a
fluid: over an interval every stage has a constant service rate, and how many rows pass each stage is then
known in closed form. Symbols: N jobs, S stages, M nodes; the trainer is column S of arrays of width S + 1.

1. *Service.* A slot works ``cpu`` seconds and waits ``wait`` seconds a row. With n slots at once, contention
   sigma and coherence kappa (Universal Scalability Law; Gunther 2007, "Guerrilla Capacity Planning", ch. 4)
   make that ``(cpu + wait) (1 + sigma (n - 1) + kappa n (n - 1))``: sigma's part is waiting, kappa's is work.
   Capacity of a stage: ``n /`` that.
2. *Flow.* Cumulative rows ``D_i(t) = min over j of (rate_j t + rows between j and i)``, where "between" are the
   rows queued if j is upstream, the free places if j is downstream: fluid tandem queues with finite buffers are
   a min-plus linear system (Le Boudec and Thiran 2001, "Network Calculus", ch. 3 and 4.4). Exact for constant
   rates; which j attains the minimum says who starves or blocks i.
3. *Shared limits.* What all stages together take of processors, storage (bytes and requests), memory
   bandwidth, network and, where slots are pooled, of slots, is bounded by what there is (utilisation law;
   Denning and Buzen 1978). Where a bound is exceeded all flows of the interval slow down by the same factor,
   as under processor sharing. Demand beyond the processors costs ``oversubscription`` on top.
4. *Memory.* Resident bytes = base + slots x working set + rows queued; nodes carry it in proportion to their
   CPUs. Above a node's memory the job is killed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from intune.envs.jobs import Bools, Floats, Jobs

TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the world does to the jobs in one interval; an agent has no say in it.

    Attributes:
        cpu, wait: ``[N, S]`` seconds per row of processor and of waiting, disturbances included.
        lost: ``[N, S]`` share of the stage's slots that is missing.
        slot_bytes: ``[N, S]`` working set of a slot.
        cpus: ``[N]`` CPUs there are; nodes in proportion.
        memory: ``[N]`` memory as a multiple of the nodes' at first.
    """

    cpu: Floats
    wait: Floats
    lost: Floats
    slot_bytes: Floats
    cpus: Floats
    memory: Floats


@dataclass(frozen=True, slots=True)
class State:
    """Where N jobs stand.

    Attributes:
        queue: ``[N, S]`` rows waiting behind each stage.
        slots: ``[N, S]`` slots that work (added ones join after the resize delay).
        running: ``[N, S]`` slots at work on average in the last interval, at least 1.
    """

    queue: Floats
    slots: Floats
    running: Floats

    @classmethod
    def empty(cls, jobs: Jobs) -> State:
        """No rows anywhere, one slot a stage."""
        shape = jobs.present.shape
        return cls(queue=np.zeros(shape), slots=jobs.present.astype(np.float64), running=np.ones(shape))


@dataclass(frozen=True, slots=True)
class Flow:
    """What happened in the interval.

    Attributes:
        rows: ``[N, S + 1]`` rows that passed each stage and the trainer.
        busy: ``[N, S]`` slots at work on average; cpu: processors they used on average.
        starved, blocked: ``[N, S]`` share of the slots' time without input, or without room for the output.
        room: ``[N, S]`` rows that the queue behind the stage may hold.
        queued_bytes: ``[N]`` the most bytes in queues; memory: ``[N, M]`` the most resident bytes of each node.
        memory_limit: ``[N, M]`` bytes that each node may hold.
        killed: ``[N]`` a node ran out of memory.
        traffic: ``[N]`` share of the memory bandwidth used.
        seconds: ``[N]`` length of the interval, without time spent restarting.
    """

    rows: Floats
    busy: Floats
    cpu: Floats
    starved: Floats
    blocked: Floats
    room: Floats
    queued_bytes: Floats
    memory: Floats
    memory_limit: Floats
    killed: Bools
    traffic: Floats
    seconds: Floats


@dataclass(frozen=True, slots=True)
class Prepared:
    """What can be computed from `Jobs` once: see `prepare`.

    Attributes:
        shared: ``[N, 4, S + 1]`` use per row of storage bytes, storage requests, memory traffic and network.
        limits: ``[N, 4]`` what there is of them per second (large for none).
        uses_storage, uses_traffic: ``[N, S]`` whether the stage stretches where storage, or memory, is short.
        share: ``[N, M]`` part of the slots that each node carries.
        step_rate: ``[N]`` rows/s of the trainer at most.
        queue_rows: ``[N, S]`` rows per slot that may wait behind the stage.
    """

    jobs: Jobs
    shared: Floats
    limits: Floats
    uses_storage: Bools
    uses_traffic: Bools
    share: Floats
    step_rate: Floats
    queue_rows: Floats

    def put(self, rows: Any, other: Prepared) -> None:
        """Overwrite what belongs to the jobs at `rows`; `jobs` itself is overwritten by its own `put`."""
        for field in fields(self):
            if field.name != "jobs":
                getattr(self, field.name)[rows] = getattr(other, field.name)


def prepare(jobs: Jobs) -> Prepared:
    """Constants of `jobs` that every interval needs."""
    count, width = jobs.present.shape
    shared = np.zeros((count, 4, width + 1))
    shared[:, 0, :width] = jobs.storage_bytes
    shared[:, 1, :width] = jobs.storage_requests
    shared[:, 2, :width] = jobs.traffic
    total = jobs.cpus.sum(axis=1, keepdims=True)
    share = jobs.cpus / total
    # Slots are spread over the nodes by their CPUs; what is made elsewhere reaches the trainer by node 0's network.
    last = np.take_along_axis(jobs.row_bytes, jobs.present.sum(axis=1, keepdims=True) - 1, axis=1)[:, 0]
    shared[:, 3, width] = (1.0 - share[:, 0]) * last
    limits = np.stack(
        [jobs.storage_bandwidth, jobs.storage_rate, jobs.memory_bandwidth, jobs.nic[:, 0]], axis=1
    )
    return Prepared(
        jobs=jobs,
        shared=shared,
        limits=np.minimum(np.maximum(limits, TINY), 1e30),
        uses_storage=(jobs.storage_bytes > 0) | (jobs.storage_requests > 0),
        uses_traffic=jobs.traffic > 0,
        share=share,
        step_rate=1.0 / jobs.step,
        queue_rows=jobs.queue_blocks * jobs.block_rows,
    )


def service(
    cpu: Floats, wait: Floats, slots: Floats, contention: Floats, coherence: Floats
) -> tuple[Floats, Floats]:
    """Processor and waiting seconds per row with `slots` at work at once (Universal Scalability Law).

    Args:
        cpu, wait: seconds per row of one slot alone, ``[N, S]``.
        slots: at work at once, 1 or more.
        contention, coherence: sigma and kappa.
    """
    others = slots - 1.0
    alone = cpu + wait
    return cpu + alone * (coherence * slots * others), wait + alone * (contention * others)


def between(queue: Floats, room: Floats) -> Floats:
    """Rows between stages: ``[N, S + 1, S + 1]``, entry (i, j) is how far stage i may get ahead of stage j's rate.

    Upstream j: the rows queued from j to i. Downstream j: the free places from i to j.
    """
    count, width = queue.shape
    queued = np.zeros((count, width + 1))
    free = np.zeros((count, width + 1))
    np.cumsum(queue, axis=1, out=queued[:, 1:])
    np.cumsum(np.maximum(room - queue, 0.0), axis=1, out=free[:, 1:])
    result: Floats = np.maximum(queued[:, :, None] - queued[:, None, :], free[:, None, :] - free[:, :, None])
    return result


def passed(rate: Floats, gap: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """Rows that pass each stage in `seconds`, and which stage decided it: both ``[N, S + 1]``.

    Args:
        rate: rows/s of each stage and the trainer.
        gap: see `between`.
        seconds: ``[N]``.
    """
    candidates = (rate * seconds[:, None])[:, None, :] + gap
    decides = candidates.argmin(axis=2)
    return candidates.min(axis=2), decides.astype(np.float64)


def pooled_peak(busy: Floats, pool: Floats, slot_bytes: Floats) -> Floats:
    """``[N, S]`` slots that each stage holds at the moment when a shared pool takes most memory.

    A stage runs up to its mean and twice the square root of it (as tasks that arrive at random do); together
    no more than the pool has, of which the stages with the largest working sets are reckoned first.
    """
    alone = np.minimum(np.ceil(busy + 2.0 * np.sqrt(busy)), pool[:, None])
    order = np.argsort(-slot_bytes, axis=1)
    total = np.minimum(np.cumsum(np.take_along_axis(alone, order, axis=1), axis=1), pool[:, None])
    held = np.empty_like(total)
    np.put_along_axis(held, order, np.diff(total, axis=1, prepend=0.0), axis=1)
    return held


def advance(
    prepared: Prepared, state: State, now: Conditions, slots: Floats, pool: Floats, seconds: Floats
) -> tuple[State, Flow]:
    """One interval.

    Args:
        prepared: the jobs.
        state: where they stand.
        now: what the world does.
        slots: ``[N, S]`` slots each stage has (of a pooled job: the pool).
        pool: ``[N]`` slots that all stages share; 0 where stages have slots of their own.
        seconds: ``[N]`` length of the interval.

    Returns:
        Where the jobs stand then, and what happened.
    """
    jobs = prepared.jobs
    width = jobs.stages
    time = np.maximum(seconds, TINY)[:, None]
    pooled = pool[:, None] > 0

    # Added slots join after the delay; slots taken away stop with their task.
    added = np.maximum(slots - state.slots, 0.0)
    late = np.minimum(jobs.resize_delay[:, None] / time, 1.0)
    working = (slots - added * late) * (1.0 - now.lost)
    capacity = np.maximum(np.minimum(working, jobs.most_slots), TINY)
    at_once = np.maximum(np.where(pooled, np.minimum(state.running, capacity), capacity), 1.0)
    cpu, wait = service(now.cpu, now.wait, at_once, jobs.contention, jobs.coherence)
    took = cpu + wait

    rate = np.empty((len(jobs), width + 1))
    np.divide(capacity, took, out=rate[:, :width])
    rate[:, width] = prepared.step_rate

    room = prepared.queue_rows * np.maximum(np.where(pooled, at_once, capacity), 1.0)
    row_bytes = jobs.row_bytes
    asked = (room * row_bytes).sum(axis=1)
    room = room * np.minimum(1.0, jobs.queue_bytes / np.maximum(asked, TINY))[:, None]
    rows, decides = passed(rate, between(state.queue, room), time[:, 0])

    # Shared limits: one factor for all flows.
    use = np.matmul(prepared.shared, rows[:, :, None])[:, :, 0]
    short = np.minimum(prepared.limits * time / np.maximum(use, TINY), 1.0)
    of_pool = np.where(pooled, pool[:, None] * time, np.inf) / np.maximum(
        (rows[:, :width] * took).sum(axis=1, keepdims=True), TINY
    )
    slower = np.minimum(short.min(axis=1, keepdims=True), np.minimum(of_pool, 1.0))
    demand = (rows[:, :width] * cpu).sum(axis=1) + rows[:, width] * jobs.step_cpu
    load = slower[:, 0] * demand / (now.cpus * time[:, 0])
    excess = np.maximum(load - 1.0, 0.0)
    of_cpus = (1.0 / (np.maximum(load, 1.0) * (1.0 + jobs.oversubscription * excess)))[:, None]
    rows = rows * (slower * of_cpus)

    queue = np.maximum(state.queue + rows[:, :width] - rows[:, 1:], 0.0)

    # What a slot's time looks like to one who measures: work is stretched where processors or memory are short,
    # waiting where storage is.
    through = rows[:, :width] / time
    running = np.minimum(np.maximum(through * took, 1.0), at_once)
    cpu, wait = service(now.cpu, now.wait, running, jobs.contention, jobs.coherence)
    own = np.where(prepared.uses_traffic, short[:, 2:3], 1.0)
    storage = np.where(prepared.uses_storage, np.minimum(short[:, 0:1], short[:, 1:2]), 1.0)
    cpu_used = through * cpu / own
    busy = np.minimum(cpu_used / of_cpus + through * wait / storage, capacity)
    idle = np.maximum(1.0 - busy / capacity, 0.0)
    index = _ARANGE[:width]
    blocked = np.where(decides[:, :width] > index, idle, 0.0)

    # Memory: with slots of its own a stage keeps a working set per slot; of a pool, no more than its slots run at
    # once, and at the worst moment those that hold most.
    held = pooled_peak(busy, pool, now.slot_bytes) if pool.any() else slots
    held = np.where(pooled, held, slots) if pool.any() else slots
    before = (state.queue * row_bytes).sum(axis=1)
    queued = np.maximum((queue * row_bytes).sum(axis=1), before)
    spread = prepared.share * ((held * now.slot_bytes).sum(axis=1) + queued)[:, None]
    spread[:, 0] += jobs.base_bytes
    limit = jobs.memory * now.memory[:, None]
    flow = Flow(
        rows=rows,
        busy=busy,
        cpu=cpu_used,
        starved=idle - blocked,
        blocked=blocked,
        room=room,
        queued_bytes=queued,
        memory=spread,
        memory_limit=limit,
        killed=((spread > limit) & (jobs.cpus > 0)).any(axis=1),
        traffic=use[:, 2] * slower[:, 0] * of_cpus[:, 0] / (prepared.limits[:, 2] * time[:, 0]),
        seconds=seconds,
    )
    return State(queue=queue, slots=np.array(slots), running=np.maximum(busy, 1.0)), flow


_ARANGE: Any = np.arange(1024)
