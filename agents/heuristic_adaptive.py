"""`heuristic-adaptive`: what a person who knows pipelines would choose, redone whenever the machine is resized."""

from __future__ import annotations

from typing import Any

import numpy as np

from intune.agents.base import Agent, Proposal, where_sound
from intune.agents.first import First
from intune.agents.measures import (
    LARGE,
    cpu_per_row,
    known,
    largest_rate,
    slots_for,
    time_per_row,
    trainer_rate,
)
from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement


class HeuristicAdaptive(Agent):
    """CPUs are shared out by processor time; a stage that waits gets more slots, since waiting costs no CPU.

    After the paper's heuristic that a person chooses and redoes at each resize. The rate aimed at is what the
    CPUs allow if none is idle, or what the trainer takes; each stage gets the slots it needs for that rate.
    """

    name = "heuristic-adaptive"

    def __init__(self) -> None:
        self._first = First(follow=True)
        self._target: Floats = np.zeros(0)

    def start(self, jobs: int, stages: int) -> None:
        """Forget what was chosen."""
        self._first.start(jobs)
        self._target = np.zeros(jobs)

    def forget(self, rows: Any) -> None:
        """Forget what was chosen for `rows`."""
        self._first.forget(rows)
        self._target[rows] = 0.0

    def propose(self, measured: Measurement) -> Proposal:
        """The choice: of now where the machine is new or resized, else that of before."""
        due = self._first.due(measured, known(measured))
        target, slots = balanced(measured)
        self._target = np.where(due, target, self._target)
        remembered = self._first.remembered(due, slots)
        aim = self._target

        def explain(i: int) -> str:
            if due[i]:
                return f"{measured.cpus[i]:.0f} CPUs shared out by cost, for {aim[i]:,.0f} rows/s"
            return "keep: the machine is as it was when this was chosen"

        proposal = Proposal(
            slots=np.where(measured.present, remembered, 0.0), pool=np.zeros(len(measured)), explain=explain
        )
        # Before the first choice there is nothing to go back to.
        chosen = measured.sound() & (self._target > 0)
        return where_sound(measured, proposal, chosen)


def balanced(measured: Measurement) -> tuple[Floats, Floats]:
    """Rows/s to aim at, ``[N]``, and the slots of each stage for that, ``[N, S]``.

    The aim is the least of what the trainer takes, what the processors allow at the processor time measured per
    row, and what the slots allow that may be given out.
    """
    time = time_per_row(measured)
    cpu = np.where(measured.present, cpu_per_row(measured), 0.0).sum(axis=1)
    cpus = np.nan_to_num(measured.cpus)
    by_cpus = np.divide(cpus, cpu, out=np.full(len(measured), LARGE), where=cpu > 1.0 / LARGE)
    limit = np.nan_to_num(measured.slot_limit)
    by_slots = largest_rate(time, measured.present, limit)
    target = np.minimum(np.minimum(by_cpus, trainer_rate(measured)), by_slots)
    return target, slots_for(target, time, measured.present)
