"""What is kept of simulated jobs that an agent ran, and what each job came to. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intune.envs.jobs import Bools, Floats

Small = NDArray[np.float32]

REACHED = 0.95
"""Of the best rate: where an agent is said to have found the allocation."""
RECOVERED = 0.9
"""Of the new best rate: where it is said to have recovered from a resize."""


@dataclass(frozen=True, slots=True)
class Trace:
    """N jobs over T decisions, column k - 1 being the interval after decision k.

    Attributes:
        rate: ``[N, T]`` rows/s delivered / those of the best allocation at that time (without noise: may pass 1); NaN
            where no allocation fits into memory.
        weight: ``[N, T]`` the best allocation's rows/s, as a share of its mean over the job; 0 where there is none.
        memory: ``[N, T]`` bytes in use / limit; limit: ``[N, T]`` limit / that at first.
        slots: ``[N, T]`` slots in use / CPUs.
        killed: ``[N, T]`` the job ran out of memory in the interval.
        resized: ``[N, T]`` CPUs or memory are others than in the interval before.
        feasible: ``[N]`` some allocation fits into memory at every time.
    """

    rate: Small
    weight: Small
    memory: Small
    limit: Small
    slots: Small
    killed: Bools
    resized: Bools
    feasible: Bools

    def __len__(self) -> int:
        return len(self.feasible)

    @classmethod
    def joined(cls, parts: list[Trace]) -> Trace:
        """The jobs of several traces one after another."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What each of N jobs came to; NaN where a question does not arise.

    Attributes:
        at_5, at_10: share of the best rate at that decision; last: mean over the last tenth of the decisions.
        whole: rows delivered over the whole job / those of the best allocations, while there is one.
        regret: rows that were not delivered, in intervals of the best rate.
        kills: times out of memory; killed: 1 if ever. Of jobs for which a feasible allocation exists.
        memory: mean share of the limit in use; peak: the most. bytes: mean in use / limit at first.
        slots: mean slots in use / CPUs. These four of jobs for which some allocation fits into memory at some time.
        reached: decisions until `REACHED` of the best rate, if that came before the first resize.
        found: 1 if it did. Of jobs that had the chance.
        recovery: decisions from a resize to `RECOVERED` of the new best, mean over the job's resizes, those in which
            it did not come before the next resize or the end counting in full.
        recovered: share of its resizes in which it came.
    """

    at_5: Floats
    at_10: Floats
    last: Floats
    whole: Floats
    regret: Floats
    kills: Floats
    killed: Floats
    memory: Floats
    peak: Floats
    bytes: Floats
    slots: Floats
    reached: Floats
    found: Floats
    recovery: Floats
    recovered: Floats

    def as_columns(self) -> dict[str, Floats]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def outcomes(trace: Trace) -> Outcomes:
    """What the jobs of a trace came to."""
    steps = trace.rate.shape[1]
    rate = trace.rate.astype(np.float64)
    weight = trace.weight.astype(np.float64)
    nothing = np.full(len(trace), np.nan)
    possible = weight.any(axis=1)
    total = np.where(possible, weight.sum(axis=1), np.nan)
    kills = np.where(trace.feasible, trace.killed.sum(axis=1), np.nan)
    reached, found = _reached(trace)
    recovery, recovered = _recoveries(trace)
    return Outcomes(
        at_5=rate[:, 4] if steps >= 5 else nothing,
        at_10=rate[:, 9] if steps >= 10 else nothing,
        last=mean(rate[:, -max(steps // 10, 1) :].T),
        whole=np.nansum(rate * weight, axis=1) / total,
        regret=np.where(np.isnan(total), np.nan, np.nansum((1.0 - rate) * weight, axis=1)),
        kills=kills,
        killed=np.where(np.isnan(kills), np.nan, kills > 0),
        memory=np.where(possible, trace.memory.mean(axis=1, dtype=np.float64), np.nan),
        peak=np.where(possible, trace.memory.max(axis=1).astype(np.float64), np.nan),
        bytes=np.where(possible, (trace.memory * trace.limit).mean(axis=1, dtype=np.float64), np.nan),
        slots=np.where(possible, trace.slots.mean(axis=1, dtype=np.float64), np.nan),
        reached=reached,
        found=found,
        recovery=recovery,
        recovered=recovered,
    )


def mean(values: Floats) -> Floats:
    """Along the first axis, without those that are NaN; NaN where nothing else is."""
    there = ~np.isnan(values)
    total, count = np.where(there, values, 0.0).sum(axis=0), there.sum(axis=0)
    means: Floats = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return means


def _reached(trace: Trace) -> tuple[Floats, Floats]:
    """Decisions until the allocation was found, NaN if it was not, and whether it was."""
    before = ~np.logical_or.accumulate(trace.resized, axis=1)
    good = (trace.rate >= REACHED) & before
    first = np.where(good.any(axis=1), good.argmax(axis=1) + 1.0, np.nan)
    asked = before[:, 0] & ~np.isnan(trace.rate[:, 0])
    return np.where(asked, first, np.nan), np.where(asked, ~np.isnan(first), np.nan)


def _recoveries(trace: Trace) -> tuple[Floats, Floats]:
    """Mean decisions to recover from a resize, and the share of resizes recovered from; NaN without a resize."""
    job, at = np.nonzero(trace.resized)
    if not len(job):
        return np.full(len(trace), np.nan), np.full(len(trace), np.nan)
    steps = trace.rate.shape[1]
    # The next resize of the same job, or the end.
    following = np.append(np.where(job[1:] == job[:-1], at[1:], steps), steps)
    possible = ~np.isnan(trace.rate[job, at])
    job, at, following = job[possible], at[possible], following[possible]
    took = following - at + 0.0
    came = np.zeros(len(job))
    good = trace.rate >= RECOVERED
    for ahead in range(int(took.max(initial=0.0))):
        step = at + ahead
        inside = (step < following) & (came == 0)
        hit = inside & good[job, np.minimum(step, steps - 1)]
        took[hit] = ahead + 1.0
        came[hit] = 1.0
    count = np.bincount(job, minlength=len(trace)).astype(np.float64)
    many = np.where(count > 0, count, np.nan)
    decisions: Any = np.bincount(job, weights=took, minlength=len(trace)) / many
    return decisions, np.bincount(job, weights=came, minlength=len(trace)) / many
