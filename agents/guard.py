"""`Guard`: no allocation is applied before its memory, at worst, fits the limit. Wraps any agent, knows none.

What does not fit is cut down to what does, towards the slots in force; where even those no longer fit (the
limit fell, use rose), memory is given back before the limit is reached. Says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intune.agents.base import Agent, Proposal, ask
from intune.agents.memory import RISK, MemoryRecord, in_use
from intune.agents.recall import MemoryLog
from intune.envs.actions import feasible
from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import Measurement

ROUNDS = 7
"""Halvings when a raise is cut to what fits: to within a hundredth of it."""


def fit(
    record: MemoryRecord, measured: Measurement, slots: Floats, pool: Floats
) -> tuple[Floats, Floats, Bools]:
    """What of an allocation fits into memory at worst.

    Args:
        record: what was seen of these jobs' memory.
        measured: the interval just measured; its slots are in force.
        slots: ``[N, S]`` asked for; pool: ``[N]``, 0 for slots per stage.

    Returns:
        Slots and pool that fit (one slot a stage where nothing does), and ``[N]`` whether they were cut. Where more of
        the slots at work fit one by one than of a pool, which may turn all of them to the stage that takes most, they
        are what is left of it.
    """
    present = measured.present
    slots = np.where(present, np.maximum(slots, 1.0), 0.0)
    fine = (record.bound(slots, pool, measured) <= measured.memory_limit) | (pool == 1)
    if fine.all():
        return slots, pool, ~fine
    now = np.where(present, np.maximum(in_use(measured), 1.0), 0.0)
    wanted, shared = _cut(record, measured, now, slots, pool)
    if (~fine & (pool > 0)).any():
        alone, none = _cut(record, measured, now, now, np.zeros(len(pool)))
        more = (pool > 0) & (alone.sum(axis=1) > shared)
        wanted, shared = np.where(more[:, None], alone, wanted), np.where(more, none, shared)
    given, shared = np.where(fine[:, None], slots, wanted), np.where(fine, pool, shared)
    return given, shared, (given != slots).any(axis=1) | (shared != pool)


def _cut(
    record: MemoryRecord, measured: Measurement, now: Floats, slots: Floats, pool: Floats
) -> tuple[Floats, Floats]:
    """The most between one slot a stage and `slots` and `pool` that fits, by way of the slots at work `now`."""
    present, limit, pooled = measured.present, measured.memory_limit, pool > 0
    start = np.minimum(now, slots)
    # Give back first where the slots that stay do not fit either.
    stays = record.bound(start, np.zeros(len(slots)), measured) <= limit
    low = np.where(present, 1.0, 0.0)
    start = np.where(stays[:, None], start, low)
    top = np.where(stays[:, None], slots, np.minimum(now, slots))
    floor, ceiling = np.zeros(len(slots)), np.ones(len(slots))

    def at(part: Floats) -> tuple[Floats, Floats]:
        wanted = np.floor(start + (top - start) * part[:, None] + 1e-9) * present
        return wanted, np.where(pooled, np.maximum(np.floor(pool * part), 1.0), 0.0)

    for _ in range(ROUNDS):
        middle = 0.5 * (floor + ceiling)
        wanted, shared = at(middle)
        fits = record.bound(wanted, shared, measured) <= limit
        floor, ceiling = np.where(fits, middle, floor), np.where(fits, ceiling, middle)
    wanted, shared = at(floor)
    return np.where(pooled[:, None], slots, wanted), shared


class Guard(Agent):
    """An agent whose decisions are held within memory.

    Args:
        agent: decides.
        risk: that memory runs out nevertheless, see `memory.RISK`.

    Attributes:
        vetoed: ``[N]`` how many proposals were cut.
    """

    def __init__(self, agent: Agent, *, risk: float = RISK) -> None:
        self.agent = agent
        self.name = agent.name
        self.bounded = agent.bounded
        self.risk = risk
        self.vetoed: Any = np.zeros(0, dtype=np.int64)
        self._record = MemoryRecord(0, 1)
        self._log = MemoryLog(1)
        self._given: tuple[Floats, Floats] = np.zeros((0, 1)), np.zeros(0)

    def start(self, jobs: int, stages: int) -> None:
        """Forget everything."""
        self.agent.start(jobs, stages)
        self._record = MemoryRecord(jobs, stages, risk=self.risk)
        self._log = MemoryLog(stages)
        self._given = np.zeros((jobs, stages)), np.zeros(jobs)  # no slots: nothing was given yet
        self.vetoed = np.zeros(jobs, dtype=np.int64)

    def name_stages(self, stages: Sequence[str]) -> None:
        """To the agent, which says why."""
        self.agent.name_stages(stages)

    def forget(self, rows: Any) -> None:
        """New jobs at `rows`."""
        self.agent.forget(rows)
        self._record.forget(rows)
        self._log.clear()
        self._given[0][rows], self._given[1][rows] = 0.0, 0.0
        self.vetoed[rows] = 0

    def knowledge(self) -> dict[str, Any]:
        """What the agent learnt, and what was seen of memory."""
        return {**self.agent.knowledge(), "memory": self._log.knowledge()}

    def recall(self, known: Mapping[str, Any]) -> None:
        """To the agent; memory counts once this run confirms it."""
        self.agent.recall(known)
        self._log.recall(known.get("memory"))

    def propose(self, measured: Measurement) -> Proposal:
        """What the agent proposes, as far as it fits."""
        told = self._record.see(_with_what_killed(measured, *self._given))
        if told.all():
            self._log.look(self._record, measured)
        asked = ask(self.agent, measured)
        slots, pool, cut = fit(self._record, measured, asked.slots, asked.pool)
        self.vetoed += cut
        limit = np.nan_to_num(measured.slot_limit)
        self._given = feasible(measured.present, measured.slots, slots, limit), np.minimum(pool, limit)
        bound = self._record

        def total(each: Floats, shared: Floats) -> Floats:
            return np.where(shared > 0, shared, (each * measured.present).sum(axis=1))

        def explain(i: int) -> str:
            said = asked.explain(i)
            if not cut[i]:
                return said
            shared = f"a pool of {pool[i]:.0f}" if pool[i] > 0 else ""
            given = shared or self.slots_in_words(slots[i], measured.present[i])
            fewer = total(slots, pool)[i] < total(measured.slots, measured.pool)[i]
            verb = "gives back memory" if fewer else "cuts this"
            return (
                f"{said}; the guard {verb} to {given}: {_share(measured, i):.0%} of the memory limit is in use, "
                f"and a working set varies by {bound.noise[i]:.0%}, so more might not fit"
            )

        return Proposal(slots=slots, pool=pool, explain=explain)


def _with_what_killed(measured: Measurement, slots: Floats, pool: Floats) -> Measurement:
    """The same with the slots that a job was given before it ran out of memory in place of those it starts again with:
    what they took is known, and they should not be given again."""
    died = measured.killed & (slots.sum(axis=1) > 0) & (measured.memory_used > 0)
    if not died.any():
        return measured
    return replace(
        measured,
        slots=np.where(died[:, None], slots, measured.slots),
        pool=np.where(died, pool, measured.pool),
        delivered=np.where(died, 1.0, measured.delivered),
        killed=measured.killed & ~died,
    )


def _share(measured: Measurement, i: int) -> float:
    return float(measured.memory_used[i] / max(measured.memory_limit[i], 1.0))
