"""`Course`: the world around simulated jobs worked out interval by interval, as many of them run side by side.

The numbers are those of `conditions.record`, which writes a whole episode down at its start. Formulas are explained
there; `tests/envs/test_course.py` proves that both agree in every bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intune.envs.conditions import (
    CHANNELS_PER_STAGE,
    Coming,
    Conditions,
    channels,
    intervals_of_loss,
    part_of_loss,
    share_lost,
)
from intune.envs.jobs import ABSENT_WAIT, Floats, Jobs, slot_limit

Singles = NDArray[np.float32]

_STAGE = ("cpu", "wait", "slot_bytes", "drift")
_JOB = (
    "interval",
    "memory_noise",
    "loss_lasts",
    "loss_chance",
    "total",
    "slots_per_cpu",
    "stages",
    "cpus",
    "limit",
)
_SINGLE = ("noise", "often", "hiccup_factor", "measurement_noise")
_CHANCE = ("noise", "hiccup_rate", "loss_rate", "memory_noise", "measurement_noise")
_EVENT = ("event_time", "event_cpus", "event_memory")

LINE = 64
"""Bytes of a cache line."""


class Course:
    """Conditions of T intervals of N jobs; what `Tape` is, but written down is only what they are made of.

    Args:
        jobs: N jobs. Copied.
        normals: ``[N, T, channels(S)]`` standard normal numbers. Kept, and overwritten by `put`.
        stages: width of what `at` returns where it is more than that of `jobs`; the added stages are absent.
        endless: drift and resizes go on after T intervals; what is random repeats its last numbers.
    """

    def __init__(
        self, jobs: Jobs, normals: Singles, *, stages: int | None = None, endless: bool = False
    ) -> None:
        self._normals = normals
        self._endless = endless
        self._had, self._stages = jobs.stages, stages or jobs.stages
        self._first = np.arange(len(jobs)) * normals.shape[1]  # the row of a job's first interval
        present, total = jobs.present.sum(axis=1), jobs.cpus.sum(axis=1)
        cpus = np.maximum(np.floor(total + 1e-9), 1.0)
        values = {
            "loss_lasts": jobs.loss_seconds / jobs.interval,
            "loss_chance": jobs.loss_rate * jobs.interval,
            "often": jobs.hiccup_rate * jobs.interval,
            "total": total,
            "stages": present,
            "cpus": cpus,
            "limit": slot_limit(cpus, jobs.slots_per_cpu, present),
            "event_time": np.sort(jobs.event_time, axis=1),
        }

        def of(name: str) -> Floats:
            return np.asarray(values[name] if name in values else getattr(jobs, name), dtype=np.float64)

        per_stage = [getattr(jobs, name).T for name in _STAGE]
        per_job = np.stack([of(name) for name in _JOB])
        per_event = [of(name).T for name in _EVENT]
        # All numbers of a job are a column: putting others in its place is then one operation.
        self._doubles: Floats = np.concatenate([*per_stage, per_job, *per_event])
        self._singles: Singles = np.stack([of(name) for name in _SINGLE]).astype(np.float32)
        self._events = jobs.event_time.shape[1]
        self._parts = {
            "noise": bool(jobs.noise.any()),
            "hiccups": bool(jobs.hiccup_rate.any()),
            "drift": bool(jobs.drift.any()),
            "losses": bool(jobs.loss_rate.any()),
            "memory_noise": bool(jobs.memory_noise.any()),
            "measurement_noise": bool(jobs.measurement_noise.any()),
            "events": bool(np.isfinite(jobs.event_time).any()),
        }

    @property
    def steps(self) -> int:
        """Intervals, T."""
        return int(self._normals.shape[1])

    @classmethod
    def without_chance(cls, jobs: Jobs) -> Course:
        """Drift and resizes only, however long it takes."""
        none = {name: np.zeros_like(getattr(jobs, name)) for name in _CHANCE}
        normals = np.zeros((len(jobs), 1, channels(jobs.stages)), dtype=np.float32)
        return cls(jobs.with_(**none), normals, endless=True)

    def put(self, rows: Any, other: Course, chosen: Any = slice(None)) -> None:
        """Overwrite the jobs at `rows` by those of `other` at `chosen`; of the same family."""
        self._normals[rows] = other._normals[chosen]
        self._doubles[:, rows] = other._doubles[:, chosen]
        self._singles[:, rows] = other._singles[:, chosen]
        self._parts = {name: used or other._parts[name] for name, used in self._parts.items()}

    def at(self, steps: Any) -> Coming:
        """The interval `steps` of every job, ``[N]``; beyond the end the last one again, unless it is endless."""
        step = np.minimum(steps, self.steps - 1)
        normals = self._normals_at(step)
        had, job = self._had, normals[CHANNELS_PER_STAGE * self._had :]
        per_job = dict(zip(_JOB, self._doubles[len(_STAGE) * had :], strict=False))
        per_stage = [self._doubles[at * had : (at + 1) * had] for at in range(len(_STAGE))]
        time = (steps if self._endless else step) * per_job["interval"]
        cpus, memory, limit = self._sizes(per_job, time)
        cpu, wait, slot_bytes, misjudged = np.empty((4, self._stages, len(time)))
        slower = self._slower(normals, per_stage[3], time)
        np.multiply(per_stage[0], slower, out=cpu[:had])
        np.multiply(per_stage[1], slower, out=wait[:had])
        skew = np.exp(per_job["memory_noise"] * job[2]) if self._parts["memory_noise"] else 1.0
        np.multiply(per_stage[2], skew, out=slot_bytes[:had])
        if self._parts["measurement_noise"]:
            misjudged[:had] = self._singles[3] * normals[3 * had : 4 * had]
        else:
            misjudged[:had] = 0.0
        lost = np.zeros(len(time))
        if self._parts["losses"]:
            lost = share_lost(self._missing(job, step, per_job["loss_lasts"], per_job["loss_chance"]), cpus)
        for each, absent in ((cpu, 0.0), (wait, ABSENT_WAIT), (slot_bytes, 0.0), (misjudged, 0.0)):
            each[had:] = absent
        conditions = Conditions(
            cpu=cpu.T, wait=wait.T, lost=lost, slot_bytes=slot_bytes.T, cpus=cpus, memory=memory
        )
        return Coming(conditions=conditions, measured=misjudged.T, slot_limit=limit)

    def _missing(self, normals: Singles, step: Any, lasts: Floats, chance: Floats) -> Floats:
        """``[N]`` workers that are missing: those that die in this interval, and those that died before."""
        missing: Floats = np.where(_uniform(normals[0], normals[1]) < chance, np.minimum(lasts, 1.0), 0.0)
        first = CHANNELS_PER_STAGE * self._had
        for later in range(1, min(intervals_of_loss(lasts), self.steps)):
            before = self._normals_at(np.maximum(step - later, 0))[first:]
            died = (_uniform(before[0], before[1]) < chance) & (step >= later)
            missing += np.where(died, part_of_loss(lasts, later), 0.0)
        return missing

    def _normals_at(self, step: Any) -> Singles:
        """``[channels(S), N]`` of the interval `step` of each job."""
        width = self._normals.shape[2]
        found = self._normals.reshape(-1, width).take(self._first + step, axis=0)
        turned = line_by_line((width,), len(found))
        turned[:] = found.T
        return turned

    def _slower(self, normals: Singles, drift: Floats, time: Floats) -> Floats | float:
        """``[S, N]`` by how much seconds per row are more than the job's."""
        had, parts = self._had, self._parts
        slower: Singles | float = 1.0
        stumbling: Singles | float = 1.0
        if parts["noise"]:
            slower = np.exp(self._singles[0] * normals[:had])
        if parts["hiccups"]:
            stumbles = _uniform(normals[had : 2 * had], normals[2 * had : 3 * had]) < self._singles[1]
            stumbling = np.where(stumbles, self._singles[2], np.float32(1.0))
        together = np.asarray(slower * stumbling, dtype=np.float64)
        if not parts["drift"]:
            return together
        drifted: Floats = np.exp(np.clip(drift * time, -3.0, 3.0)) * slower * stumbling
        return np.where(drift.any(axis=0), drifted, together)

    def _sizes(self, job: dict[str, Floats], time: Floats) -> tuple[Floats, Floats, Floats]:
        """CPUs, memory as a multiple of that at first, and slots that may be given out, ``[N]`` each."""
        if not self._parts["events"]:
            return job["cpus"].copy(), np.ones_like(time), job["limit"].copy()
        rows = self._doubles[-len(_EVENT) * self._events :].reshape(len(_EVENT), self._events, -1)
        cpus, memory = np.ones((2, len(time)))
        for when, those, that in zip(*rows, strict=True):  # the last that is due holds
            due = time >= when
            np.copyto(cpus, those, where=due)
            np.copyto(memory, that, where=due)
        cpus = np.maximum(np.floor(job["total"] * cpus + 1e-9), 1.0)
        return cpus, memory, slot_limit(cpus, job["slots_per_cpu"], job["stages"]).astype(np.float64)


def line_by_line(shape: Sequence[int], count: int) -> Singles:
    """An array ``[*shape, count]`` whose rows begin at different lines of a cache.

    Rows that are a power of two bytes apart fall on the same lines: turning such a table round, which goes through
    all rows at once, is then several times slower.
    """
    apart = count + LINE // 4
    return np.empty((*shape, apart), dtype=np.float32)[..., :count]


def _uniform(one: Singles, other: Singles) -> Singles:
    """See `conditions._uniform`; few temporaries."""
    square = one * one
    square += other * other
    square *= np.float32(-0.5)
    np.exp(square, out=square)
    return square
