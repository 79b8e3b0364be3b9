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

from intune.envs.jobs import Bools, Floats, Jobs
from intune.envs.pools import pooled_flows, pooled_peak, shared_anew
from intune.envs.prepared import LEAST_KNEE, TINY, Prepared, ratio

ROUNDS = 2
"""In which it is reckoned how many slots are at work where not all can be: each further one changes less."""

ALL = 1.0 - 1e-9
"""Of the rows that storage has for a stage, so many are all of them, rounding aside."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the world does to the jobs in one interval; an agent has no say in it.

    Attributes:
        cpu, wait: ``[N, S]`` seconds per row of processor and of waiting, disturbances included.
        lost: ``[N]`` share of all slots that is missing.
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
    pooling = bool(pool.any())
    pooled = pool[:, None] > 0 if pooling else None
    coming, due, working, shared = state.coming, state.due, slots, pool
    if prepared.parts.delay:
        before = (state.slots, coming, due)
        if pooling or state.pool.any():
            before = shared_anew(slots, pool, state.slots, state.pool, coming, due)
        coming, due, missing = joining(*before, slots, jobs.resize_delay[:, None], seconds[:, None])
        working = slots - missing
        if pooling:
            shared = pool - missing.max(axis=1)  # every stage of a pool misses the same slots
    if pooling:
        shared = np.where(pool > 0, np.maximum(shared * (1.0 - now.lost), TINY), 0.0)
    able = _able(prepared, state, now, working, shared, pooled)
    rows, held_up = passed(able.rate, state.queue, able.room, seconds)
    if prepared.parts.scaling:
        through = rows[:, :width] / seconds[:, None]
        cpu, took = _as_few(prepared, now, through, able.cpu, able.took, able.at_once, able.eased)
        able = replace(able, cpu=cpu, took=took)
    if pooled is not None:
        rows = np.where(pooled, pooled_flows(rows, state.queue, able.took, shared * seconds), rows)
    full = None
    if prepared.parts.storage:
        full = rows[:, :width] >= prepared.storage_rate * (seconds * ALL)[:, None]

    # Shared limits: one factor for all flows.
    through, delivered = rows[:, :width] / seconds[:, None], rows[:, width] / seconds
    traffic = None
    slower: Floats | float = 1.0
    if prepared.parts.memory_bandwidth:
        traffic = np.add.reduce(through * jobs.traffic, axis=1)
        slower = ratio(jobs.memory_bandwidth, traffic)
    demand = np.add.reduce(through * able.cpu, axis=1)
    if prepared.parts.trainer_cpu:
        demand += delivered * jobs.step_cpu
    lost: Floats | float = 1.0
    if prepared.parts.switching:
        lost = 1.0 + jobs.switching * np.maximum(demand - now.cpus, 0.0)
    load = slower * demand / able.cpus
    # Of the time that a slot would work, it has a processor for this share.
    processor = 1.0 / (np.maximum(load, 1.0) * (1.0 + jobs.oversubscription * np.maximum(load - 1.0, 0.0)))
    factor = slower * processor / lost
    rows *= factor[:, None]
    through *= factor[:, None]
    queue = np.maximum(state.queue + rows[:, :width] - rows[:, 1:], 0.0)

    cpu, busy = _at_work(prepared, now, able, slower, through, delivered * factor, processor, lost)
    if full is not None and full.any():
        busy = _with_those_that_queue(busy, full, able.capacity, shared if pooling else None, factor)
    idle = 1.0 - busy / able.capacity
    blocked = idle * held_up[:, :width]
    held = slots if pooled is None else np.where(pooled, pooled_peak(busy, pool, now.slot_bytes), slots)
    waiting_bytes = queue * jobs.row_bytes
    before = np.add.reduce(state.queue * jobs.row_bytes, axis=1)
    queued = np.maximum(np.add.reduce(waiting_bytes, axis=1), before)
    memory, limit, killed = _memory(prepared, now, held, queued)
    flow = Flow(
        rows=rows,
        rate=through,
        busy=busy,
        cpu=cpu,
        starved=idle - blocked,
        blocked=blocked,
        room=able.room,
        waiting_bytes=waiting_bytes,
        queued_bytes=queued,
        memory=memory,
        memory_limit=limit,
        killed=killed,
        traffic=None if traffic is None else traffic * factor / jobs.memory_bandwidth,
    )
    running = np.maximum(busy, 1.0)
    return State(queue=queue, slots=slots, pool=pool, running=running, coming=coming, due=due), flow


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
class _Able:
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


def _able(
    prepared: Prepared,
    state: State,
    now: Conditions,
    slots: Floats,
    pool: Floats,
    pooled: Bools | None,
) -> _Able:
    jobs, parts = prepared.jobs, prepared.parts
    if now.lost.any():
        slots = slots * (1.0 - now.lost)[:, None]
    capacity = np.minimum(slots, jobs.most_slots)
    np.maximum(capacity, TINY, out=capacity)
    at_once = np.maximum(capacity, 1.0)
    if pooled is not None:
        at_once = np.where(pooled, np.minimum(state.running, at_once), at_once)
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
            needed, _ = _as_few(prepared, now, rate[:, :-1].min(axis=1, keepdims=True), cpu, took, at_once)
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
    return _Able(
        capacity=capacity, at_once=at_once, cpu=cpu, took=took, rate=rate, room=room, eased=eased, cpus=cpus
    )


def _as_few(
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
        eased: ``[N]``, see `_Able`; `took` is that much longer.
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


def _at_work(
    prepared: Prepared,
    now: Conditions,
    able: _Able,
    slower: Floats | float,
    through: Floats,
    delivered: Floats,
    processor: Floats,
    lost: Floats | float,
) -> tuple[Floats, Floats]:
    """Processors used and slots at work on average, ``[N, S]``: what a slot's time looks like to one who measures.

    Work is stretched where processors are short, or memory, for which all flows are `slower`. Time `lost` to switching
    is spent on processors.
    """
    jobs, cpu, wait = prepared.jobs, now.cpu, now.wait
    stalled = None if isinstance(slower, float) else np.where(prepared.uses_traffic, slower[:, None], 1.0)
    if prepared.parts.scaling:
        # Slots that queue for a processor, or stall on one for memory, contend as those that get on.
        works = np.reshape(lost / processor, (-1, 1))
        longer = able.took + able.cpu * ((works if stalled is None else works / stalled) - 1.0)
        running = np.minimum(np.maximum(through * longer, 1.0), able.at_once)
        cpu, wait = service(cpu, wait, running, jobs.contention, jobs.coherence, prepared.crowding)
    used, waited = through * cpu, through * wait
    if not isinstance(lost, float):
        used *= lost[:, None]
    if stalled is not None:
        used /= stalled
    busy = np.minimum(used / (processor * able.eased)[:, None] + waited, able.capacity)
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
