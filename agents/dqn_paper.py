"""`dqn-paper`: the paper's agent, built after the paper (InTune, RecSys 2023, arXiv 2308.08500).

A three-layer MLP maps six numbers (pipeline latency, free CPUs, free memory, model latency, bandwidth, clock) to
values of the increments -5, -1, 0, +1, +5 of every stage's slots; one branch a stage, as in Tavakoli et al. 2018,
arXiv 1711.08946. Reward: rows/s x (1 - share of memory in use). Pre-trained in the simulator (`dqn_paper_training`),
tuned on line. Nothing in its state says which stage is slow, so it has to find out by trying.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from intune.agents.base import Agent, Proposal, where_sound
from intune.agents.dqn_paper_network import BRANCHES, TRANSITION, Arrays, PaperNetwork, shapes, values_of
from intune.agents.measures import without_absent
from intune.agents.qlearner import QLearning
from intune.agents.qweights import Weights, load
from intune.envs.actions import MOVES, feasible
from intune.envs.jobs import Bools, Floats
from intune.envs.measurement import Measurement
from intune.envs.observation import paper_features
from intune.pipelines.errors import ConfigError

SHIPPED = Path(__file__).resolve().parent / "weights" / "dqn-paper.npz"
CAPACITY = 512
BATCH = 16
LEARNING_RATE = 1e-4


def reward_of(measured: Measurement, scale: Floats) -> Floats:
    """``[N]`` rows/s, as multiples of `scale`, times the share of memory that is free; -1 for running out of it."""
    share = np.clip(measured.memory_used / np.maximum(measured.memory_limit, 1.0), 0.0, 1.0)
    return np.where(measured.killed, -1.0, measured.delivered / np.maximum(scale, 1e-12) * (1.0 - share))


def branches(stages: int) -> Any:
    """``[S]`` the branch of every stage."""
    return np.minimum(np.arange(stages), BRANCHES - 1)


class DQNPaper(Agent):
    """See the module.

    Args:
        weights: parameters, or a file of them; by default those shipped with the package.
        learning: whether to be tuned on line.
        epsilon: share of increments drawn by chance, stage by stage.
        seed: of those and of what is drawn from memory.

    Raises:
        ConfigError: `epsilon` out of range.
    """

    name = "dqn-paper"

    def __init__(
        self,
        *,
        weights: Weights | str | Path | None = None,
        learning: bool = True,
        epsilon: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= epsilon <= 1:
            raise ConfigError(f"`epsilon`={epsilon!r} must be from 0 to 1")
        known = isinstance(weights, Weights)
        self.weights: Weights = weights if known else load(weights or SHIPPED, shapes=shapes())  # type: ignore[assignment, arg-type]
        self._learning = learning
        self.epsilon = epsilon
        self._seed = seed
        self.start(0, 1)

    def start(self, jobs: int, stages: int) -> None:
        """Forget everything but what was learnt in the simulator."""
        self._rng = np.random.default_rng(self._seed)
        config = QLearning(learning_rate=LEARNING_RATE, gamma=self.weights.gamma, double=False)
        self._tuner = Tuner(self.weights.arrays, config, seed=self._seed) if self._learning else None
        self._last: tuple[Any, Any, Bools] | None = None
        self._scale: Floats = np.zeros(jobs)

    def tuned_by(self, tuner: Tuner, rng: np.random.Generator) -> None:
        """Decide by a network that outlives the jobs, and explore by `rng`: for training."""
        self._tuner, self._rng = tuner, rng

    def forget(self, rows: Any) -> None:
        """New jobs at `rows`."""
        self._scale[rows] = 0.0
        self._last = None

    def propose(self, measured: Measurement) -> Proposal:
        """The increment of most value for every stage."""
        measured = without_absent(measured)
        sound = measured.sound()
        state = np.nan_to_num(paper_features(measured))
        # What a job delivers at first is the unit of its rewards: rows/s of two jobs cannot be compared.
        first = sound & (self._scale == 0)
        self._scale = np.where(first, measured.delivered, self._scale)
        if self._tuner is not None and self._last is not None:
            reward = reward_of(measured, self._scale)
            before, chosen, made = self._last
            usable = made & (sound | measured.killed) & (self._scale > 0) & np.isfinite(reward) & ~first
            self._tuner.saw(before, chosen, reward, state, measured, usable)
        arrays = self.weights.arrays if self._tuner is None else self._tuner.network.arrays
        values = values_of(arrays, state)[:, branches(measured.stages)]
        choice = values.argmax(axis=2)
        if self.epsilon > 0:
            anything = self._rng.integers(0, len(MOVES), choice.shape)
            choice = np.where(self._rng.random(choice.shape) < self.epsilon, anything, choice)
        self._last = state, choice, sound  # elsewhere what is in force is kept, whatever was chosen
        now = np.where(measured.pool[:, None] > 0, np.maximum(np.rint(measured.busy), 1.0), measured.slots)
        now = np.nan_to_num(now) * measured.present
        steps = np.asarray(MOVES, dtype=np.float64)[choice]
        slots = feasible(
            measured.present, now, np.maximum(now + steps, 1.0), np.nan_to_num(measured.slot_limit)
        )
        present = measured.present
        none = ~(steps * present).any(axis=1)
        slots = np.where(none[:, None], measured.slots, slots)
        pool = np.where(none, measured.pool, 0.0)
        same = (measured.pool == 0) & (slots == measured.slots).all(axis=1, where=present)

        def explain(i: int) -> str:
            if none[i]:
                return "keep: the network values no increment of any stage above none"
            moves = "/".join(f"{step:+.0f}" for step in steps[i][present[i]])
            said = (
                f"increments {moves} are worth most to the network, from latency, free CPUs and memory alone"
            )
            return f"keep: {said}, but there are no slots for them" if same[i] else said

        return where_sound(measured, Proposal(slots=slots, pool=pool, explain=explain), sound)


class Tuner:
    """The network as it goes on learning from the running jobs.

    Args:
        arrays: parameters to begin with.
        config: of the network.
        seed: of what is drawn from memory.
        capacity: transitions remembered; batch: drawn for a gradient step; steps: gradient steps a decision.
    """

    def __init__(
        self, arrays: Arrays, config: QLearning, *, seed: int = 0, capacity: int = CAPACITY, batch: int = BATCH,
        steps: int = 1,
    ) -> None:  # fmt: skip
        self.network = PaperNetwork(arrays, config)
        self.remembered = 0
        self._rng = np.random.default_rng(seed)
        self._memory = np.zeros(capacity, dtype=TRANSITION)
        self._batch, self._steps = batch, steps

    def saw(
        self, state: Any, choice: Any, reward: Floats, following: Any, measured: Measurement, usable: Any
    ) -> None:
        """Remember a decision of every job that is `usable`, and learn a little."""
        job, stage = np.nonzero(usable[:, None] & measured.present)
        new = np.zeros(len(job), dtype=TRANSITION)
        new["state"], new["following"] = state[job], following[job]
        new["branch"], new["action"] = branches(measured.stages)[stage], choice[job, stage]
        new["reward"], new["ended"] = reward[job], measured.killed[job]
        self._memory[(self.remembered + np.arange(len(job))) % len(self._memory)] = new
        self.remembered += len(job)
        filled = min(self.remembered, len(self._memory))
        if filled >= self._batch:
            for _ in range(self._steps):
                self.network.learn(self._memory[self._rng.integers(0, filled, self._batch)])
