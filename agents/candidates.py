"""Allocations worth considering for each job, rehearsed in its twin: what each would deliver and take.

The planner chooses among them by a rule, the DQN by what it has learnt. Pure functions of twin and record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from intune.agents.memory import MemoryRecord
from intune.agents.twin import GRID, NOISE, Twin
from intune.envs.actions import feasible
from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import Measurement

MARGINS = (1.0, 1.08, 1.2, 1.4, 1.8)
"""Capacity of every stage as a multiple of the rate aimed at: slack pays for noise and costs memory."""

POOL_MARGINS = (1.0, 1.15, 1.4)

HOPE = 0.03
"""Gain below which more slots are not worth a try: what one interval's noise shows."""

IDLE = 0.08
"""The same of idle processors: some of what they seem to spare is the system's, or lost between tasks."""

FAIR = 0.9
"""Share of what is delivered that another allocation has to promise to be worth a try."""

SAME = 0.02
"""Loss that fewer slots are expected to bring at most."""

LEAST_ANCHOR = 0.2
"""Of what was expected of a pool: less is a stumble, which says nothing of other pools."""

NAMES = (
    "keep", *[f"plan x{margin:g}" for margin in MARGINS], *[f"pool x{margin:g}" for margin in POOL_MARGINS],
    "half way", "raise the slowest", "raise the slowest by a quarter", "give back",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """K allocations for each of N jobs.

    Attributes:
        slots: ``[N, K, S]``; pool: ``[N, K]``.
        rate: ``[N, K]`` rows/s that the twin expects.
        doubt: ``[N, K]`` standard deviation of the slowest stage's time per row, as a share.
        memory: ``[N, K]`` bytes taken at worst.
        target: ``[N]`` rows/s thought possible within memory and slots if every stage has its own; together: also if
            they share a pool; wished: without regard to memory and slots.
        slowest: ``[N, K]`` stage that the twin expects to hold the others up; S for none of them.
    """

    slots: Floats
    pool: Floats
    rate: Floats
    doubt: Floats
    memory: Floats
    target: Floats
    together: Floats
    wished: Floats
    slowest: Any


def hopeful(options: Candidates, measured: Measurement) -> Bools:
    """``[N]`` whether more slots may bring more rows: not where the trainer does not wait for data, or processors
    already do all that they can."""
    now = np.nan_to_num(measured.delivered)
    most = np.minimum(options.wished, now / np.maximum(1.0 - np.nan_to_num(measured.waiting, nan=1.0), 1e-9))
    # Work per row does not fall as slots are added: so much more is there to be had of the processors.
    used = np.nan_to_num(measured.cpus_used) / np.maximum(np.nan_to_num(measured.cpus), 1e-9)
    hope = (most > (1.0 + HOPE) * now) & (now / np.clip(used, 1e-9, 1.0) > (1.0 + IDLE) * now)
    return np.asarray(hope)


def promising(options: Candidates, measured: Measurement) -> Bools:
    """``[N, K]`` candidates that may bring something: more rows, or as many with fewer slots; staying always."""
    now = np.nan_to_num(measured.delivered)
    present = measured.present[:, None]
    total = np.where(options.pool > 0, options.pool, (options.slots * present).sum(axis=2))
    leaner = (total < total[:, :1]) & (options.rate >= (1.0 - SAME) * now[:, None])
    # What no longer fits into memory has to be left, whatever that brings.
    fits = options.memory[:, 0] <= measured.memory_limit
    # The twin may be a little wrong, but what it expects to be clearly worse is not worth a try.
    fair = options.rate >= FAIR * now[:, None]
    chosen: Bools = (hopeful(options, measured)[:, None] & fair) | leaner | ~fits[:, None]
    chosen[:, 0] = True
    return chosen


def out_of_pools(options: Candidates, measured: Measurement, due: Bools) -> Bools:
    """``[N, K]`` candidates of which one is to be chosen where memory holds a pool back; none where it does not.

    What a pool takes says nothing of whose slots take it, so in a pool that memory holds back nothing would ever be
    learnt. Slots of each stage's own tell it: those that promise more, or where none that fit do, now and then the best
    of them, or the least (which a guard cuts to what fits). A job that watches its memory is bounded by what its pool
    was seen to take.

    Args:
        due: ``[N]`` whether slots of its own are tried that promise no more.
    """
    large = options.memory > measured.memory_limit[:, None]
    more = options.rate > (1.0 + HOPE) * options.rate[:, :1]
    held = (measured.pool > 0) & ~measured.watched & (more & large).any(axis=1) & hopeful(options, measured)
    alone = held[:, None] & (options.pool == 0)
    rank = np.where(alone, np.where(large, -options.memory, options.rate), -np.inf)
    best = alone & (rank == rank.max(axis=1)[:, None])
    better = alone & ~large & more
    return np.asarray(np.where(better.any(axis=1)[:, None], better, best & due[:, None]))


def reaching(table: Floats, present: Bools, rate: Floats) -> Floats:
    """``[N, S]`` the fewest slots with which each stage makes `rate` (``[N]``); where none do, the best number."""
    enough = table >= rate[:, None, None]
    index = np.where(enough.any(axis=2), enough.argmax(axis=2), table.argmax(axis=2))
    return np.where(present, GRID[index], 0.0)


def fitting_rate(
    table: Floats, record: MemoryRecord, measured: Measurement, high: Floats, *, rounds: int = 9
) -> Floats:
    """``[N]`` the highest rate up to `high` for which slots exist within the slot limit and, at worst, memory.

    Bisection on the logarithm: slots needed, and with them memory, grow with the rate.
    """
    present = measured.present
    none = np.zeros(len(measured))

    def possible(rate: Floats) -> Bools:
        slots = reaching(table, present, rate)
        return np.asarray(
            (slots.sum(axis=1) <= measured.slot_limit)
            & (record.bound(slots, none, measured) <= measured.memory_limit)
        )

    # One slot a stage is where every job begins.
    low = np.where(present, table[:, :, 0], np.inf).min(axis=1)
    return _highest(possible, low, high, rounds)


def pooled_rate(twin: Twin, record: MemoryRecord, measured: Measurement, low: Floats, high: Floats) -> Floats:
    """``[N]`` the highest rate from `low` to `high` for which a pool within the slot limit and memory has slots enough:
    where slots are few, those that a stage of its own would not use all the time make it higher than `low`."""
    table = twin.table()

    def possible(rate: Floats) -> Bools:
        need = np.ceil(_need(twin, table, measured.present, rate))
        few = np.asarray(need <= measured.slot_limit)
        if not few.any():
            return few
        slots = need[:, None] * measured.present
        return few & (record.bound(slots, need, measured) <= measured.memory_limit)

    return _highest(possible, low, high)


def _need(twin: Twin, table: Floats, present: Bools, rate: Floats) -> Floats:
    """``[N]`` slots of a pool that are at work at `rate`, on average."""
    base = reaching(table, present, rate)
    need = np.minimum(rate[:, None] * twin.time(base), base) * present
    return np.asarray(need.sum(axis=1))


def _highest(possible: Callable[[Floats], Bools], low: Floats, high: Floats, rounds: int = 9) -> Floats:
    """``[N]`` the highest rate up to `high` that is possible; `low` is taken to be."""
    fits = possible(high)
    if fits.all():
        return high
    low = np.where(fits, high, np.minimum(low, high))
    for _ in range(rounds):
        middle = np.sqrt(low * high)
        fits = possible(middle)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return low


def propose(twin: Twin, record: MemoryRecord, measured: Measurement) -> Candidates:
    """The candidates, in the order of `NAMES`."""
    present = measured.present
    count = len(measured)
    table = twin.table()
    peak = np.where(present, table.max(axis=2), np.inf).min(axis=1)
    wished = np.maximum(np.minimum(peak, twin.ceiling(measured)), 1e-9)
    fit = fitting_rate(table, record, measured, np.minimum(wished * MARGINS[-1], np.maximum(peak, wished)))
    target = np.minimum(wished, fit)
    limit = measured.slot_limit
    base = reaching(table, present, target)
    pooled = measured.pool > 0
    # Out of a pool, "slots in force" are those that it amounts to.
    share = np.maximum(np.rint(measured.busy), 1.0) * present
    slots_now = np.where(pooled[:, None], share, measured.slots) * present
    none = np.zeros(count)
    options: list[tuple[Floats, Floats]] = [(measured.slots * present, measured.pool)]
    for margin in MARGINS:
        wanted = (
            base
            if margin == 1.0
            else reaching(table, present, np.minimum(target * margin, np.maximum(fit, target)))
        )
        options.append((wanted, none))
    together = target
    if (target < wished).any():
        together = pooled_rate(twin, record, measured, target, wished)
    need = _need(twin, table, present, together)
    options += [(base, np.clip(np.ceil(need * margin), 1.0, limit)) for margin in POOL_MARGINS]
    options.append(
        (np.where(base > slots_now, np.ceil((base + slots_now) / 2), np.floor((base + slots_now) / 2)), none)
    )
    capacity = np.where(present, twin.capacity(slots_now), np.inf)
    slowest = capacity.argmin(axis=1)
    one = np.zeros_like(slots_now)
    one[np.arange(count), slowest] = 1.0
    options.append((slots_now + one, none))
    options.append((slots_now + one * np.ceil(slots_now / 4), none))
    options.append((np.minimum(reaching(table, present, measured.delivered * 1.02), slots_now), none))

    slots = np.stack([option[0] for option in options], axis=1)
    pool = np.stack([option[1] for option in options], axis=1)
    for k in range(1, slots.shape[1]):
        given = feasible(present, slots_now, slots[:, k], limit)
        shared = pool[:, k] > 0
        slots[:, k] = np.where(shared[:, None], pool[:, k, None] * present, given)
    return rehearse(twin, record, measured, slots, pool, target, together, wished)


def _anchor(expected: Floats, measured: Measurement) -> Floats:
    """``[N]`` what is delivered of the rate `expected` of the pool in force, 1 where none is: what a pool loses to
    slots that are at the wrong stage is in no law of a stage, and other pools lose it too."""
    usable = (measured.pool > 0) & np.isfinite(measured.delivered)
    part = np.where(usable, measured.delivered, 1.0) / np.where(usable, np.maximum(expected, 1e-300), 1.0)
    return np.clip(part, LEAST_ANCHOR, 1.0)


def rehearse(
    twin: Twin,
    record: MemoryRecord,
    measured: Measurement,
    slots: Floats,
    pool: Floats,
    target: Floats,
    together: Floats,
    wished: Floats,
) -> Candidates:
    """What each allocation would deliver and take, by the twin.

    Args:
        slots: ``[N, K, S]``; pool: ``[N, K]``; target, together, wished: ``[N]``.
    """
    present = measured.present
    width = slots.shape[2]
    ceiling = twin.ceiling(measured)[:, None]
    alone = np.where(present[:, None], twin.capacity(slots), np.inf)
    at = alone.argmin(axis=2)
    reach = alone.min(axis=2)
    shared = pool > 0
    # Of a pool: every stage takes its part; contention is that of the slots it needs. It delivers no more than every
    # stage would make with the whole pool, which is what `slots` says of one.
    wanted = together[:, None]
    busy = np.maximum(wanted * twin.time(np.ones_like(wanted) * present), 1.0)
    part = np.maximum(np.minimum((wanted * twin.time(busy))[:, None], pool[..., None]), 1e-9)
    per_row = (part * present[:, None]).sum(axis=2) / np.maximum(wanted, 1e-300)
    reach = np.where(shared, np.minimum(pool / np.maximum(per_row, 1e-300), reach), reach)
    at = np.where(shared, width, at)
    unsure = twin.deviation(slots)
    doubt = np.take_along_axis(unsure, np.minimum(at, width - 1)[..., None], axis=2)[..., 0]
    # No one stage holds up a pool, so no one law of scaling is at stake: what is left is the noise of measuring.
    doubt = np.where(shared, NOISE, doubt)
    memory = record.bounds(slots * present[:, None], pool, measured)
    rate = np.minimum(reach, ceiling)
    rate = np.where(shared, rate * _anchor(rate[:, 0], measured)[:, None], rate)
    return Candidates(
        slots=slots,
        pool=pool,
        rate=rate,
        doubt=doubt,
        memory=memory,
        target=target,
        together=together,
        wished=wished,
        slowest=np.where(reach > ceiling, width, at),
    )
