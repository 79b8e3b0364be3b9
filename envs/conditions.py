"""The world around simulated jobs, drawn for a whole episode at its start: noise, hiccups, losses, drift, resizes.

All of it happens whatever an agent does: it depends on the job, its random numbers and the time alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intune.envs.jobs import ABSENT_WAIT, Floats, Jobs
from intune.envs.model import Conditions

CHANNELS_PER_STAGE = 4
CHANNELS_PER_JOB = 4


def channels(stages: int) -> int:
    """Random numbers that one interval of one job needs."""
    return CHANNELS_PER_STAGE * stages + CHANNELS_PER_JOB


@dataclass(frozen=True, slots=True)
class Tape:
    """Conditions of T intervals of N jobs, indexed job first.

    Attributes:
        cpu, wait, lost, slot_bytes: ``[N, T, S]``, see `Conditions`.
        measured: ``[N, T, S]`` by how much a task's time is misjudged (logarithm, of one task).
        cpus, memory: ``[N, T]``.
    """

    cpu: Floats
    wait: Floats
    lost: Floats
    slot_bytes: Floats
    measured: Floats
    cpus: Floats
    memory: Floats

    @property
    def steps(self) -> int:
        """Intervals recorded, T."""
        return int(self.cpu.shape[1])

    def at(self, jobs: Any, steps: Any) -> tuple[Conditions, Floats]:
        """Conditions of the interval `steps` (index of each job of `jobs`), and the measurement's noise."""
        where = (jobs, steps)
        return (
            Conditions(
                cpu=self.cpu[where],
                wait=self.wait[where],
                lost=self.lost[where],
                slot_bytes=self.slot_bytes[where],
                cpus=self.cpus[where],
                memory=self.memory[where],
            ),
            self.measured[where],
        )

    def widened(self, stages: int) -> Tape:
        """The same for jobs of `stages` stages, the added ones absent (see `Jobs.widened`)."""
        more = [(0, 0), (0, 0), (0, stages - self.cpu.shape[2])]
        return Tape(
            cpu=np.pad(self.cpu, more),
            wait=np.pad(self.wait, more, constant_values=ABSENT_WAIT),
            lost=np.pad(self.lost, more),
            slot_bytes=np.pad(self.slot_bytes, more),
            measured=np.pad(self.measured, more),
            cpus=self.cpus,
            memory=self.memory,
        )

    def put(self, rows: Any, other: Tape) -> None:
        """Overwrite the jobs at `rows` in place."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)


def quiet(jobs: Jobs, steps: int) -> Tape:
    """A world without chance: only drift and resizes."""
    return record(jobs, np.zeros((len(jobs), steps, channels(jobs.stages)), dtype=np.float32), chance=False)


def record(jobs: Jobs, normals: NDArray[Any], *, chance: bool = True) -> Tape:
    """The conditions of an episode.

    - *Noise*: a stage's time per row is log-normal around its mean, anew each interval; so is a working set.
    - *Hiccups*: with probability ``hiccup_rate x interval`` a stage takes ``hiccup_factor`` times as long.
    - *Losses*: with probability ``loss_rate x interval`` a worker dies; one CPU's share of all slots is missing
      for the part of the interval that ``loss_seconds`` lasts.
    - *Drift*: ``exp(drift x time)``. *Resizes*: as the job's events say.

    Args:
        jobs: N jobs.
        normals: ``[N, T, channels(S)]`` standard normal numbers.
        chance: False for drift and resizes only.
    """
    count, steps, _ = normals.shape
    width = jobs.stages
    time = np.arange(steps) * jobs.interval[:, None]
    drift = np.exp(np.clip(jobs.drift[:, None, :] * time[:, :, None], -3.0, 3.0))
    at = (time[:, :, None] >= jobs.event_time[:, None, :]).sum(axis=2)
    ones = np.ones((count, 1))
    cpus = np.take_along_axis(np.concatenate([ones, jobs.event_cpus], axis=1), at, axis=1)
    memory = np.take_along_axis(np.concatenate([ones, jobs.event_memory], axis=1), at, axis=1)
    cpus = np.maximum(np.floor(jobs.cpus.sum(axis=1, keepdims=True) * cpus + 1e-9), 1.0)
    slower: Floats = drift
    lost = np.zeros((count, steps, width))
    slot_bytes = np.broadcast_to(jobs.slot_bytes[:, None, :], lost.shape)
    measured = np.zeros_like(lost)
    wait_slower = drift
    if chance:
        numbers = normals.astype(np.float64)
        noise = np.exp(jobs.noise[:, None, None] * numbers[:, :, :width])
        # exp(-(a² + b²) / 2) of two independent standard normals is uniform on (0, 1).
        stumble = np.exp(
            -0.5 * (numbers[:, :, width : 2 * width] ** 2 + numbers[:, :, 2 * width : 3 * width] ** 2)
        )
        often = (jobs.hiccup_rate * jobs.interval)[:, None, None]
        hiccup = np.where(stumble < often, jobs.hiccup_factor[:, None, None], 1.0)
        slower = drift * noise
        wait_slower = slower * hiccup
        measured = jobs.measurement_noise[:, None, None] * numbers[:, :, 3 * width : 4 * width]
        death = np.exp(-0.5 * (numbers[:, :, 4 * width] ** 2 + numbers[:, :, 4 * width + 1] ** 2))
        part = np.minimum(jobs.loss_seconds / jobs.interval, 1.0)[:, None]
        gone = np.where(death < (jobs.loss_rate * jobs.interval)[:, None], part / np.maximum(cpus, 2.0), 0.0)
        lost = np.broadcast_to(gone[:, :, None], lost.shape)
        skew = np.exp(jobs.memory_noise[:, None] * numbers[:, :, 4 * width + 2])
        slot_bytes = slot_bytes * skew[:, :, None]
    return Tape(
        cpu=jobs.cpu[:, None, :] * wait_slower,
        wait=jobs.wait[:, None, :] * wait_slower,
        lost=np.array(lost),
        slot_bytes=np.array(slot_bytes),
        measured=measured,
        cpus=cpus,
        memory=memory,
    )
