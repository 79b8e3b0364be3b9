"""`qlearning`: tabular Q-learning over coarse bins of the measurements; an action moves one stage's slots, or two."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from intune.agents.base import Agent, Proposal, where_sound
from intune.agents.heuristic_adaptive import balanced
from intune.agents.measures import LARGE, cpu_per_row, known, own_slots, time_per_row
from intune.agents.qtable import QTable, bins
from intune.envs.jobs import Bools, Floats, Ints
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError

ACTIONS = ("keep", "+1 slowest", "+5 slowest", "-1 idlest", "-5 idlest", "idlest to slowest", "x2 slowest")
EDGES: dict[str, Sequence[float]] = {
    "waiting": (0.02, 0.3),
    "free CPUs": (0.05, 0.3),
    "memory": (0.6, 0.8, 0.9),
    "lead": (1.1, 1.5, 3.0),
    "slowest waits": (0.5,),
    "idlest": (0.5, 0.8),
}
"""Edges of the bins: of the trainer's waiting share, the share of CPUs without work, the share of memory in use, how
many times more rows the second slowest stage could make than the slowest, the share of its time that the slowest
waits without a processor, and the share of its slots that the idlest stage with more than one does not use."""
STATES = int(np.prod([len(edges) + 1 for edges in EDGES.values()]))
DISCOUNT = 0.9
"""Looks some ten decisions ahead: as long as a good agent takes."""
KILLED = -10.0
"""Reward of running out of memory: what ten intervals at the full rate bring."""


class QLearning(Agent):
    """One table for all jobs, learnt in the simulator; goes on learning.

    The reward of an interval is rows/s delivered / what processors and trainer allow (`balanced`), and `KILLED`
    when the job ran out of memory.

    Args:
        table: to start from; None for the one that comes with the package.
        epsilon: probability of an action at random.
        learn: go on learning; None for doing so with one job, a tuner's. Of many side by side, each would profit from
            what the others try.
        seed: of the actions at random.

    Raises:
        ConfigError: `epsilon` out of range, or a table of other states and actions.
    """

    name = "qlearning"

    def __init__(
        self, *, table: QTable | None = None, epsilon: float = 0.0, learn: bool | None = None, seed: int = 0
    ) -> None:
        if not 0 <= epsilon <= 1:
            raise ConfigError(f"`epsilon`={epsilon!r} must be from 0 to 1")
        self.table = shipped() if table is None else table
        if self.table.values.shape != (STATES, len(ACTIONS)):
            raise ConfigError(
                f"`table` has shape {self.table.values.shape}; ({STATES}, {len(ACTIONS)}) is needed"
            )
        self.epsilon = epsilon
        self._learn = learn
        self._rng = np.random.default_rng(seed)
        self.start(0, 0)

    def start(self, jobs: int, stages: int) -> None:
        """New jobs; what was learnt stays."""
        self._learning = jobs == 1 if self._learn is None else self._learn
        self._state: Ints = np.zeros(jobs, dtype=np.int64)
        self._action: Ints = np.full(jobs, -1, dtype=np.int64)

    def forget(self, rows: Any) -> None:
        """New jobs at `rows`."""
        self._action[rows] = -1

    def propose(self, measured: Measurement) -> Proposal:
        """The action of most value, after learning from what the last one brought."""
        fine = known(measured)
        state, allowed, slowest, idlest = observe(measured)
        if self._learning:
            self._study(measured, fine, state, allowed)
        action = self.table.choose(state, allowed, self.epsilon, self._rng)
        # A job that cannot be decided on has no action whose fruit could be seen next.
        self._state, self._action = state, np.where(fine, action, -1)
        slots = moved(measured, action, slowest, idlest)
        values = self.table.values

        def explain(i: int) -> str:
            said = ACTIONS[action[i]]
            if action[i] == 0:
                said = "keep"
            return (
                f"{said}: worth {values[state[i], action[i]]:.2f} in state {state[i]} (slowest: "
                f"{self.stage_name(slowest[i])}, idlest: {self.stage_name(idlest[i])})"
            )

        pool = np.where(action == 0, measured.pool, 0.0)
        slots = np.where((action == 0)[:, None], measured.slots, slots)
        return where_sound(measured, Proposal(slots=slots, pool=pool, explain=explain), fine)

    def _study(self, measured: Measurement, fine: Bools, state: Ints, allowed: Bools) -> None:
        killed = np.asarray(measured.killed)
        rows = np.flatnonzero((self._action >= 0) & (fine | killed))
        if not len(rows):
            return
        target = np.where(fine, balanced(measured)[0], LARGE)
        reward = np.where(killed, KILLED, np.nan_to_num(measured.delivered) / target)
        self.table.update(
            self._state[rows], self._action[rows], reward[rows], state[rows], allowed[rows], killed[rows]
        )


def observe(measured: Measurement) -> tuple[Ints, Bools, Ints, Ints]:
    """State, ``[N]``, allowed actions, ``[N, A]``, and the slowest and the idlest stage, ``[N]`` each."""
    present, slots = measured.present, own_slots(measured)
    time, cpu = time_per_row(measured), cpu_per_row(measured)
    each = np.arange(len(measured))
    makes = np.divide(slots, time, out=np.full_like(slots, LARGE), where=present & (time > 0))
    ordered = np.sort(makes, axis=1)
    slowest = makes.argmin(axis=1)
    second = ordered[:, min(1, measured.stages - 1)]
    # With slots of its own the share that works; a pool's slots are counted as they work.
    busy = np.where(measured.pool[:, None] > 0, slots, np.nan_to_num(measured.busy))
    idle = np.where(present & (slots > 1), 1.0 - busy / np.maximum(slots, 1.0), -1.0)
    idlest = idle.argmax(axis=1)
    waits = 1.0 - cpu[each, slowest] / np.maximum(time[each, slowest], 1e-300)
    cpus = np.maximum(np.nan_to_num(measured.cpus), 1e-9)
    found = {
        "waiting": measured.waiting,
        "free CPUs": 1.0 - np.nan_to_num(measured.cpus_used) / cpus,
        "memory": np.nan_to_num(measured.memory_used) / np.maximum(np.nan_to_num(measured.memory_limit), 1.0),
        "lead": second / np.maximum(ordered[:, 0], 1e-300),
        "slowest waits": waits,
        "idlest": idle[each, idlest],
    }
    state = np.zeros(len(measured), dtype=np.int64)
    for name, edges in EDGES.items():
        state = state * (len(edges) + 1) + bins(found[name], edges)
    room = np.floor(np.nan_to_num(measured.slot_limit)) - slots.sum(axis=1)
    spare = slots[each, idlest] - 1.0
    differ = idlest != slowest
    give = (spare >= 1) & differ
    allowed = np.stack(
        [
            np.ones(len(measured), dtype=bool), room >= 1, room >= 5, give, give & (spare >= 5), give,
            room >= slots[each, slowest],
        ],
        axis=1,
    )  # fmt: skip
    return state, allowed, slowest, idlest


def moved(measured: Measurement, action: Ints, slowest: Ints, idlest: Ints) -> Floats:
    """``[N, S]`` slots after the actions."""
    slots = own_slots(measured)
    each = np.arange(len(slots))
    more = _MORE[action] + np.where(action == ACTIONS.index("x2 slowest"), slots[each, slowest], 0.0)
    slots[each, slowest] += more
    slots[each, idlest] -= _LESS[action]
    return np.where(measured.present, np.maximum(slots, 1.0), 0.0)


def shipped() -> QTable:
    """A copy of the table that comes with the package."""
    table = new_table()
    table.values[:], table.visits[:] = _file()
    return table


def new_table() -> QTable:
    """A table that has seen nothing: all actions are worth the same, so all jobs keep what they have."""
    return QTable(STATES, len(ACTIONS), discount=DISCOUNT)


@cache
def _file() -> tuple[Floats, Ints]:
    with files("intune.agents").joinpath("weights/qlearning.npz").open("rb") as file, np.load(file) as saved:
        return saved["values"].astype(np.float64), saved["visits"].astype(np.int64)


_MORE: Floats = np.array([0.0, 1.0, 5.0, 0.0, 0.0, 1.0, 0.0])
_LESS: Floats = np.array([0.0, 0.0, 0.0, 1.0, 5.0, 1.0, 0.0])
