"""Physics of input pipelines on a cluster: N jobs advance by one interval, in vectorised NumPy. Pure.

A job is a line of stages with a bounded queue behind each; the trainer takes from the last one. Rows are a
fluid: over an interval every stage has a constant service rate, and how many rows pass each stage is then
known in closed form. Symbols: N jobs, S stages, M nodes; the trainer is column S of arrays of width S + 1.

1. *Service.* A slot works ``cpu`` seconds and waits ``wait`` seconds a row. With n slots at once, contention
   sigma and coherence kappa (Universal Scalability Law; Gunther 2007, "Guerrilla Capacity Planning", ch. 4)
   make that ``(cpu + wait) (1 + sigma (n - 1) + kappa n (n - 1))``: sigma's part is waiting, kappa's is work.
   Locks that are waited for on a processor (the kernel's, of memory) and shared caches add ``crowding (n - 1) cpu``.
   Capacity of a stage: ``n /`` that. Where fewer rows pass, fewer slots are at work, and those contend less.
2. *Flow.* Cumulative rows ``D_i(t) = min over j of (rate_j t + rows between j and i)``, where "between" are the
   rows queued if j is upstream, the free places if j is downstream: fluid tandem queues with finite buffers are
   a min-plus linear system (Le Boudec and Thiran 2001, "Network Calculus", ch. 3 and 4.4). Exact for constant
   rates; which j attains the minimum says who starves or blocks i.
3. *Shared limits.* What all stages together take of processors, storage (bytes and requests), memory
   bandwidth and network is bounded by what there is (utilisation law; Denning and Buzen 1978). Storage bounds the
   rate of the stages that read it, the network that of the trainer. Where there are too few processors, or memory is
   too slow, all flows of the interval slow down by the same factor, as under processor sharing. Demand beyond the
   processors costs ``oversubscription`` on top, and each slot that would be at work beyond them ``switching``. A
   shared pool of slots serves what is nearest to delivery first. Tasks come in bursts: near the point where
   processors begin to be the limit, ``knee`` makes the lesser of both limits a smooth minimum.
4. *Memory.* Resident bytes = base + slots x working set + rows queued; nodes carry it in proportion to their
   CPUs. Above a node's memory the job is killed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from intune.envs.capacity import Able, able_of, as_few, service
from intune.envs.conditions import Conditions
from intune.envs.jobs import Bools, Floats, Jobs
from intune.envs.pools import pooled_flows, pooled_peak, shared_anew
from intune.envs.prepared import TINY, Prepared, ratio

ALL = 1.0 - 1e-9
"""Of the rows that storage has for a stage, so many are all of them, rounding aside."""


@dataclass(frozen=True, slots=True)
class State:
    """Where N jobs stand.

    Attributes:
        queue: ``[N, S]`` rows waiting behind each stage.
        slots: ``[N, S]`` slots that were given (of a pooled job: the pool); pool: ``[N]``, 0 for slots per stage.
        running: ``[N, S]`` slots at work on average in the last interval, at least 1.
        coming: ``[N, S]`` those of the slots that do not work yet; due: seconds until they do.
    """

    queue: Floats
    slots: Floats
    pool: Floats
    running: Floats
    coming: Floats
    due: Floats

    @classmethod
    def empty(cls, jobs: Jobs) -> State:
        """No rows anywhere, one slot a stage."""
        slots = jobs.present.astype(np.float64)
        queue, coming, due = (np.zeros_like(slots) for _ in range(3))
        pool, running = np.zeros(len(slots)), np.ones_like(slots)
        return cls(queue=queue, slots=slots, pool=pool, running=running, coming=coming, due=due)


@dataclass(frozen=True, slots=True)
class Flow:
    """What happened in the interval.

    Attributes:
        rows: ``[N, S + 1]`` rows that passed each stage and the trainer.
        rate: ``[N, S]`` rows/s that passed each stage.
        busy: ``[N, S]`` slots at work on average; cpu: processors they used on average.
        starved, blocked: ``[N, S]`` share of the slots' time without input, or without room for the output.
        room: ``[N, S]`` rows that the queue behind the stage may hold.
        waiting_bytes: ``[N, S]`` in the queue behind each stage at the end.
        queued_bytes: ``[N]`` the most bytes in queues; memory: ``[N, M]`` the most resident bytes of each node.
        memory_limit: ``[N, M]`` bytes that each node may hold.
        killed: ``[N]`` a node ran out of memory.
        traffic: ``[N]`` share of the memory bandwidth used; None where no job's is limited.
    """

    rows: Floats
    rate: Floats
    busy: Floats
    cpu: Floats
    starved: Floats
    blocked: Floats
    room: Floats
    waiting_bytes: Floats
    queued_bytes: Floats
    memory: Floats
    memory_limit: Floats
    killed: Bools
    traffic: Floats | None


def passed(rate: Floats, queue: Floats, room: Floats, seconds: Floats) -> tuple[Floats, Bools]:
    """Rows that pass each stage and the trainer in `seconds`, and where it is the stages behind that held it up.

    A stage passes no more than it can itself, no more than reaches it and is queued before it, and no more than what
    follows takes away and still has room for: two recursions, one along the line and one against it, solve the
    min-plus system.

    Args:
        rate: ``[N, S + 1]`` rows/s that each could pass.
        queue, room: ``[N, S]`` rows waiting behind each stage, and how many may.
        seconds: ``[N]``.

    Returns:
        Both ``[N, S + 1]``.
    """
    rows = rate * seconds[:, None]
    allowed = rows.copy("K")
    free = np.maximum(room - queue, 0.0)
    last = queue.shape[1]
    # Columns of one stage each: views.
    reaching, taken, queued, places = list(rows.T), list(allowed.T), list(queue.T), list(free.T)
    for at in range(last):
        np.minimum(reaching[at] + queued[at], reaching[at + 1], out=reaching[at + 1])
    for at in range(last - 1, -1, -1):
        np.minimum(taken[at + 1] + places[at], taken[at], out=taken[at])
    held_up = allowed < rows
    return np.minimum(rows, allowed, out=rows), held_up


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
    seconds = np.maximum(seconds, TINY)
    pooled = pool[:, None] > 0 if pool.any() else None
    working, shared, coming, due = _joined(prepared, state, now, slots, pool, seconds)
    able = able_of(prepared, now, working, shared, pooled, state.running)
    rows, held_up = passed(able.rate, state.queue, able.room, seconds)
    if prepared.parts.scaling:
        through = rows[:, :width] / seconds[:, None]
        cpu, took = as_few(prepared, now, through, able.cpu, able.took, able.at_once, able.eased)
        able = replace(able, cpu=cpu, took=took)
    if pooled is not None:
        rows = np.where(pooled, pooled_flows(rows, state.queue, able.took, shared * seconds), rows)
    full = None
    if prepared.parts.storage:
        full = rows[:, :width] >= prepared.storage_rate * (seconds * ALL)[:, None]
    through, delivered = rows[:, :width] / seconds[:, None], rows[:, width] / seconds
    short = _short(prepared, now, able, through, delivered)
    factor = short.factor
    rows *= factor[:, None]
    through *= factor[:, None]
    queue = np.maximum(state.queue + rows[:, :width] - rows[:, 1:], 0.0)

    cpu, busy = _at_work(prepared, now, able, short, through, delivered * factor)
    if full is not None and full.any():
        busy = _with_those_that_queue(busy, full, able.capacity, None if pooled is None else shared, factor)
    idle = 1.0 - busy / able.capacity
    blocked = idle * held_up[:, :width]
    held = slots if pooled is None else np.where(pooled, pooled_peak(busy, pool, now.slot_bytes), slots)
    waiting_bytes = queue * jobs.row_bytes
    queued_before = np.add.reduce(state.queue * jobs.row_bytes, axis=1)
    queued = np.maximum(np.add.reduce(waiting_bytes, axis=1), queued_before)
    memory, limit, killed = _memory(prepared, now, held, queued)
    flow = Flow(
        rows=rows, rate=through, busy=busy, cpu=cpu, starved=idle - blocked, blocked=blocked, room=able.room,
        waiting_bytes=waiting_bytes, queued_bytes=queued, memory=memory, memory_limit=limit, killed=killed,
        traffic=None if short.traffic is None else short.traffic * factor / jobs.memory_bandwidth,
    )  # fmt: skip
    running = np.maximum(busy, 1.0)
    return State(queue=queue, slots=slots, pool=pool, running=running, coming=coming, due=due), flow


def _joined(
    prepared: Prepared, state: State, now: Conditions, slots: Floats, pool: Floats, seconds: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Slots that work on average, ``[N, S]``, and of the pool, ``[N]``; slots that are on their way, until when."""
    coming, due, working, shared = state.coming, state.due, slots, pool
    pooling = bool(pool.any())
    if prepared.parts.delay:
        before = (state.slots, coming, due)
        if pooling or state.pool.any():
            before = shared_anew(slots, pool, state.slots, state.pool, coming, due)
        coming, due, missing = joining(*before, slots, prepared.jobs.resize_delay[:, None], seconds[:, None])
        working = slots - missing
        if pooling:
            shared = pool - missing.max(axis=1)  # every stage of a pool misses the same slots
    if pooling:
        shared = np.where(pool > 0, np.maximum(shared * (1.0 - now.lost), TINY), 0.0)
    return working, shared, coming, due


def joining(
    had: Floats, coming: Floats, due: Floats, slots: Floats, delay: Floats, seconds: Floats
) -> tuple[Floats, Floats, Floats]:
    """Added slots that join late; those taken away stop with their task, first those that have not joined yet.

    What is on its way to a stage joins together: further slots put that off in proportion to how many they are.

    Args:
        had: ``[N, S]`` slots before the interval, of which `coming` did not work yet, for another `due` seconds.
        slots: ``[N, S]`` given for it.
        delay: ``[N, 1]`` seconds from giving a slot to its first work.
        seconds: ``[N, 1]`` length of the interval.

    Returns:
        ``[N, S]`` each: slots that have not joined at the end, seconds until they do, and slots that were missing on
        average.
    """
    added = np.maximum(slots - had, 0.0)
    before = np.maximum(coming - np.maximum(had - slots, 0.0), 0.0)
    coming = before + added
    due = (before * due + added * delay) / np.maximum(coming, TINY)
    missing = coming * np.minimum(due / seconds, 1.0)
    due = np.maximum(due - seconds, 0.0)
    return coming * (due > 0), due, missing


@dataclass(frozen=True, slots=True)
class _Short:
    """What all flows lose where all stages together want more than there is.

    Attributes:
        memory: ``[N]`` share of the rows for which its bandwidth suffices; 1 where no job's is limited.
        processor: ``[N]`` share of the time that a slot would work for which it has a processor.
        lost: ``[N]`` how many times as long everything takes with switching; 1 where no job loses time to it.
        traffic: ``[N]`` bytes/s that slots would move; None where no job's is limited.
    """

    memory: Floats | float
    processor: Floats
    lost: Floats | float
    traffic: Floats | None

    @property
    def factor(self) -> Floats:
        """``[N]`` what is left of the flows."""
        return np.asarray(self.memory * self.processor / self.lost)


def _short(prepared: Prepared, now: Conditions, able: Able, through: Floats, delivered: Floats) -> _Short:
    jobs, parts = prepared.jobs, prepared.parts
    traffic = None
    memory: Floats | float = 1.0
    if parts.memory_bandwidth:
        traffic = np.add.reduce(through * jobs.traffic, axis=1)
        memory = ratio(jobs.memory_bandwidth, traffic)
    demand = np.add.reduce(through * able.cpu, axis=1)
    if parts.trainer_cpu:
        demand += delivered * jobs.step_cpu
    lost: Floats | float = 1.0
    if parts.switching:
        lost = 1.0 + jobs.switching * np.maximum(demand - now.cpus, 0.0)
    load = memory * demand / able.cpus
    processor = 1.0 / (np.maximum(load, 1.0) * (1.0 + jobs.oversubscription * np.maximum(load - 1.0, 0.0)))
    return _Short(memory=memory, processor=processor, lost=lost, traffic=traffic)


def _at_work(
    prepared: Prepared, now: Conditions, able: Able, short: _Short, through: Floats, delivered: Floats
) -> tuple[Floats, Floats]:
    """Processors used and slots at work on average, ``[N, S]``: what a slot's time looks like to one who measures.

    Work is stretched where processors are short, or memory. Time lost to switching is spent on processors.
    """
    jobs, cpu, wait = prepared.jobs, now.cpu, now.wait
    lost, stalled = short.lost, None
    if isinstance(short.memory, np.ndarray):
        stalled = np.where(prepared.uses_traffic, short.memory[:, None], 1.0)
    if prepared.parts.scaling:
        # Slots that queue for a processor, or stall on one for memory, contend as those that get on.
        works = np.reshape(lost / short.processor, (-1, 1))
        longer = able.took + able.cpu * ((works if stalled is None else works / stalled) - 1.0)
        running = np.minimum(np.maximum(through * longer, 1.0), able.at_once)
        cpu, wait = service(cpu, wait, running, jobs.contention, jobs.coherence, prepared.crowding)
    used, waited = through * cpu, through * wait
    if isinstance(lost, np.ndarray):
        used *= lost[:, None]
    if stalled is not None:
        used /= stalled
    busy = np.minimum(used / (short.processor * able.eased)[:, None] + waited, able.capacity)
    if stalled is not None:
        # There are no more processors to stall on than there are.
        rest = np.maximum(now.cpus - delivered * jobs.step_cpu, 0.0)
        used *= ratio(rest, np.add.reduce(used, axis=1))[:, None]
    return used, busy


def _with_those_that_queue(
    busy: Floats, full: Bools, capacity: Floats, pool: Floats | None, factor: Floats
) -> Floats:
    """Slots at work, ``[N, S]``, those that queue for storage among them.

    Where nothing but storage keeps a stage from passing more rows, whichever of its slots is free asks for the next
    (interactive response time law; Denning and Buzen 1978): none is idle. In a pool those of all stages do.
    """
    free = capacity - busy
    if pool is not None:
        left = np.maximum(pool - np.add.reduce(busy, axis=1), 0.0) / np.maximum(full.sum(axis=1), 1)
        free = np.where(pool[:, None] > 0, left[:, None], free)
    return np.minimum(busy + free * full * factor[:, None], capacity)


def _memory(
    prepared: Prepared, now: Conditions, held: Floats, queued: Floats
) -> tuple[Floats, Floats, Bools]:
    """The most resident bytes of each node and what it may hold, ``[N, M]``, and whether one ran out, ``[N]``.

    With slots of its own a stage keeps a working set per slot; of a pool, no more than its slots run at once, and at
    the worst moment those that hold most.
    """
    jobs = prepared.jobs
    memory = (np.add.reduce(held * now.slot_bytes, axis=1) + queued)[:, None]
    if prepared.parts.nodes:
        memory = prepared.share * memory
    memory[:, 0] += jobs.base_bytes
    limit = jobs.memory * now.memory[:, None]
    over = memory > limit
    return memory, limit, (over & (jobs.cpus > 0)).any(axis=1) if prepared.parts.nodes else over[:, 0]
