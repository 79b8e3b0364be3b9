"""`Episodes`: N episodes of simulated jobs side by side. What the single and the vectorised environment share.

Spaces, random numbers and Gymnasium's rules are not known here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from intune.envs.conditions import Tape, record
from intune.envs.course import Course
from intune.envs.job_sources import Jobbing
from intune.envs.jobs import Bools, Floats, Ints, Jobs
from intune.envs.measurement import Measurement
from intune.envs.settings import EnvSettings
from intune.envs.simulator import Simulator
from intune.envs.spaces import Observation, observe, wanted_slots

LEAST_REFERENCE = 1e-9
"""Rows/s. A job that delivers nothing in its first interval is measured against its trainer's rate instead."""


class Episodes:
    """N episodes, all of which begin when this is made.

    Args:
        source: of the jobs.
        settings: of the environment.
        ids: ``[N]`` numbers of the first jobs.
        stages: width S of all arrays.
        slots: ``[N, S]`` slots to begin with; None for one a stage.

    Attributes:
        ids: ``[N]`` numbers of the jobs that run now.
        now: the last interval's measurement; `adopt` changes it in place.
        reward: ``[N]`` of the last interval.
        moved: ``[N]`` slots added plus slots taken away before it.
        terminated, truncated: ``[N]`` how the episode ended, if it did.
        counts: ``[N]`` decisions made in the episode.
    """

    def __init__(
        self, source: Jobbing, settings: EnvSettings, ids: Ints, *, stages: int, slots: Floats | None = None
    ) -> None:
        self._source, self.settings, self._stages = source, settings, stages
        count = len(ids)
        self.ids = np.array(ids, dtype=np.int64)
        self._simulator, self.now, self._reference = self._begin(self.ids, slots)
        self._before = self.now
        self._best: Floats = self.now.delivered.copy()
        self.counts: Ints = np.zeros(count, dtype=np.int64)
        self.reward: Floats = np.zeros(count)
        self.moved: Floats = np.zeros(count)
        self.terminated: Bools = np.zeros(count, dtype=bool)
        self.truncated: Bools = np.zeros(count, dtype=bool)

    def __len__(self) -> int:
        return len(self.ids)

    def adopt(self, rows: Ints, fresh: Episodes, chosen: Any) -> None:
        """New episodes at `rows`, those of `fresh` at `chosen`; the others go on."""
        self._simulator.adopt(rows, fresh._simulator, chosen)
        self.now.put(rows, fresh.now, chosen)
        # Nothing came before: no change is seen in the first observation.
        self._before.slots[rows] = fresh.now.slots[chosen]
        self._before.delivered[rows] = fresh.now.delivered[chosen]
        self._reference[rows] = fresh._reference[chosen]
        self._best[rows] = fresh._best[chosen]
        self.ids[rows] = fresh.ids[chosen]
        self.counts[rows], self.moved[rows] = 0, 0.0

    def step(self, actions: Any) -> None:
        """Apply `actions` and run one interval of every episode, also of those that have ended.

        Args:
            actions: ``[N, S]``, or ``[N, S + 1]`` with a pool; see `spaces.action_space`.

        Raises:
            ConfigError: actions that are none.
        """
        settings = self.settings
        slots, pool = wanted_slots(settings.action, actions, self._simulator.slots, pool=settings.pool)
        self.moved = self._simulator.allocate(slots, pool)
        self._before = self.now
        self.now = self._simulator.run()
        np.maximum(self._best, self.now.delivered, out=self._best)
        self.reward = settings.reward(self.now, moved=self.moved, reference=self._reference)
        self.counts += 1
        if settings.on_kill == "end":
            # Slots to begin with may have been too many: the job died before its first decision.
            self.terminated = self.now.killed | self._before.killed
            self.truncated = (self.counts >= settings.episode_steps) & ~self.terminated
        else:
            self.terminated = np.zeros(len(self), dtype=bool)
            self.truncated = self.counts >= settings.episode_steps

    def observe(self, rows: Ints | None = None, *, out: Observation | None = None) -> Observation:
        """Observations of all episodes, or of those at `rows`: see `spaces.observe`."""
        now, before, best = self.now, self._before, self._best
        if rows is not None:
            now, before, best = now.take(rows), before.take(rows), best[rows]
        return observe(self.settings.observation, now, before, best, out=out)

    def _begin(self, ids: Ints, slots: Floats | None) -> tuple[Simulator, Measurement, Floats]:
        """Jobs at the end of their first interval, which they run with the slots to begin with."""
        settings = self.settings
        jobs, course = coming_jobs(self._source, settings, ids, self._stages)
        simulator = Simulator(jobs, course, restart_seconds=settings.restart_seconds)
        if slots is not None:
            simulator.begin_with(slots)
        now = simulator.run()
        first = reference_of(settings, jobs, now.delivered)
        return simulator, now, np.where(first > LEAST_REFERENCE, first, 1.0 / jobs.step)


def coming_jobs(source: Jobbing, settings: EnvSettings, ids: Ints, stages: int) -> tuple[Jobs, Course]:
    """`drawn_jobs`, for many that run side by side."""
    jobs, normals = source.take(ids, settings.episode_steps + 1)
    course = Course(jobs, normals.astype(np.float32, copy=False), stages=stages)
    return _as_wide(jobs, stages), course


def drawn_jobs(source: Jobbing, settings: EnvSettings, ids: Ints, stages: int) -> tuple[Jobs, Tape]:
    """The jobs `ids` in arrays of `stages` stages, and the world around them."""
    jobs, normals = source.take(ids, settings.episode_steps + 1)
    tape = record(jobs, normals)
    return _as_wide(jobs, stages), tape.widened(stages) if stages > jobs.stages else tape


def _as_wide(jobs: Jobs, stages: int) -> Jobs:
    if stages <= jobs.stages:
        return jobs
    return jobs.widened(stages=stages, nodes=jobs.cpus.shape[1], events=jobs.event_time.shape[1])


def reference_of(settings: EnvSettings, jobs: Jobs, first: Floats) -> Floats:
    """``[N]`` rows/s that count as 1 in the reward.

    Args:
        settings: of the environment.
        jobs: N jobs.
        first: ``[N]`` rows/s delivered in the first interval.
    """
    if settings.reference == "first":
        return first
    if settings.reference == "trainer":
        return 1.0 / jobs.step
    return np.full(len(jobs), 1.0 if settings.reference == "none" else float(settings.reference))
