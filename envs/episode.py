"""`Episode`: one episode of one simulated job, as `SimulatedPipelineEnv` runs it. `Episodes` for N = 1, but faster."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from intune.envs import spaces
from intune.envs.actions import MOVES
from intune.envs.alone import JobAlone
from intune.envs.alone_observation import as_array, job_numbers, paper_numbers, stage_numbers
from intune.envs.episodes import LEAST_REFERENCE, Episodes, drawn_jobs, reference_of
from intune.envs.job_sources import Jobbing
from intune.envs.jobs import Floats, Ints
from intune.envs.measurement import Measurement
from intune.envs.reading import Reading
from intune.envs.settings import EnvSettings


class Running(Protocol):
    """An episode: what an environment needs of it."""

    reward: float
    moved: float
    terminated: bool
    truncated: bool

    @property
    def now(self) -> Measurement:
        """What was measured of the last interval, N = 1."""
        ...

    def step(self, action: Any) -> None:
        """Give slots and run one interval."""
        ...

    def observe(self) -> Any:
        """The observation, new arrays."""
        ...

    def summary(self) -> tuple[float, float, bool]:
        """Rows/s delivered, share of memory in use, whether the job ran out of it."""
        ...


class Episode:
    """One episode in plain Python, at the end of its first interval. See `Episodes` for arguments and attributes."""

    def __init__(
        self, source: Jobbing, settings: EnvSettings, ids: Ints, *, stages: int, slots: Floats | None = None
    ) -> None:
        self.settings = settings
        jobs, tape = drawn_jobs(source, settings, ids, stages)
        self._job = JobAlone(jobs, tape, restart_seconds=settings.restart_seconds)
        count = self._job.count
        if slots is not None:
            self._job.begin_with(slots[0, :count].tolist())
        self._present = jobs.present[0].astype(np.int8)
        self._read = self._before = self._job.run()
        self._best = self._read.delivered
        first = float(reference_of(settings, jobs, np.array([self._read.delivered]))[0])
        self._reference = first if first > LEAST_REFERENCE else 1.0 / self._job.step_seconds
        self._made = 0
        self.reward = self.moved = 0.0
        self.terminated = self.truncated = False

    @property
    def now(self) -> Measurement:
        """See `Running`."""
        return self._job.measurement(self._read)

    def step(self, action: Any) -> None:
        """See `Running`.

        Raises:
            ConfigError: an action that is none.
        """
        settings, job = self.settings, self._job
        self.moved = job.allocate(self._wanted(action))
        self._before, self._read = self._read, job.run()
        now = self._read
        self._best = max(self._best, now.delivered)
        self.reward = self._judge(now)
        self._made += 1
        # Slots to begin with may have been too many: the job died before its first decision.
        self.terminated = (now.killed or self._before.killed) and settings.on_kill == "end"
        self.truncated = self._made >= settings.episode_steps and not self.terminated

    def observe(self) -> Any:
        """See `Running`."""
        kind, job = self.settings.observation, self._job
        if kind == "paper":
            return as_array(paper_numbers(job, self._read))
        stages = stage_numbers(job, self._read, self._before)
        whole = job_numbers(job, self._read, self._before, self._best)
        if kind == "flat":
            return as_array(stages + whole)
        table = as_array(stages).reshape(-1, spaces.STAGE_WIDTH)
        return {"stages": table, "job": as_array(whole), "mask": self._present.copy()}

    def summary(self) -> tuple[float, float, bool]:
        """See `Running`."""
        read = self._read
        return read.delivered, read.memory_used / read.memory_limit, read.killed

    def _wanted(self, action: Any) -> list[float]:
        given = np.asarray(action)
        slots, stages = self._job.slots, len(self._present)
        if given.shape == (stages,):
            choices = given.tolist()
            if (
                self.settings.action == "moves"
                and given.dtype.kind in "iu"
                and 0 <= min(choices) <= max(choices) < len(MOVES)
            ):
                return [had + MOVES[choice] for had, choice in zip(slots, choices, strict=False)]
        wide = np.zeros((1, stages))
        wide[0, : len(slots)] = slots
        wanted, _ = spaces.wanted_slots(self.settings.action, given[None], wide)
        return [float(each) for each in wanted[0, : len(slots)]]

    def _judge(self, now: Reading) -> float:
        """`Reward`, for one job without a pool."""
        weights = self.settings.reward
        reward = weights.rate * (now.delivered / self._reference)
        if weights.memory:
            reward *= max(1.0 - now.memory_used / now.memory_limit, 0.0) ** weights.memory
        reward -= (weights.slots * sum(now.slots) + weights.moving * self.moved) / now.slot_limit
        return reward - weights.killed if now.killed else reward


class EpisodeOfArrays:
    """One of `Episodes`: where actions may be shared pools, which `JobAlone` does not know."""

    def __init__(
        self, source: Jobbing, settings: EnvSettings, ids: Ints, *, stages: int, slots: Floats | None = None
    ) -> None:
        self._one = Episodes(source, settings, ids, stages=stages, slots=slots)
        self.reward = self.moved = 0.0
        self.terminated = self.truncated = False

    @property
    def now(self) -> Measurement:
        """See `Running`."""
        return self._one.now

    def step(self, action: Any) -> None:
        """See `Running`."""
        one = self._one
        one.step(np.asarray(action)[None])
        self.reward, self.moved = float(one.reward[0]), float(one.moved[0])
        self.terminated, self.truncated = bool(one.terminated[0]), bool(one.truncated[0])

    def observe(self) -> Any:
        """See `Running`."""
        given = self._one.observe()
        return {key: value[0] for key, value in given.items()} if isinstance(given, dict) else given[0]

    def summary(self) -> tuple[float, float, bool]:
        """See `Running`."""
        now = self._one.now
        return float(now.delivered[0]), float(now.memory_used[0] / now.memory_limit[0]), bool(now.killed[0])
