"""`planner`: solves for the best feasible allocation with what was learnt on line: time, contention, memory.

Every operator must sustain the same rate (as in DS2, OSDI 2018, section 4, and Ray Data's solver), here with
times per row that grow with the slots, processors and the trainer as ceilings, and memory at its worst.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from intune.agents.base import Agent, Proposal, where_sound
from intune.agents.candidates import NAMES, propose
from intune.agents.measures import without_absent
from intune.agents.memory import MemoryRecord
from intune.agents.recall import MemoryLog, knowledge_of, recall_into
from intune.agents.twin import Twin
from intune.envs.measurement import Measurement

MARGIN = "plan x1.08"
"""Slack of every stage over the rate aimed at: noise of a few percent does not make it the bottleneck."""

WORTHWHILE = 0.02
"""Gain below which slots stay where they are: less than what one interval's noise can tell."""


class Planner(Agent):
    """See the module."""

    name = "planner"

    def __init__(self) -> None:
        self._twin = Twin(0, 1)
        self._record = MemoryRecord(0, 1)
        self._log = MemoryLog(1)

    def start(self, jobs: int, stages: int) -> None:
        """Forget everything."""
        self._twin = Twin(jobs, stages)
        self._record = MemoryRecord(jobs, stages)
        self._log = MemoryLog(stages)

    def forget(self, rows: Any) -> None:
        """New jobs at `rows`."""
        self._twin.forget(rows)
        self._record.forget(rows)
        self._log.clear()

    def knowledge(self) -> dict[str, Any]:
        """Beliefs of the twin, and what was seen of memory."""
        return knowledge_of(self._twin, self._log)

    def recall(self, known: Mapping[str, Any]) -> None:
        """Begin with them; memory counts once this run confirms it."""
        recall_into(self._twin, self._log, known)

    def propose(self, measured: Measurement) -> Proposal:
        """The plan, or what is in force where the plan promises no more than noise and takes no less."""
        measured = without_absent(measured)
        sound = measured.sound()
        self._twin.see(measured, sound)
        self._record.see(measured)
        self._log.look(self._record, measured)
        options = propose(self._twin, self._record, measured)
        plan = NAMES.index(MARGIN)
        gain = options.rate[:, plan] / np.maximum(options.rate[:, 0], 1e-12) - 1.0
        total = (options.slots[:, plan] * measured.present).sum(axis=1)
        used = (measured.slots * measured.present).sum(axis=1)
        stay = (gain < WORTHWHILE) & (total >= 0.9 * used) & (measured.pool == 0)
        stay &= options.memory[:, 0] <= measured.memory_limit
        slots = np.where(stay[:, None], measured.slots, options.slots[:, plan])
        # Where memory or slots are the limit there is less to spare than is wished for.
        able = np.where(measured.present, self._twin.capacity(slots), np.inf).min(axis=1)
        spare = np.maximum(able / options.target - 1.0, 0.0)

        def explain(i: int) -> str:
            if stay[i]:
                return (
                    f"keep: the plan would bring {gain[i]:+.1%}, less than what one interval's noise can tell"
                )
            given = self.slots_in_words(slots[i], measured.present[i])
            return (
                f"{given} make every stage sustain {options.target[i]:,.0f} rows/s "
                f"(now {measured.delivered[i]:,.0f}) with {spare[i]:.0%} to spare"
            )

        pool = np.where(stay, measured.pool, 0.0)
        proposal = Proposal(slots=slots, pool=pool, explain=explain, rate=options.rate[:, plan])
        return where_sound(measured, proposal, sound)
