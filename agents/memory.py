"""How much memory an allocation may take at worst, learnt from what was seen.

Resident memory is linear in the slots (base + sum of working sets), with unknown coefficients and noise of unknown
size; `memory_law` learns both. Queues are counted full; of a pool, all slots may be in the stage with
the largest working set at some moment. A job that watches its memory itself is not killed by a bound that fails: there
a pool's slots are taken to work where they did, and less is left free.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from intune.agents.memory_law import Law, Sums
from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import Measurement
from intune.envs.prepared import TINY

RISK = 1.3e-4
"""Chance that a bound fails, before it is shared out over the intervals: 4e-6 in the first, 6e-6 (4.4 standard
deviations) in the tenth, 3e-6 in the thirtieth."""

WATCHED_RISK = 1e-2
"""The same for a job that begins nothing which would take the last of the memory: there a bound that fails costs time,
and one that is too low costs as much in every interval."""

WATCHED_DOUBT = 0.3
"""Part of the doubt about the stages' working sets that a bound reckons with there: what was guessed wrongly shows in
the next interval. The noise of what is known counts in full."""

SUDDEN = 0.1
"""Part of the memory limit that a task takes for itself, from which on that does not hold: a few that begin together
take the last of it before anyone can look (see `pressure.MOST_SHARE`)."""

SHRUNK = 0.95
"""Slots as a share of those before, below which an interval still holds what these left behind."""

TELLING = 0.02
"""Share of a queue that waits, from which on it tells how much may wait."""

LATELY = 8
"""Intervals for which what a pool took counts for its return: beyond that, working sets may have grown."""


class MemoryRecord:
    """What N jobs took with the slots they had.

    Args:
        jobs, stages: N and S.
        risk: see `RISK`.
    """

    def __init__(self, jobs: int, stages: int, *, risk: float = RISK) -> None:
        self.risk = risk
        self._sums = Sums.none(jobs, stages + 1)
        self._base: Floats = np.zeros(jobs)
        # Whether the base was measured; where it was not, it is one column more to be learnt.
        self._told: Bools = np.zeros(jobs, dtype=bool)
        # Whether all that was seen is of shared pools.
        self._loose: Bools = np.zeros(jobs, dtype=bool)
        self._watched: Bools = np.zeros(jobs, dtype=bool)
        # Part of the memory limit that a task at work took for itself, at most.
        self._each: Floats = np.zeros(jobs)
        # Slots of all stages in the interval before.
        self._before: Floats = np.zeros(jobs)
        # Bytes that may wait for each slot of a stage, as last seen; 0 where nothing ever waited.
        self._room: Floats = np.zeros((jobs, stages))
        # The largest pool lately, what it took above the base, and how long ago that was.
        self._pool: Floats = np.zeros(jobs)
        self._pool_took: Floats = np.zeros(jobs)
        self._pool_age: Floats = np.zeros(jobs)
        self._law: Law | None = None

    def forget(self, rows: Any) -> None:
        """New jobs at `rows`."""
        self._sums.forget(rows)
        self._base[rows] = 0.0
        self._told[rows] = False
        self._loose[rows] = False
        self._watched[rows] = False
        self._each[rows] = 0.0
        self._before[rows] = 0.0
        self._room[rows] = 0.0
        self._pool[rows] = 0.0
        self._law = None

    @property
    def law(self) -> Law:
        """What follows from all that was seen."""
        if self._law is None:
            risk = np.where(self._watched, WATCHED_RISK, self.risk)
            # Of pools alone nobody knows which stage it is whose slots take the memory: the doubt counts in full.
            seen_coming = self._watched & ~self._loose & (self._each < SUDDEN)
            doubt = np.where(seen_coming, WATCHED_DOUBT, 1.0)
            self._law = Law(self._sums, risk, doubt)
        return self._law

    @property
    def noise(self) -> Floats:
        """``[N]`` by how much memory moves at one allocation, as a share; more while little was seen."""
        return self.law.noise

    def see(self, measured: Measurement, *, recalled: bool = False) -> Bools:
        """Remember one interval, and say where it was worth it, ``[N]``. Where it says nothing of memory it is passed
        over: NaN, nothing delivered, or killed, when the slots in force are no longer those that took the memory. Of a
        shared pool nobody knows who ran beside whom: such intervals count until there is one with slots of its own for
        every stage.

        Args:
            measured: the interval.
            recalled: it was in an earlier run, after no interval that is known.
        """
        pooled = measured.pool > 0
        slots = np.where(pooled[:, None], ran_at_once(measured), measured.slots) * measured.present
        used = measured.memory_used - measured.memory_queued
        good = np.isfinite(used) & (used >= 0) & np.isfinite(slots).all(axis=1)
        good &= (measured.delivered > 0) & ~measured.killed
        if not recalled:
            room = room_of_slot(measured)
            self._room = np.where(good[:, None] & np.isfinite(room), room, self._room)
            self._see_pool(measured, good & pooled)
            at_work = np.maximum(
                np.where(measured.present, np.nan_to_num(measured.busy), 0.0).sum(axis=1), 1.0
            )
            took = (used - np.nan_to_num(measured.memory_base)) / at_work
            each = np.where(good, took / np.maximum(np.nan_to_num(measured.memory_limit), 1.0), 0.0)
            self._each = np.maximum(self._each, each)
        # Of a single stage it is known whose slots took it.
        good &= ~pooled | self._loose | (self._sums.count == 0) | (measured.counts == 1)
        total = np.where(pooled, measured.pool, slots.sum(axis=1))
        # The most that was held in an interval whose slots were fewer than before is what those before held. Where
        # nothing is watched it counts all the same, as a margin.
        if not recalled:
            good &= ~measured.watched | (total >= SHRUNK * self._before)
            self._before = np.where(np.isfinite(total), total, self._before)
        better = good & ~pooled & self._loose
        if better.any():
            self._sums.forget(better)
        first = good & (self._sums.count == 0)
        self._loose = np.where(first, pooled, self._loose)
        self._told = np.where(first, np.isfinite(measured.memory_base), self._told)
        self._base = np.where(first, np.nan_to_num(measured.memory_base), self._base)
        self._watched = np.where(good, measured.watched, self._watched)
        rows = np.flatnonzero(good)
        # At the least a byte, for a base that is no less than all there is cannot be right.
        self._sums.add(rows, self._columns(slots)[rows], np.maximum(used - self._base, 1.0)[rows])
        self._law = None
        return np.asarray(good)

    def _see_pool(self, measured: Measurement, good: Bools) -> None:
        """Remember what the largest pool takes, for when a job returns to it."""
        self._pool_age += 1.0
        self._pool[measured.killed | (self._pool_age > LATELY)] = 0.0
        took = np.nan_to_num(measured.memory_used - measured.memory_base)
        again = good & (measured.pool == self._pool)
        fresh = good & (measured.pool > self._pool)
        most = np.where(again, np.maximum(self._pool_took, took), took)
        self._pool_took = np.where(again | fresh, most, self._pool_took)
        self._pool = np.where(fresh, measured.pool, self._pool)
        self._pool_age[again | fresh] = 0.0

    def _columns(self, slots: Floats) -> Floats:
        """``[N, ..., S + 1]`` slots, and 1 for a base that was not measured."""
        base = np.broadcast_to(~self._told.reshape(-1, *[1] * (slots.ndim - 1)), (*slots.shape[:-1], 1))
        return np.concatenate([slots, base], axis=-1)

    def bound(self, slots: Floats, pool: Floats, measured: Measurement) -> Floats:
        """Bytes that an allocation takes at worst, ``[N]``; infinity where nothing was seen yet.

        Args:
            slots: ``[N, S]`` slots of each stage (0 for absent ones).
            pool: ``[N]`` slots shared instead; 0 for slots per stage.
            measured: the interval just measured, for what waits in queues.
        """
        return self.bounds(slots[:, None], pool[:, None], measured)[:, 0]

    def bounds(self, slots: Floats, pool: Floats, measured: Measurement) -> Floats:
        """The same of K allocations for each job, ``[N, K]``.

        Args:
            slots: ``[N, K, S]``; pool: ``[N, K]``.
            measured: the interval just measured.
        """
        pooled = pool > 0
        queued = queues_at_worst(measured, slots, pool, self._room)
        if not pooled.any():
            return np.asarray(self._of_slots(slots, measured) + queued)
        worst = self._of_slots(np.where(pooled[..., None], 0.0, slots), measured)
        columns = np.flatnonzero(pooled.any(axis=0))
        # All slots of the pool in one stage, for every stage.
        alone = (
            pool[:, columns, None, None] * (np.eye(slots.shape[2]) * measured.present[:, None, :])[:, None]
        )
        of_pools = self._of_slots(alone.reshape(len(slots), -1, slots.shape[2]), measured)
        of_pools = of_pools.reshape(len(slots), len(columns), -1).max(axis=2)
        if self._watched.any():
            shares = shares_at_work(measured)
            spread_out = self._of_slots(pool[:, columns, None] * shares[:, None], measured)
            of_pools = np.where(self._watched[:, None], np.minimum(of_pools, spread_out), of_pools)
        worst[:, columns] = np.where(pooled[:, columns], of_pools, worst[:, columns])
        worst += queued
        # A pool that ran, or a larger one, takes what that was seen to take, give or take the noise of both intervals.
        seen = measured.memory_base + self._pool_took * (1.0 + 2.0 * self.law.margin)
        same = pooled & (self._pool[:, None] >= pool) & np.isfinite(seen)[:, None]
        return np.where(same, np.minimum(worst, seen[:, None]), worst)

    def _of_slots(self, slots: Floats, measured: Measurement) -> Floats:
        """``[N, K]`` bytes at worst of ``[N, K, S]`` slots, without queues.

        The law takes working sets to be normal, but none is negative: with n times the slots in force (of a pool: one a
        stage) at every stage at most, memory is n times theirs at most.
        """
        there = np.where((measured.pool > 0)[:, None], 1.0, measured.slots) * measured.present
        wanted, now = self._columns(slots), self._columns(there)[:, None]
        start = self.law.bound(now)
        times = np.divide(wanted, now, out=np.where(wanted > 0, np.inf, 0.0), where=now > 0)
        at_most = start * times.max(axis=2, initial=TINY)
        return np.asarray(self._base[:, None] + np.fmin(self.law.bound(wanted), at_most))


def queues_at_worst(measured: Measurement, slots: Floats, pool: Floats, room: Floats) -> Floats:
    """``[N, K]`` bytes waiting when every queue is full: room grows with the slots of the stage before it.

    Args:
        measured: the interval just measured.
        slots: ``[N, K, S]``; pool: ``[N, K]``.
        room: ``[N, S]`` bytes that may wait for each slot, as seen before. Where nothing waits now that or a block.
    """
    pooled = pool > 0
    then = slots
    if pooled.any():
        then = np.where(pooled[..., None], np.minimum(_at_work(measured)[:, None], pool[..., None]), slots)
    each = room_of_slot(measured)
    each = np.where(np.isfinite(each), each, np.maximum(room, np.nan_to_num(measured.block_bytes)))
    full = (np.where(measured.present, each, 0.0)[:, None] * then).sum(axis=2)
    # What waits already goes on waiting until it is taken, whatever the slots.
    return np.asarray(np.maximum(full, np.nan_to_num(measured.memory_queued)[:, None]))


def room_of_slot(measured: Measurement) -> Floats:
    """``[N, S]`` bytes that may wait behind a stage for each of its slots; NaN where too few wait to tell."""
    now = np.where((measured.pool > 0)[:, None], _at_work(measured), np.maximum(measured.slots, 1.0))
    fill = np.nan_to_num(measured.queue_fill)
    full = np.nan_to_num(measured.queued_bytes) / np.maximum(fill, TELLING)
    return np.where(fill > TELLING, full / now, np.nan)


def _at_work(measured: Measurement) -> Floats:
    return np.maximum(np.nan_to_num(measured.busy), 1.0)


def ran_at_once(measured: Measurement) -> Floats:
    """``[N, S]`` slots of a shared pool that worked for each stage, on average; at least a tenth of one."""
    ran = np.clip(np.nan_to_num(measured.busy), 0.1, np.maximum(measured.pool, 1.0)[:, None])
    return np.where(measured.present, ran, 0.0)


def shares_at_work(measured: Measurement) -> Floats:
    """``[N, S]`` part of all slots at work that each stage has, on average."""
    ran = np.where(measured.pool[:, None] > 0, ran_at_once(measured), np.nan_to_num(measured.busy))
    ran = np.where(measured.present, np.maximum(ran, 0.1), 0.0)
    return np.asarray(ran / ran.sum(axis=1, keepdims=True))


def in_use(measured: Measurement) -> Floats:
    """``[N, S]`` slots that each stage has, or of a shared pool about as many as ran at once."""
    pooled = (measured.pool > 0)[:, None]
    ran = np.minimum(measured.pool[:, None], np.ceil(np.nan_to_num(measured.busy)))
    return np.where(pooled, ran, measured.slots) * measured.present
