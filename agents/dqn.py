"""`dqn`: learns which of the rehearsed allocations to choose. Pre-trained in the simulator, learns on on the job.

At every decision the job's twin rehearses a handful of allocations (the planner's with several margins, shared
pools, half steps; see `candidates.py`), and a duelling Q-network shared by all stages and candidates
says what each is worth in the long run. So the network decides what a formula cannot: how much slack noise
needs, when a pool pays, when to wait. Works for any number of stages and CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from intune.agents.base import Agent, Proposal, where_sound
from intune.agents.candidates import HOPE, NAMES, Candidates, out_of_pools, promising, propose
from intune.agents.measures import without_absent
from intune.agents.memory import MemoryRecord
from intune.agents.online import Online
from intune.agents.qweights import Weights, load
from intune.agents.recall import MemoryLog, knowledge_of, recall_into
from intune.agents.rehearsal import Rehearsal, rehearsal
from intune.agents.twin import Twin
from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import Measurement

SETTLED = 0.004
"""Worth, as a share of the best rate, below which another allocation is not better than staying."""

PATIENCE, LONGEST = 4.0, 64.0
"""Decisions in a pool that memory holds back until slots of each stage's own are tried, whatever they promise: for an
interval or two less may be delivered. The fewest, and the most: they double every time, since less and less is new."""


class DQN(Agent):
    """See the module.

    Args:
        weights: parameters, or a file of them; by default those shipped with the package.
        learning: whether to go on learning on the job (one small gradient step a decision).
        seed: of what learning on the job draws from its memory.
        pools: whether the stages can share a pool of slots.
    """

    name = "dqn"

    def __init__(
        self,
        *,
        weights: Weights | str | Path | None = None,
        learning: bool = False,
        seed: int = 0,
        pools: bool = True,
    ) -> None:
        self.weights = weights if isinstance(weights, Weights) else load(weights)
        self._learning = learning
        self._seed = seed
        self._pools = pools
        self.start(0, 1)

    def start(self, jobs: int, stages: int) -> None:
        """Forget everything but what was learnt in the simulator."""
        self._twin = Twin(jobs, stages)
        self._record = MemoryRecord(jobs, stages)
        self._log = MemoryLog(stages)
        self._before: Measurement | None = None
        self._new: Bools = np.zeros(jobs, dtype=bool)  # nothing is known of the interval before
        self._age: Floats = np.zeros(jobs)
        # Decisions in pools until slots of each stage's own are tried for what they tell of memory; how many the next
        # time.
        self._until: Floats = np.zeros(jobs)
        self._patience: Floats = np.full(jobs, 0.5 * PATIENCE)
        self._online = Online(self.weights, seed=self._seed) if self._learning else None

    def forget(self, rows: Any) -> None:
        """New jobs at `rows`."""
        self._twin.forget(rows)
        self._record.forget(rows)
        self._log.clear()
        self._age[rows] = 0.0
        self._until[rows], self._patience[rows] = 0.0, 0.5 * PATIENCE
        self._new[rows] = True
        if self._online is not None:
            self._online.forget(rows)

    def knowledge(self) -> dict[str, Any]:
        """Beliefs of the twin, and what was seen of memory."""
        return knowledge_of(self._twin, self._log)

    def recall(self, known: Mapping[str, Any]) -> None:
        """Begin with them; memory counts once this run confirms it."""
        recall_into(self._twin, self._log, known)

    def look(self, measured: Measurement) -> tuple[Candidates, Rehearsal]:
        """Learn from an interval; the candidates, and what the network sees of them."""
        self._twin.see(measured, measured.sound())
        self._record.see(measured)
        self._log.look(self._record, measured)
        options = propose(self._twin, self._record, measured)
        if self._before is not None and self._new.any():
            self._before = self._before.take(np.arange(len(measured)))
            self._before.put(self._new, measured, self._new)
        self._new[:] = False
        seen = rehearsal(self._twin, measured, self._before, options, self._age)
        if not self._pools:
            seen = replace(seen, allowed=seen.allowed & (options.pool == 0))
        self._before = measured
        self._age = self._age + 1.0
        return options, seen

    def values(self, seen: Rehearsal) -> Any:
        """``[N, K]`` worth of each candidate; minus infinity where it may not fit into memory."""
        worth = self._online.values(seen) if self._online is not None else self.weights.values(seen)
        return np.where(seen.allowed, worth, -np.inf)

    def propose(self, measured: Measurement) -> Proposal:
        """The candidate that is worth most; what is in force where none is worth noticeably more."""
        measured = without_absent(measured)
        sound = measured.sound()
        options, seen = self.look(measured)
        # A change has its price, which the simulator's rewards hardly show.
        values = self.values(seen)
        worth = np.where(promising(options, measured), values, -np.inf)
        # What no longer fits into memory is left for whatever does.
        leave = (
            (options.memory[:, 0] > measured.memory_limit)
            & np.isfinite(worth[:, 1:]).any(axis=1)
            & ~measured.watched
        )
        worth[leave, 0] = -np.inf
        out = out_of_pools(options, measured, self._due(measured, sound))
        told = np.asarray(out.any(axis=1))
        # Of what may not fit, which the guard will cut, the network says nothing.
        best = np.where(out, np.maximum(values, -1e9), -np.inf).argmax(axis=1)
        choice = np.where(told, best, worth.argmax(axis=1))
        rows = np.arange(len(measured))
        gain = worth[rows, choice] - worth[:, 0]  # infinite where staying is out of the question
        stay = (gain < SETTLED) & ~told
        # A candidate that comes to what is in force is staying by another name.
        slots, pool = options.slots[rows, choice], options.pool[rows, choice]
        same = (pool == measured.pool) & (
            (pool > 0) | (slots == measured.slots).all(axis=1, where=measured.present)
        )
        choice = np.where(stay | same, 0, choice)
        slots = options.slots[rows, choice]
        pool = options.pool[rows, choice]
        if self._online is not None:
            self._online.decided(seen, choice, measured, options.together, slots, pool)

        def explain(i: int) -> str:
            return _reason(self, options, measured, i, int(choice[i]), None if told[i] else float(gain[i]))

        proposal = Proposal(slots=slots, pool=pool, explain=explain, rate=options.rate[rows, choice])
        return where_sound(measured, proposal, sound)

    def _due(self, measured: Measurement, sound: Bools) -> Bools:
        """``[N]`` whether a pool has been in force for so long that slots of each stage's own are tried."""
        alone = sound & (measured.pool == 0)
        tried = alone & (self._until <= 0)
        self._patience = np.where(tried, np.minimum(2.0 * self._patience, LONGEST), self._patience)
        self._until = np.where(alone, self._patience, self._until - 1.0)
        return np.asarray(self._until <= 0)


def _reason(
    agent: Agent, options: Candidates, measured: Measurement, i: int, choice: int, gain: float | None
) -> str:
    """Why a candidate is chosen: for it is worth `gain` more; None where a pool is left that memory holds back."""
    now = measured.delivered[i]
    limit = max(float(measured.memory_limit[i]), 1.0)

    def described(k: int) -> str:
        if options.pool[i, k] > 0:
            return f"a pool of {options.pool[i, k]:.0f} slot{'' if options.pool[i, k] == 1 else 's'}"
        return agent.slots_in_words(options.slots[i, k], measured.present[i])

    if choice == 0:
        more = options.rate[i] > (1.0 + HOPE) * options.rate[i, 0]
        large = options.memory[i] > limit
        if (more & large).any() and not (more & ~large).any():
            best = int(np.where(more, options.rate[i], 0.0).argmax())
            return (
                f"keep: {now:,.0f} rows/s; the twin expects {options.rate[i, best]:,.0f} of {described(best)}, which "
                f"may take {options.memory[i, best] / limit:.0%} of the memory limit"
            )
        return f"keep: {now:,.0f} rows/s; of {len(NAMES) - 1} rehearsed allocations none is worth noticeably more"
    if gain is None:
        why = "and slots of each stage's own tell what they take, which a pool does not"
    else:
        why = f"worth {gain:+.3f} more than staying" if np.isfinite(gain) else "what is in force may not fit"
    # By how much a plan or pool is larger than it need be says nothing of how it compares with what is in force.
    move = "" if NAMES[choice].startswith(("plan", "pool")) else f"{NAMES[choice]}: "
    return (
        f"{move}{described(choice)}; the twin expects {options.rate[i, choice]:,.0f} rows/s "
        f"(now {now:,.0f}) with at most {options.memory[i, choice] / limit:.0%} of the memory limit, {why}"
    )
