"""How much memory an allocation may take at worst, learnt from what was seen. Pure bounds over a short record.

Resident memory is linear in the slots (base + sum of working sets), with unknown, non-negative coefficients.
A bound for slots never tried follows from two records without knowing the coefficients: if going from record a
to record b added slots to every stage that is to grow, then going on in the same direction by a factor costs at
most that factor times what it cost before. The virtual record "no slots, no memory" makes any single record
usable: three times the slots of every stage take at most three times all memory in use.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement

RECORDS = 7
"""Past intervals kept per job: enough for the directions that were tried, few enough for all pairs of them."""

PRIOR_NOISE = 0.08
"""Spread of resident memory at one allocation, as a share, before it was seen: allocators and skewed data."""

PRIOR_WEIGHT = 6.0
"""Observations that the prior spread counts for."""

CERTAINTY = 5.0
"""Standard deviations kept clear of the limit: about one in 300,000 for normal noise."""


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

    @property
    def noise(self) -> Floats:
        """``[N]`` standard deviation of memory at one allocation, as a share; more while little was seen."""
        return np.asarray(np.sqrt(self._deviation / self._seen) * (1.0 + 1.0 / np.sqrt(self._seen)))

    def see(self, measured: Measurement) -> None:
        """Remember one interval. Where it says nothing about memory (NaN, nothing delivered) it is passed over."""
        jobs = np.arange(len(measured))
        slots = in_use(measured)
        used = measured.memory_used - measured.memory_queued
        base = np.minimum(np.nan_to_num(measured.memory_base), used)
        fresh = self._times[:, 1:].max(axis=1) == 0
        self._used[:, 0] = np.where(fresh, base, np.minimum(self._used[:, 0], base))
        good = np.isfinite(used) & (used > 0) & np.isfinite(slots).all(axis=1)
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

    def bound(self, slots: Floats, pool: Floats, measured: Measurement) -> Floats:
        """Bytes that an allocation takes at worst, ``[N]``; infinity where nothing was seen yet.

        Of a pool, all slots may be in the stage with the largest working set at some moment.

        Args:
            slots: ``[N, S]`` slots of each stage (0 for absent ones).
            pool: ``[N]`` slots shared instead; 0 for slots per stage.
            measured: the interval just measured, for what waits in queues.
        """
        queued = queues_at_worst(measured, slots, pool)
        pooled = pool > 0
        if not pooled.any() and not measured.pool.any():
            return self._slots_bound(slots) + queued
        result = self._slots_bound(np.where(pooled[:, None], 0.0, slots))
        present = measured.present
        worst = np.zeros(len(slots))
        for stage in range(slots.shape[1]):
            alone = np.zeros_like(slots)
            alone[:, stage] = np.where(present[:, stage], pool, 0.0)
            worst = np.maximum(worst, self._slots_bound(alone))
        worst = np.where(pooled, worst, result) + queued
        # A pool that runs already takes what it was seen to take, give or take the noise.
        seen = measured.memory_base + (measured.memory_used - measured.memory_base) * (
            1.0 + 2.0 * self.certainty * self.noise
        )
        same = pooled & (measured.pool >= pool) & np.isfinite(seen)
        return np.where(same, np.minimum(worst, seen), worst)

    def _slots_bound(self, slots: Floats) -> Floats:
        exists = self._times > 0
        wanted = slots[:, None, None, :]
        a = self._slots[:, :, None, :]
        b = self._slots[:, None, :, :]
        step = b - a
        # How far along a -> b one has to go for every stage to have what is wanted.
        needed = wanted - a
        with np.errstate(divide="ignore", invalid="ignore"):
            along = np.where(step > 0.1, needed / step, np.where(needed <= 1e-9, 0.0, np.inf))
        # A stage that shrinks from a to b would have to be paid for backwards: not usable.
        along = np.where(step < -1e-9, np.inf, along)
        factor = np.maximum(along.max(axis=3), 0.0)
        usable = exists[:, :, None] & exists[:, None, :] & np.isfinite(factor)
        factor = np.where(usable, factor, 0.0)
        base = self._used[:, :1]
        added = self._used - base
        low = added[:, :, None]
        high = added[:, None, :]
        noise = self.noise[:, None]
        # The mean of several looks at one allocation is known better than one look.
        sure = added * noise / np.sqrt(np.maximum(self._times, 1.0))
        spread = np.sqrt(((1.0 - factor) * sure[:, :, None]) ** 2 + (factor * sure[:, None, :]) ** 2)
        # What was seen was off, and what comes will be: two independent errors.
        at = low + factor * np.maximum(high - low, 0.0)
        value = np.where(
            usable, at + self.certainty * np.sqrt(spread**2 + (at * noise[:, :, None]) ** 2), np.inf
        )
        best: Floats = value.reshape(len(slots), -1).min(axis=1)
        known = np.isfinite(self.largest)
        if known.any():
            # From any record on, each slot more takes the largest working set at worst.
            more = np.maximum(slots[:, None, :] - self._slots, 0.0).sum(axis=2)
            dear = np.where(known, self.largest, 0.0)[:, None] * (1.0 + self.certainty * noise)
            at_one = added + more * dear
            onward = at_one + self.certainty * np.sqrt(sure**2 + (at_one * noise) ** 2)
            best = np.minimum(best, np.where(exists & known[:, None], onward, np.inf).min(axis=1))
        return base[:, 0] + best


def queues_at_worst(measured: Measurement, slots: Floats, pool: Floats) -> Floats:
    """``[N]`` bytes waiting when every queue is full: room grows with the slots of the stage before it."""
    now = np.where(
        (measured.pool > 0)[:, None], np.maximum(measured.busy, 1.0), np.maximum(measured.slots, 1.0)
    )
    then = np.where((pool > 0)[:, None], np.minimum(np.maximum(measured.busy, 1.0), pool[:, None]), slots)
    fill = np.nan_to_num(measured.queue_fill)
    room = np.where(
        fill > 0.02,
        np.nan_to_num(measured.queued_bytes) / np.maximum(fill, 0.02),
        np.nan_to_num(measured.block_bytes) * now,
    )
    full = (room * then / now * measured.present).sum(axis=1)
    return np.asarray(np.maximum(full, 0.0))


def in_use(measured: Measurement) -> Floats:
    """``[N, S]`` slots that each stage has, or of a shared pool about as many as ran at once."""
    pooled = (measured.pool > 0)[:, None]
    ran = np.minimum(measured.pool[:, None], np.ceil(np.nan_to_num(measured.busy)))
    return np.where(pooled, ran, measured.slots) * measured.present
