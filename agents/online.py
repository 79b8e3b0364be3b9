"""Learning on the job: what the running job teaches a pre-trained Q-network, a small step at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from intune.agents.network import QNetwork, forward, tensors
from intune.agents.one_thread import one_thread
from intune.agents.qlearner import Batch, QLearner, QLearning
from intune.agents.qweights import Weights
from intune.agents.rehearsal import Rehearsal
from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement

CAPACITY = 512
"""Decisions remembered; at one in five seconds, those of the last 40 minutes."""

BATCH = 16
LEARNING_RATE = 1e-4
"""A fifth of the pre-training's: the job corrects what was learnt, it does not replace it."""

NOTHING = -1.0
"""Pool of a decision that was none."""


class Online:
    """A Q-network that goes on learning from one running job (or a few side by side).

    The reward of a decision is what was delivered in the interval after it, as a share of the most that the
    twin thought possible: the live counterpart of the pre-training's share of the oracle's rate.

    Args:
        weights: to begin with.
        seed: of what is drawn from memory.
    """

    def __init__(self, weights: Weights, *, seed: int = 0) -> None:
        self._weights = weights
        # Made when there is something to learn from: torch's optimisers take a second of processor time to import
        # where nothing else has done so, which a job should not wait for before its first batch.
        self._learner: QLearner | None = None
        self._arrays: Mapping[str, Any] = weights.arrays
        self._rng = np.random.default_rng(seed)
        self._last: tuple[Rehearsal, np.ndarray, Floats, Floats, Floats] | None = None
        self._memory: list[tuple[Rehearsal, np.ndarray, np.ndarray, Rehearsal]] = []
        self._next = 0

    def values(self, seen: Rehearsal) -> np.ndarray:
        """``[N, K]`` values by what is known now."""
        if self._learner is None:
            return np.asarray(self._weights.values(seen))
        # In NumPy: a handful of candidates is not worth waking torch's threads.
        return forward(self._arrays, seen)

    def decided(
        self,
        seen: Rehearsal,
        choice: np.ndarray,
        measured: Measurement,
        target: Floats,
        slots: Floats,
        pool: Floats,
    ) -> None:
        """Remember a decision, reward the one before it with what was measured since, and learn a little.

        A decision that was not carried out (on trial was another, or it did not fit) teaches nothing.

        Args:
            seen, measured: what was decided on.
            choice: ``[N]`` numbers of the candidates.
            target: ``[N]`` rows/s thought possible.
            slots, pool: ``[N, S]`` and ``[N]`` of the candidates chosen.
        """
        if self._last is not None and len(self._last[1]) == len(choice):
            before, chosen, hoped, wanted, shared = self._last
            reward = np.clip(measured.delivered / np.maximum(hoped, 1e-12), 0.0, 1.2) - measured.killed
            off = (np.abs(measured.slots - wanted) * measured.present).max(axis=1, initial=0.0) > 0.5
            done = (measured.pool == shared) & ((shared > 0) | ~off) & np.isfinite(reward)
            # A trainer that saves or validates takes nothing for a while, whatever is in force.
            done &= measured.sound() | measured.killed
            if done.any():
                rows = np.flatnonzero(done)
                entry = (before.take(rows), chosen[rows], reward[rows].astype(np.float32), seen.take(rows))
                self._remember(entry)
                self._learn()
        self._last = (seen, choice, target, slots, pool.copy())

    def forget(self, rows: Any) -> None:
        """New jobs at `rows`: what was decided for those before is not judged by what these deliver."""
        if self._last is not None:
            self._last[4][rows] = NOTHING

    def _remember(self, entry: tuple[Rehearsal, np.ndarray, np.ndarray, Rehearsal]) -> None:
        if len(self._memory) < CAPACITY:
            self._memory.append(entry)
        else:
            self._memory[self._next % CAPACITY] = entry
        self._next += 1

    def _learn(self) -> None:
        if len(self._memory) < BATCH:
            return
        picked = [self._memory[i] for i in self._rng.integers(0, len(self._memory), BATCH)]
        states = [tensors(entry[0]) for entry in picked]
        following = [tensors(entry[3]) for entry in picked]
        if self._learner is None:
            network = QNetwork.of(self._weights.arrays)
            config = QLearning(learning_rate=LEARNING_RATE, gamma=self._weights.gamma)
            self._learner = QLearner(network, config)
        gamma = self._learner.config.gamma
        batch = Batch(
            state=tuple(torch.cat(part) for part in zip(*states, strict=True)),
            following=tuple(torch.cat(part) for part in zip(*following, strict=True)),
            action=torch.cat([torch.as_tensor(entry[1], dtype=torch.int64) for entry in picked]),
            reward=torch.cat([torch.as_tensor(entry[2]) for entry in picked]),
            discount=torch.full((sum(len(entry[1]) for entry in picked),), gamma),
            allowed=torch.cat([torch.as_tensor(entry[3].allowed) for entry in picked]),
        )
        with one_thread():
            self._learner.learn(batch)
        self._arrays = self._learner.network.arrays()  # type: ignore[operator]
