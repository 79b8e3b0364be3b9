"""The world around simulated jobs, drawn for a whole episode at its start: noise, hiccups, losses, drift, resizes.

All of it happens whatever an agent does: it depends on the job, its random numbers and the time alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from intune.envs.jobs import ABSENT_WAIT, Floats, Jobs, slot_limit

LONGEST_LOSS = 1024
"""Intervals after which a worker that died is back at the latest."""

CHANNELS_PER_STAGE = 4
CHANNELS_PER_JOB = 4


def channels(stages: int) -> int:
    """Random numbers that one interval of one job needs."""
    return CHANNELS_PER_STAGE * stages + CHANNELS_PER_JOB


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
class Coming:
    """What the interval to come will be like.

    Attributes:
        conditions: of the world.
        measured: ``[N, S]`` by how much a task's time is misjudged (logarithm, of one task).
        slot_limit: ``[N]`` slots that may be given out altogether.
    """

    conditions: Conditions
    measured: Floats
    slot_limit: Floats

    def replaced(self, rows: Any, other: Coming, chosen: Any = slice(None)) -> Coming:
        """The same in which the jobs at `rows` are those of `other` at `chosen`; may change this one."""
        mine, new = self.conditions, other.conditions
        # Measurements hold these two, which are not changed in place.
        cpus, slot_limit = mine.cpus.copy(), self.slot_limit.copy()
        for had, given in (
            (mine.cpu, new.cpu),
            (mine.wait, new.wait),
            (mine.lost, new.lost),
            (mine.slot_bytes, new.slot_bytes),
            (cpus, new.cpus),
            (mine.memory, new.memory),
            (self.measured, other.measured),
            (slot_limit, other.slot_limit),
        ):
            had[rows] = given[chosen]
        return Coming(conditions=replace(mine, cpus=cpus), measured=self.measured, slot_limit=slot_limit)


class World(Protocol):
    """Conditions of N jobs, interval by interval: a `Tape`, or a `Course`."""

    def at(self, steps: Any) -> Coming:
        """The interval `steps` of every job, ``[N]``; beyond the end the last one again."""
        ...

    def put(self, rows: Any, other: Any, chosen: Any = ...) -> None:
        """Overwrite the jobs at `rows` by those of `other`, which is of the same class, at `chosen`."""
        ...


@dataclass(frozen=True, slots=True)
class Tape:
    """Conditions of T intervals of N jobs.

    Attributes:
        data: ``[N, T, 4 S + 4]``: what one job needs for one interval lies together. Of every stage processor and
            waiting seconds per row, working set and how a task's time is misjudged; then the share of slots lost,
            CPUs, memory as a multiple of that at first, and slots that may be given out.
    """

    data: Floats

    @property
    def steps(self) -> int:
        """Intervals recorded, T."""
        return int(self.data.shape[1])

    def at(self, steps: Any) -> Coming:
        """The interval `steps` of every job, ``[N]``; beyond the end the last one again."""
        count, length, width = self.data.shape
        if count == 1:
            found = self.data[0, min(int(steps[0]), length - 1)].copy()[:, None]
        else:
            where = np.minimum(steps, length - 1)
            where += np.arange(0, count * length, length)
            # Stage by stage in memory, as `model.advance` goes through them.
            found = np.ascontiguousarray(self.data.reshape(-1, width).take(where, axis=0).T)
        stages = (width - CHANNELS_PER_JOB) // CHANNELS_PER_STAGE
        last = 4 * stages
        return Coming(
            conditions=Conditions(
                cpu=found[:stages].T,
                wait=found[stages : 2 * stages].T,
                slot_bytes=found[2 * stages : 3 * stages].T,
                lost=found[last],
                cpus=found[last + 1],
                memory=found[last + 2],
            ),
            measured=found[3 * stages : last].T,
            slot_limit=found[last + 3],
        )

    def put(self, rows: Any, other: Tape, chosen: Any = slice(None)) -> None:
        """Overwrite the jobs at `rows` by those of `other` at `chosen`."""
        self.data[rows] = other.data[chosen]

    def widened(self, stages: int) -> Tape:
        """The same for jobs of `stages` stages, the added ones absent (see `Jobs.widened`)."""
        had = (self.data.shape[2] - CHANNELS_PER_JOB) // CHANNELS_PER_STAGE
        made = np.zeros((*self.data.shape[:2], channels(stages)))
        for part in range(4):
            made[:, :, part * stages : part * stages + had] = self.data[:, :, part * had : (part + 1) * had]
        made[:, :, stages + had : 2 * stages] = ABSENT_WAIT
        made[:, :, 4 * stages :] = self.data[:, :, 4 * had :]
        return Tape(data=made)


def quiet(jobs: Jobs, steps: int) -> Tape:
    """A world without chance: only drift and resizes."""
    return record(jobs, np.zeros((len(jobs), steps, channels(jobs.stages)), dtype=np.float32), chance=False)


def record(jobs: Jobs, normals: NDArray[Any], *, chance: bool = True) -> Tape:
    """The conditions of an episode.

    - *Noise*: a stage's time per row is log-normal around its median, anew each interval; so is a working set.
    - *Hiccups*: with probability ``hiccup_rate x interval`` a stage takes ``hiccup_factor`` times as long.
    - *Losses*: with probability ``loss_rate x interval`` a worker dies; one CPU's share of all slots is missing
      for ``loss_seconds`` from the interval's start on.
    - *Drift*: ``exp(drift x time)``, the exponent cut to -3 ... 3. *Resizes*: as the job's events say.

    Args:
        jobs: N jobs.
        normals: ``[N, T, channels(S)]`` standard normal numbers.
        chance: False for drift and resizes only.
    """
    count, steps, _ = normals.shape
    width = jobs.stages
    time = np.arange(steps) * jobs.interval[:, None]
    data = np.empty((count, steps, channels(width)))
    cpu, wait, slot_bytes, measured = (data[:, :, at * width : (at + 1) * width] for at in range(4))
    lost, cpus, memory, limit = (data[:, :, 4 * width + at] for at in range(4))
    cpus[:], memory[:] = _sizes(jobs, time)
    limit[:] = slot_limit(cpus, jobs.slots_per_cpu[:, None], jobs.present.sum(axis=1)[:, None])
    slower: NDArray[Any] | float = 1.0
    skew: NDArray[Any] | float = 1.0
    lost[:], measured[:] = 0.0, 0.0
    if jobs.drift.any():
        slower = np.exp(np.clip(jobs.drift[:, None, :] * time[:, :, None], -3.0, 3.0))
    if chance:
        # Single precision will do for what is random.
        part = [normals[:, :, at * width : (at + 1) * width].astype(np.float32) for at in range(4)]
        job = normals[:, :, 4 * width :]
        if jobs.noise.any():
            slower = slower * np.exp(_of(jobs.noise) * part[0])
        if jobs.hiccup_rate.any():
            often = _of(jobs.hiccup_rate * jobs.interval)
            stumbles = _uniform(part[1], part[2]) < often
            slower = slower * np.where(stumbles, _of(jobs.hiccup_factor), np.float32(1.0))
        if jobs.measurement_noise.any():
            np.multiply(_of(jobs.measurement_noise), part[3], out=measured)
        if jobs.loss_rate.any():
            dies = _uniform(job[:, :, 0], job[:, :, 1]) < (jobs.loss_rate * jobs.interval)[:, None]
            lasts = jobs.loss_seconds / jobs.interval
            missing = np.where(dies, np.minimum(lasts, 1.0)[:, None], 0.0)
            for later in range(1, min(intervals_of_loss(lasts), steps)):
                missing[:, later:] += np.where(dies[:, :-later], part_of_loss(lasts, later)[:, None], 0.0)
            lost[:] = share_lost(missing, cpus)
        if jobs.memory_noise.any():
            skew = np.exp(jobs.memory_noise[:, None] * job[:, :, 2])[:, :, None]
    np.multiply(jobs.cpu[:, None, :], slower, out=cpu)
    np.multiply(jobs.wait[:, None, :], slower, out=wait)
    np.multiply(jobs.slot_bytes[:, None, :], skew, out=slot_bytes)
    return Tape(data=data)


def intervals_of_loss(lasts: Floats) -> int:
    """Intervals in which a worker that dies is missing, of the job where it is longest; `lasts` is in intervals."""
    return math.ceil(min(float(lasts.max(initial=0.0)), LONGEST_LOSS))


def part_of_loss(lasts: Floats, later: int) -> Floats:
    """Part of the interval that comes `later` for which a worker that dies in this one is missing."""
    return np.minimum(np.maximum(lasts - later, 0.0), 1.0)


def share_lost(missing: Floats, cpus: Floats) -> Floats:
    """Share of all slots that is missing with so many workers; one worker is always left."""
    workers = np.maximum(cpus, 2.0)
    return np.minimum(missing / workers, 1.0 - 1.0 / workers)


def _sizes(jobs: Jobs, time: Floats) -> tuple[Floats, Floats]:
    """CPUs that there are at `time` ``[N, T]``, and memory as a multiple of that at first."""
    total = jobs.cpus.sum(axis=1, keepdims=True)
    if not np.isfinite(jobs.event_time).any():
        return np.maximum(np.floor(total + 1e-9), 1.0) * np.ones_like(time), np.ones_like(time)
    ones = np.ones((len(jobs), 1))
    at = (time[:, :, None] >= jobs.event_time[:, None, :]).sum(axis=2)
    cpus = np.take_along_axis(np.concatenate([ones, jobs.event_cpus], axis=1), at, axis=1)
    memory = np.take_along_axis(np.concatenate([ones, jobs.event_memory], axis=1), at, axis=1)
    return np.maximum(np.floor(total * cpus + 1e-9), 1.0), memory


def _uniform(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Uniform on (0, 1): ``exp(-(a^2 + b^2) / 2)`` of two independent standard normal numbers is."""
    return np.asarray(np.exp(-0.5 * (one * one + other * other)))


def _of(values: Floats) -> NDArray[np.float32]:
    """``[N, 1, 1]`` in single precision."""
    return values.astype(np.float32)[:, None, None]
