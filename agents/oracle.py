"""`oracle`: the best allocation from the simulator's own parameters. For measuring only: no live job reveals them."""

from __future__ import annotations

from typing import Any

import numpy as np

from intune.agents.base import Agent, Proposal
from intune.agents.oracle_plan import Plan, plan
from intune.envs.jobs import Ints, Jobs
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError

AHEAD = 2
"""Intervals before there is less memory than an allocation takes at which it is left, so that queues drain in time."""


class Oracle(Agent):
    """Must be told the jobs, with `reveal`, before it decides; it keeps their time itself."""

    name = "oracle"

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._step: Ints = np.zeros(0, dtype=np.int64)

    def reveal(self, jobs: Jobs, steps: int) -> None:
        """What the jobs really are, and for how many intervals they will run."""
        self.use(plan(jobs, steps))

    def use(self, known: Plan) -> None:
        """Go by a plan made before."""
        self._plan = known

    def start(self, jobs: int, stages: int) -> None:
        """The jobs revealed begin."""
        self._step = np.zeros(jobs, dtype=np.int64)

    def forget(self, rows: Any) -> None:
        """The jobs at `rows` begin again."""
        self._step[rows] = 0

    def propose(self, measured: Measurement) -> Proposal:
        """The best allocation for the interval to come.

        Raises:
            ConfigError: the jobs were not revealed, or other ones were.
        """
        if self._plan is None or len(self._plan.pool) != len(measured):
            raise ConfigError(
                "`oracle` decides only for simulated jobs that were revealed to it; choose another agent"
            )
        known = self._plan
        self._step += 1
        each = np.arange(len(measured))
        last = known.which.shape[1] - 1
        step = np.minimum(self._step, last)
        number = known.which[each, step]
        for ahead in range(1, AHEAD + 1):
            later = known.which[each, np.minimum(step + ahead, last)]
            number = np.where(known.takes[each, number] > known.room[each, later], later, number)
        slots, pool, rate = known.slots[each, number], known.pool[each, number], known.rate[each, step]
        return Proposal(
            slots=slots,
            pool=pool,
            explain=lambda i: f"the best there is: {rate[i]:,.0f} rows/s without noise",
        )
