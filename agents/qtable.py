"""`QTable`: tabular Q-learning (Watkins and Dayan 1992, "Q-learning", Machine Learning 8). Knows no pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from intune.envs.jobs import Bools, Floats, Ints
from intune.pipelines.errors import ConfigError


class QTable:
    """Values of actions in states, learnt from transitions of N learners at once.

    The step size of a pair falls as ``1 / (1 + visits)^power``; with a power above 0.5 and up to 1, values converge
    (ibid.). Several transitions of the same pair in one update move its value as far as their mean would that often.

    Args:
        states, actions: how many.
        discount: gamma, 0 to below 1.
        power: of the fall of the step size; 0 for steps of full size, right for worlds without chance.
        initial: value of what was never tried.

    Attributes:
        values: ``[states, actions]``; visits: how often each was updated.

    Raises:
        ConfigError: an argument out of range.
    """

    def __init__(
        self, states: int, actions: int, *, discount: float, power: float = 0.7, initial: float = 0.0
    ) -> None:
        if states < 1 or actions < 1:
            raise ConfigError(f"a table needs a state and an action, but has {states} and {actions}")
        if not 0 <= discount < 1:
            raise ConfigError(f"`discount`={discount!r} must be from 0 to below 1")
        if not 0 <= power <= 1:
            raise ConfigError(f"`power`={power!r} must be from 0 to 1")
        self.discount = discount
        self.power = power
        self.values: Floats = np.full((states, actions), float(initial))
        self.visits: Ints = np.zeros((states, actions), dtype=np.int64)

    def best(self, state: Ints, allowed: Bools) -> Ints:
        """``[N]`` the action of most value among those allowed, the first of several.

        Args:
            state: ``[N]``.
            allowed: ``[N, actions]``, one at least for each.
        """
        found: Ints = np.where(allowed, self.values[state], -np.inf).argmax(axis=1)
        return found

    def choose(self, state: Ints, allowed: Bools, epsilon: float, rng: np.random.Generator) -> Ints:
        """``[N]`` the best action, or with probability `epsilon` any that is allowed."""
        chosen = self.best(state, allowed)
        if epsilon <= 0:
            return chosen
        anyone = np.where(allowed, rng.random(allowed.shape), -1.0).argmax(axis=1)
        return np.where(rng.random(len(state)) < epsilon, anyone, chosen)

    def update(
        self, state: Ints, action: Ints, reward: Floats, following: Ints, allowed: Bools, terminal: Bools
    ) -> Floats:
        """Learn from N transitions; ``[N]`` their errors before.

        Args:
            state, action, reward: ``[N]``.
            following: ``[N]`` states reached; allowed: ``[N, actions]`` what may be done there.
            terminal: ``[N]`` the episode ended there, so nothing follows. An episode that was merely cut off
                is not terminal: what would have followed counts.
        """
        later = np.where(allowed, self.values[following], -np.inf).max(axis=1)
        target = reward + self.discount * np.where(terminal, 0.0, later)
        error = target - self.values[state, action]
        pair = state * self.values.shape[1] + action
        seen, where, count = np.unique(pair, return_inverse=True, return_counts=True)
        mean = np.bincount(where, weights=error) / count
        visits = self.visits.reshape(-1)
        values = self.values.reshape(-1)
        step = (1.0 + visits[seen]) ** -self.power
        values[seen] += mean * (1.0 - (1.0 - step) ** count)
        visits[seen] += count
        return np.asarray(error)


def bins(values: Floats, edges: Any) -> NDArray[np.int64]:
    """Number of the bin of each value: 0 below the first edge; NaN goes to 0."""
    return np.searchsorted(np.asarray(edges), np.nan_to_num(values, nan=-np.inf), side="right").astype(
        np.int64
    )
