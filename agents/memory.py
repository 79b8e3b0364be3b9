"""How much memory an allocation may take at worst, learnt from what was seen. Pure bounds over a short record.

Resident memory is linear in the slots (base + sum of working sets), with unknown, non-negative coefficients.
A bound for slots never tried follows from two records without knowing the coefficients: if going from record a
to record b added slots to every stage that is to grow, then going on in the same direction by a factor costs at
most that factor times what it cost before. The virtual record "no slots, no memory" makes any single record
usable: three times the slots of every stage take at most three times all memory in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import Measurement

RECORDS = 7
"""Past intervals kept per job: enough for the directions that were tried, few enough for all pairs of them."""

PRIOR_NOISE = 0.08
"""Spread of resident memory at one allocation, as a share, before it was seen: allocators and skewed data."""

PRIOR_WEIGHT = 6.0
"""Observations that the prior spread counts for."""

CERTAINTY = 5.0
"""Standard deviations kept clear of the limit: about one in 300,000 for normal noise."""

FAR = 1e15
"""Steps from one record to another beyond which an allocation is out of their reach."""

TOGETHER = 256
"""Allocations looked at in one go, of all jobs: more no longer saves calls but falls out of the cache."""


SEEN = 0.9
"""Part of the certainty kept above what was seen of as many slots: nothing is extrapolated, so one error less."""


class MemoryRecord:
    """What N jobs took with the slots they had.

    Args:
        jobs, stages: N and S.
        certainty: standard deviations of noise to allow for.

    Attributes:
        largest: ``[N]`` bytes of the largest working set of any stage; infinity until one slot was shared by all.
    """

    def __init__(self, jobs: int, stages: int, *, certainty: float = CERTAINTY) -> None:
        self.certainty = certainty
        # Record 0 is the virtual one; the others are overwritten in turn, the nearest to a new one first.
        self._slots: Floats = np.zeros((jobs, RECORDS + 1, stages))
        self._used: Floats = np.zeros((jobs, RECORDS + 1))
        self._times: Floats = np.zeros((jobs, RECORDS + 1))
        self._times[:, 0] = 1.0
        self._deviation: Floats = np.full(jobs, PRIOR_WEIGHT * PRIOR_NOISE**2)
        self._seen: Floats = np.full(jobs, float(PRIOR_WEIGHT))
        self._next = np.zeros(jobs, dtype=np.int64)
        self.largest: Floats = np.full(jobs, np.inf)
        # Whether record 0 is what was measured, not merely less than that.
        self._based: Bools = np.zeros(jobs, dtype=bool)
        self._pairs: _Pairs | None = None

    def forget(self, rows: Any) -> None:
        """New jobs at `rows`."""
        self._slots[rows] = 0.0
        self._used[rows] = 0.0
        self._times[rows] = 0.0
        self._times[rows, 0] = 1.0
        self._deviation[rows] = PRIOR_WEIGHT * PRIOR_NOISE**2
        self._seen[rows] = PRIOR_WEIGHT
        self._next[rows] = 0
        self.largest[rows] = np.inf
        self._based[rows] = False
        self._pairs = None

    @property
    def noise(self) -> Floats:
        """``[N]`` standard deviation of memory at one allocation, as a share; more while little was seen."""
        return np.asarray(np.sqrt(self._deviation / self._seen) * (1.0 + 1.0 / np.sqrt(self._seen)))

    def see(self, measured: Measurement) -> None:
        """Remember one interval. Where it says nothing about memory it is passed over: NaN, nothing delivered, or
        killed, when the slots in force are no longer those that took the memory."""
        jobs = np.arange(len(measured))
        slots = in_use(measured)
        used = measured.memory_used - measured.memory_queued
        good = np.isfinite(used) & (used > 0) & np.isfinite(slots).all(axis=1)
        good &= (measured.delivered > 0) & ~measured.killed
        used = np.where(good, used, 1.0)
        base = np.clip(np.nan_to_num(measured.memory_base), 0.0, used)
        fresh = self._times[:, 1:].max(axis=1) == 0
        lowest = np.where(fresh, base, np.minimum(self._used[:, 0], base))
        self._used[:, 0] = np.where(good, lowest, self._used[:, 0])
        told = np.isfinite(measured.memory_base) & (fresh | self._based)
        self._based = np.where(good, told, self._based)
        # A pool has run every stage at some moment, so what it took at most is no less than the largest working
        # set; one slot shared by all is exactly that. More it does not say: who ran beside whom is chance.
        shared = good & (measured.pool > 0)
        self.largest = np.where(shared, np.minimum(self.largest, used - base), self.largest)
        good &= measured.pool == 0
        same = (np.abs(self._slots - slots[:, None, :]) < 0.25).all(axis=2) & (self._times > 0)
        same[:, 0] = False
        known = same.any(axis=1)
        at = np.where(known, same.argmax(axis=1), 1 + self._next % RECORDS)
        times = np.where(known, self._times[jobs, at], 0.0)
        mean = self._used[jobs, at]
        # Deviations from what was seen with the same slots before tell how much memory moves by itself.
        off = np.where(known, (used - mean) / np.maximum(mean - self._used[:, 0], 0.05 * mean + 1.0), 0.0)
        counts = good & known
        self._deviation[counts] += (off**2 * times / (times + 1.0))[counts]
        self._seen[counts] += 1.0
        kept = np.minimum(times, 7.0)
        value = np.where(known, (mean * kept + used) / (kept + 1.0), used)
        rows = jobs[good]
        self._slots[rows, at[good]] = slots[good]
        self._used[rows, at[good]] = value[good]
        self._times[rows, at[good]] = times[good] + 1.0
        self._next[good & ~known] += 1
        self._pairs = None

    def bound(self, slots: Floats, pool: Floats, measured: Measurement) -> Floats:
        """Bytes that an allocation takes at worst, ``[N]``; infinity where nothing was seen yet.

        Of a pool, all slots may be in the stage with the largest working set at some moment.

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
        queued = queues_at_worst(measured, slots, pool)
        if not pooled.any():
            return np.asarray(self._of_slots(slots) + queued)
        worst = self._of_slots(np.where(pooled[..., None], 0.0, slots))
        columns = np.flatnonzero(pooled.any(axis=0))
        # All slots of the pool in one stage, for every stage.
        alone = (
            pool[:, columns, None, None] * (np.eye(slots.shape[2]) * measured.present[:, None, :])[:, None]
        )
        of_pools = self._of_slots(alone.reshape(len(slots), -1, slots.shape[2]))
        of_pools = of_pools.reshape(len(slots), len(columns), -1).max(axis=2)
        worst[:, columns] = np.where(pooled[:, columns], of_pools, worst[:, columns])
        worst += queued
        # A pool that runs already takes what it was seen to take, give or take the noise.
        seen = measured.memory_base + (measured.memory_used - measured.memory_base) * (
            1.0 + 2.0 * self.certainty * self.noise
        )
        same = pooled & (measured.pool[:, None] >= pool) & np.isfinite(seen)[:, None]
        return np.where(same, np.minimum(worst, seen[:, None]), worst)

    def _of_slots(self, slots: Floats) -> Floats:
        """``[N, K]`` bytes at worst of ``[N, K, S]`` slots, without queues."""
        many = max(1, TOGETHER // max(len(slots), 1))
        if slots.shape[1] <= many:
            return self._some(slots)
        parts = [self._some(slots[:, at : at + many]) for at in range(0, slots.shape[1], many)]
        return np.concatenate(parts, axis=1)

    def _some(self, slots: Floats) -> Floats:
        pairs = self._known_pairs()
        base = self._used[:, :1]
        # How far along a -> b one has to go for every stage to have what is wanted.
        along = (slots[:, :, None, :] - pairs.start[:, None]) * pairs.inverse[:, None]
        factor = np.maximum(along.max(axis=3), pairs.least[:, None])
        usable = pairs.usable[:, None] & (factor < FAR)
        factor = np.where(usable, factor, 0.0)
        at = pairs.low[:, None] + factor * pairs.rise[:, None]
        spread = ((1.0 - factor) * pairs.sure_low[:, None]) ** 2 + (factor * pairs.sure_high[:, None]) ** 2
        noise = self.noise[:, None, None]
        # What was seen was off, and what comes will be: two independent errors.
        value = np.where(usable, at + self.certainty * np.sqrt(spread + (at * noise) ** 2), np.inf)
        best: Floats = value.min(axis=2)
        known = np.isfinite(self.largest)
        if known.any():
            # From any record on, each slot more takes the largest working set at worst.
            more = np.maximum(slots[:, :, None, :] - self._slots[:, None], 0.0).sum(axis=3)
            dear = np.where(known, self.largest, 0.0)[:, None, None] * (1.0 + self.certainty * noise)
            at = (self._used - base)[:, None] + more * dear
            onward = at + self.certainty * np.sqrt(self._sure()[:, None] ** 2 + (at * noise) ** 2)
            there = ((self._times > 0) & known[:, None])[:, None]
            best = np.minimum(best, np.where(there, onward, np.inf).min(axis=2))
        # Records may have been lucky, and the least of many bounds comes from the luckiest. But slots of every stage
        # that are at least r times a record's take at least r times what the record was seen to take.
        slots_then = self._slots[:, None]
        ratio = np.where(slots_then > 0, slots[:, :, None, :] / np.maximum(slots_then, 1e-9), np.inf).min(
            axis=3
        )
        ratio = np.where(np.isfinite(ratio) & (self._times > 0)[:, None], ratio, 0.0)
        seen = (ratio * (self._used - base)[:, None]).max(axis=2)
        least = seen * (1.0 + SEEN * self.certainty * self.noise[:, None])
        return np.asarray(base + np.maximum(best, least))

    def _sure(self) -> Floats:
        """``[N, R]`` by how much records may be off: the mean of several looks is known better than one look."""
        added = self._used - self._used[:, :1]
        return np.asarray(added * self.noise[:, None] / np.sqrt(np.maximum(self._times, 1.0)))

    def _known_pairs(self) -> _Pairs:
        if self._pairs is None:
            exists = self._times > 0
            step = self._slots[:, None, :, :] - self._slots[:, :, None, :]
            # A stage that shrinks from a to b would have to be paid for backwards: not usable.
            usable = exists[:, :, None] & exists[:, None, :] & (step >= -1e-9).all(axis=3)
            # Pairs that are of use to no job need not be looked at.
            first, second = np.nonzero(usable.any(axis=0))
            step = step[:, first, second]
            added, sure = self._used - self._used[:, :1], self._sure()
            self._pairs = _Pairs(
                start=self._slots[:, first] + 1e-9,
                inverse=np.where(step > 0.1, 1.0 / np.maximum(step, 0.1), FAR**2),
                usable=usable[:, first, second],
                # Where the base is not known, nothing says how much going back towards no slots frees.
                least=((first == 0) & ~self._based[:, None]).astype(np.float64),
                low=added[:, first],
                rise=np.maximum(added[:, second] - added[:, first], 0.0),
                sure_low=sure[:, first],
                sure_high=sure[:, second],
            )
        return self._pairs


@dataclass(frozen=True, slots=True)
class _Pairs:
    """P pairs (a, b) of records: ``[N, P, S]`` slots of a and 1 / (slots of b - those of a); ``[N, P]`` whether no
    stage shrinks from a to b, how far to go at least, bytes of a, bytes that b takes more, by how much either may
    be off."""

    start: Floats
    inverse: Floats
    usable: Bools
    least: Floats
    low: Floats
    rise: Floats
    sure_low: Floats
    sure_high: Floats


def queues_at_worst(measured: Measurement, slots: Floats, pool: Floats) -> Floats:
    """``[N, K]`` bytes waiting when every queue is full: room grows with the slots of the stage before it.

    Args:
        measured: the interval just measured.
        slots: ``[N, K, S]``; pool: ``[N, K]``.
    """
    ran = np.maximum(np.nan_to_num(measured.busy), 1.0)
    now = np.where((measured.pool > 0)[:, None], ran, np.maximum(measured.slots, 1.0))
    pooled = pool > 0
    then = slots
    if pooled.any():
        then = np.where(pooled[..., None], np.minimum(ran[:, None], pool[..., None]), slots)
    fill = np.nan_to_num(measured.queue_fill)
    room = np.where(
        fill > 0.02,
        np.nan_to_num(measured.queued_bytes) / np.maximum(fill, 0.02),
        np.nan_to_num(measured.block_bytes) * now,
    )
    each = np.where(measured.present, room / now, 0.0)
    full = (each[:, None] * then).sum(axis=2)
    # What waits already goes on waiting until it is taken, whatever the slots.
    return np.asarray(np.maximum(full, np.nan_to_num(measured.memory_queued)[:, None]))


def in_use(measured: Measurement) -> Floats:
    """``[N, S]`` slots that each stage has, or of a shared pool about as many as ran at once."""
    pooled = (measured.pool > 0)[:, None]
    ran = np.minimum(measured.pool[:, None], np.ceil(np.nan_to_num(measured.busy)))
    return np.where(pooled, ran, measured.slots) * measured.present
