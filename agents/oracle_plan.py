"""The best allocation at every time of an episode: between resizes, and anew now and then while costs drift. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from intune.agents.oracle_search import MARGIN, best
from intune.envs.jobs import Bools, Floats, Ints, Jobs

EVERY = 8
"""Intervals after which a job whose costs drift is looked at again."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The best of N jobs over T intervals; K different allocations at most.

    Attributes:
        slots: ``[N, K, S]``; pool: ``[N, K]``.
        takes: ``[N, K]`` bytes that it takes at most; room: ``[N, K]`` bytes there are where it is the best.
        which: ``[N, T]`` the number, 0 to K - 1, of the allocation in each interval.
        rate: ``[N, T]`` rows/s of the best allocation, without chance; 0 where none fits into memory.
        feasible: ``[N, T]`` whether any allocation fits into memory.
        cpus: ``[N, T]`` CPUs; memory: ``[N, T]`` memory as a multiple of that at first.
    """

    slots: Floats
    pool: Floats
    takes: Floats
    room: Floats
    which: Ints
    rate: Floats
    feasible: Bools
    cpus: Floats
    memory: Floats

    def share(self, delivered: Floats, step: int) -> Floats:
        """``[N]`` rows/s `delivered` in the interval `step` / those of the best; NaN where no allocation fits."""
        best = self.rate[:, step]
        share: Floats = np.divide(delivered, best, out=np.full(len(best), np.nan), where=best > 0)
        return share


def plan(jobs: Jobs, steps: int, *, margin: float = MARGIN) -> Plan:
    """The best of `jobs` over `steps` intervals.

    Under drift the rate between two looks is interpolated in its logarithm.

    Args:
        jobs: N jobs.
        steps: T.
        margin: standard deviations of memory noise to survive.
    """
    count = len(jobs)
    time = np.arange(steps) * jobs.interval[:, None]
    segment = (time[:, :, None] >= jobs.event_time[:, None, :]).sum(axis=2)
    drifting = (jobs.drift != 0.0).any(axis=1)
    look = _looks(segment, drifting)
    which = look.cumsum(axis=1) - 1
    job, step = np.nonzero(look)
    ones = np.ones((count, 1))
    cpus = np.take_along_axis(np.concatenate([ones, jobs.event_cpus], axis=1), segment, axis=1)
    memory = np.take_along_axis(np.concatenate([ones, jobs.event_memory], axis=1), segment, axis=1)
    grown = np.clip(jobs.drift[job] * time[job, step][:, None], -3.0, 3.0)
    found = best(jobs.take(job), cpus[job, step], memory[job, step], slower=np.exp(grown), margin=margin)
    width = int(which.max()) + 1
    slots = np.ones((count, width, jobs.stages))
    pool, takes, room = (np.zeros((count, width)) for _ in range(3))
    slots[job, which[job, step]] = found.slots
    pool[job, which[job, step]] = found.pool
    takes[job, which[job, step]] = found.takes
    room[job, which[job, step]] = found.room
    rate = np.zeros((count, width))
    rate[job, which[job, step]] = found.rate
    feasible = np.zeros((count, width), dtype=bool)
    feasible[job, which[job, step]] = found.feasible
    fits = np.take_along_axis(feasible, which, axis=1)
    rates = np.take_along_axis(rate, which, axis=1)
    for i in np.flatnonzero(drifting):
        rates[i] = _interpolated(look[i], segment[i], rate[i])
    return Plan(
        slots=slots,
        pool=pool,
        takes=takes,
        room=room,
        which=which,
        rate=np.where(fits, rates, 0.0),
        feasible=fits,
        cpus=np.maximum(np.floor(jobs.cpus.sum(axis=1, keepdims=True) * cpus + 1e-9), 1.0),
        memory=memory,
    )


def _looks(segment: Ints, drifting: Bools) -> Bools:
    """``[N, T]`` what is looked at: the first interval of a segment; under drift also its last and every few."""
    look = np.ones(segment.shape, dtype=bool)
    look[:, 1:] = segment[:, 1:] != segment[:, :-1]
    regular = np.arange(segment.shape[1]) % EVERY == 0
    ends = np.ones(segment.shape, dtype=bool)
    ends[:, :-1] = look[:, 1:]
    return np.asarray(look | (drifting[:, None] & (regular[None, :] | ends)))


def _interpolated(look: NDArray[np.bool_], segment: Ints, rate: Floats) -> Floats:
    """Rates of one job at every interval, from those at the intervals looked at, segment by segment."""
    steps = np.arange(len(look))
    at = np.flatnonzero(look)
    logs = np.log(np.maximum(rate[: len(at)], 1e-300))
    out = np.zeros(len(look))
    for part in np.unique(segment):
        inside = segment == part
        mine = (segment[at] == part) & (rate[: len(at)] > 0)
        if mine.any():
            out[inside] = np.exp(np.interp(steps[inside], at[mine], logs[mine]))
    return out
