"""The best allocation that there is, from the simulator's own parameters. Pure; for measuring only.

*Slots of their own.* Whatever rate is aimed at, giving every stage the fewest slots that reach it takes the least
memory, slots and processor time, for a stage's capacity grows with its slots up to a peak. So the best allocation
lies on one path: from one slot a stage, always one more for the slowest stage, until it is past its peak, memory
or slots are used up, or the trainer, a shared limit or the processors are the bottleneck. (Exact but for one
pathology: to push a stage past its peak so that it throttles an oversubscribed machine.)

*A pool.* Its rate rises with its size up to a peak, and then falls or stays; its memory grows with it. So the size
is found in a grid that is refined around the best size that fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from intune.agents.steady import World, capacity, memory_of_stages, pooled, rate_of_stages, world
from intune.envs.jobs import Bools, Floats, Jobs
from intune.envs.simulator import Simulator

MARGIN = 4.0
"""Standard deviations of the working sets' noise that the best allocation must survive: in 99.997 % of intervals."""

BETTER = 1.0 + 1e-9
"""More slots must bring this much more, lest rounding decides."""

POINTS = 9
"""Sizes of a pool tried in each round of its search."""
REFINED = 3
"""Rounds: 9 sizes over the range, then between the neighbours of the best, twice: whole numbers up to 500 slots."""
NEXT_TO_NOTHING = 1e-3
"""Share of the rate that there is still to be had where a knee is taken to end."""
FILLING = 6
"""Intervals in which queues fill."""
SEARCHING = 12
"""Intervals that a pool settles for while sizes are compared; the best is then looked at for longer."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best allocation of N jobs.

    Attributes:
        slots: ``[N, S]`` slots of each stage (those of the best allocation without a pool, where a pool is better).
        pool: ``[N]`` slots of the pool, where that is better; else 0.
        rate: ``[N]`` rows/s.
        feasible: ``[N]`` whether any allocation fits into memory; where none does, the rate is 0.
        takes: ``[N]`` bytes of its working sets and queues, margin included; room: ``[N]`` bytes there are for them.
    """

    slots: Floats
    pool: Floats
    rate: Floats
    feasible: Bools
    takes: Floats
    room: Floats


def best(
    jobs: Jobs, cpus: Any = 1.0, memory: Any = 1.0, *, slower: Any = 1.0, margin: float = MARGIN
) -> Best:
    """The best allocations of N jobs.

    Args:
        jobs: their parameters.
        cpus, memory: ``[N]`` or one for all: multiples of CPUs and memory at first.
        slower: ``[N, S]`` or one for all: multiple of all times per row.
        margin: standard deviations of memory noise to survive.
    """
    there = world(jobs, cpus=cpus, memory=memory, slower=slower, margin=margin)
    slots, rate, fits = best_slots(there)
    pool, pool_rate, pool_takes = best_pool(there)
    shared = pool_rate > rate * BETTER
    if shared.any():
        rows = np.flatnonzero(shared)
        shared[rows] = _survives(there.rows(rows), jobs.take(rows), pool[rows])
    return Best(
        slots=slots,
        pool=np.where(shared, pool, 0.0),
        rate=np.where(shared, pool_rate, rate),
        feasible=fits | shared,
        takes=np.where(shared, pool_takes, memory_of_stages(there, slots)),
        room=there.room,
    )


def best_slots(there: World) -> tuple[Floats, Floats, Bools]:
    """Slots of each stage, ``[N, S]``, their rate, ``[N]``, and whether even one slot a stage fits into memory."""
    found = there.present.astype(np.float64)
    rate = rate_of_stages(there, found)
    fits: Bools = memory_of_stages(there, found) <= there.room
    ceiling = np.minimum(np.minimum(there.step_rate, there.storage_rate.min(axis=1)), there.memory_rate)
    rows = np.flatnonzero(fits)
    part = there.rows(rows)
    slots = found[rows]
    capable = capacity(part, slots)
    work = np.where(part.present, part.cpu, 0.0).sum(axis=1) + part.step_cpu
    beyond = np.maximum((part.knee / NEXT_TO_NOTHING) ** part.knee, 1.0)
    while len(rows):
        each = np.arange(len(rows))
        slowest = capable.argmin(axis=1)
        slots[each, slowest] += 1.0
        before = capable[each, slowest]
        capable = capacity(part, slots)
        # Past the ceiling or with all processors at work, more slots bring nothing; of a knee, ever less.
        go = (before < ceiling[rows] * beyond) & (before * work < part.cpus * beyond)
        go &= capable[each, slowest] > before
        go &= (slots.sum(axis=1) <= part.slots) & (memory_of_stages(part, slots) <= part.room)
        if not go.all():
            rows, part, slots, capable = rows[go], part.rows(go), slots[go], capable[go]
            work, beyond = work[go], beyond[go]
        now = rate_of_stages(part, slots)
        better = now > rate[rows] * BETTER
        rate[rows[better]] = now[better]
        found[rows[better]] = slots[better]
    return found, np.where(fits, rate, 0.0), fits


def best_pool(there: World) -> tuple[Floats, Floats, Floats]:
    """The best pool, ``[N]``, 0 where not even one slot fits, its rate and the bytes that it takes."""
    count = len(there)
    low, high = np.ones(count), np.maximum(there.slots, 1.0)
    best_size, best_rate = np.zeros(count), np.zeros(count)
    each = np.arange(count)
    again = there.rows(np.repeat(each, POINTS))
    for turn in range(REFINED):
        parts = np.linspace(0.0, 1.0, POINTS)
        if turn == 0:
            sizes = np.rint(low[:, None] * (high / low)[:, None] ** parts)
        else:
            sizes = np.rint(low[:, None] + (high - low)[:, None] * parts)
        rate, memory = pooled(again, sizes.ravel(), settling=SEARCHING)
        rate = np.where(memory <= again.room, rate, 0.0).reshape(count, POINTS)
        top = rate.argmax(axis=1)
        better = rate[each, top] > best_rate * BETTER
        best_size = np.where(better, sizes[each, top], best_size)
        best_rate = np.where(better, rate[each, top], best_rate)
        low = sizes[each, np.maximum(top - 1, 0)]
        high = sizes[each, np.minimum(top + 1, POINTS - 1)]
    rate, memory = pooled(there, np.maximum(best_size, 1.0))
    fits = (best_size > 0) & (memory <= there.room)
    return np.where(fits, best_size, 0.0), np.where(fits, np.minimum(rate, best_rate), 0.0), memory


def _survives(there: World, jobs: Jobs, pool: Floats) -> Bools:
    """``[N]`` whether the pools also fit while the queues fill at the start, when more is at work than later."""
    simulator = Simulator(
        jobs.with_(
            cpu=there.cpu,
            wait=there.wait,
            slot_bytes=there.slot_bytes,
            cpus=jobs.cpus * (there.cpus / jobs.cpus.sum(axis=1))[:, None],
            memory=_memory(there, jobs),
            event_time=np.full_like(jobs.event_time, np.inf),
            drift=np.zeros_like(jobs.drift),
        ),
        steps=1,
    )
    simulator.allocate(jobs.present.astype(np.float64), pool)
    killed: Bools = np.any([simulator.run().killed for _ in range(FILLING)], axis=0)
    return ~killed


def _memory(there: World, jobs: Jobs) -> Floats:
    """``[N, M]`` bytes of each node that leave `there.room` for working sets and queues."""
    share = jobs.cpus / jobs.cpus.sum(axis=1, keepdims=True)
    memory: Floats = share * there.room[:, None]
    memory[:, 0] += jobs.base_bytes
    return memory
