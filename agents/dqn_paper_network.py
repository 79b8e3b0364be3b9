"""The network of `dqn-paper` and how it learns, in NumPy.

DQN (Mnih et al. 2015, Nature 518, algorithm 1) with Huber loss and Adam, as `qlearner` has them, but with the gradient
written out: for three small layers and 16 transitions, torch's bookkeeping takes ten times as long as the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intune.agents.qlearner import QLearning
from intune.envs.actions import MOVES
from intune.envs.observation import PAPER_FIELDS

HIDDEN = 64
BRANCHES = 8
"""Stages that the network has a branch for; further ones share the last."""

TRANSITION = np.dtype(
    [
        ("state", np.float32, len(PAPER_FIELDS)),
        ("branch", np.int64),
        ("action", np.int64),
        ("reward", np.float32),
        ("following", np.float32, len(PAPER_FIELDS)),
        ("ended", np.bool_),
    ]
)
"""What the increment of one stage led to; `ended` where the job did (not where it was merely cut off)."""

DECAY, DECAY_OF_SQUARES, SMALL = 0.9, 0.999, 1e-8
"""Of Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1), as torch has them."""

Vector = NDArray[np.float32]
Arrays = Mapping[str, NDArray[np.float32]]


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the parameters, by name."""
    return {
        "first.weight": (HIDDEN, len(PAPER_FIELDS)),
        "first.bias": (HIDDEN,),
        "second.weight": (HIDDEN, HIDDEN),
        "second.bias": (HIDDEN,),
        "third.weight": (BRANCHES * len(MOVES), HIDDEN),
        "third.bias": (BRANCHES * len(MOVES),),
    }


def drawn(rng: np.random.Generator) -> Arrays:
    """Parameters to begin with, as torch's linear layers have them: even within 1 / sqrt(inputs)."""
    made = {}
    for name, shape in shapes().items():
        if name.endswith("weight"):
            bound = shape[1] ** -0.5
        made[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return made


def values_of(arrays: Arrays, state: Any) -> Any:
    """``[N, 6]`` to ``[N, BRANCHES, 5]``."""
    return _passed(arrays, state)[-1].reshape(len(state), BRANCHES, len(MOVES))


class PaperNetwork:
    """Parameters that learn from batches.

    Args:
        arrays: parameters to begin with, by name.
        config: how to learn.

    Attributes:
        arrays: parameters by name, as they are now.
        updates: gradient steps made.
    """

    def __init__(self, arrays: Arrays, config: QLearning) -> None:
        self.config = config
        # All in one vector, so that a step is a handful of operations.
        self._all = np.concatenate([np.ravel(arrays[name]) for name in shapes()]).astype(np.float32)
        self.arrays = _named(self._all)
        self._all_target = self._all.copy()
        self._target = _named(self._all_target)
        self._mean, self._square = np.zeros_like(self._all), np.zeros_like(self._all)
        self.updates = 0

    def learn(self, batch: Any) -> None:
        """One gradient step on ``[B]`` of `TRANSITION`."""
        gradient = self._gradient(batch)
        gradient *= min(1.0, self.config.max_grad_norm / (float(np.linalg.norm(gradient)) + 1e-6))
        self.updates += 1
        self._mean += (1.0 - DECAY) * (gradient - self._mean)
        self._square += (1.0 - DECAY_OF_SQUARES) * (gradient * gradient - self._square)
        # Both means begin at 0 and are too small by these.
        mean_part, square_part = 1.0 - DECAY**self.updates, 1.0 - DECAY_OF_SQUARES**self.updates
        spread = np.sqrt(self._square / square_part) + SMALL
        self._all -= self.config.learning_rate / mean_part * self._mean / spread
        if self.updates % self.config.target_update_interval == 0:
            self._all_target[:] = self._all

    def _gradient(self, batch: Any) -> Vector:
        """Of the mean Huber loss, by all parameters."""
        rows = np.arange(len(batch))
        first, second, values = _passed(self.arrays, batch["state"])
        there = batch["branch"] * len(MOVES) + batch["action"]
        error = np.clip(values[rows, there] - self._wanted(batch), -1.0, 1.0)
        by_values = np.zeros_like(values)
        by_values[rows, there] = error / len(batch)
        by_second = (by_values @ self.arrays["third.weight"]) * (second > 0)
        by_first = (by_second @ self.arrays["second.weight"]) * (first > 0)
        into = ((by_first, batch["state"]), (by_second, first), (by_values, second))
        return np.concatenate([part for by, x in into for part in ((by.T @ x).ravel(), by.sum(axis=0))])

    def _wanted(self, batch: Any) -> Vector:
        """``[B]`` reward and the discounted worth of the best increment that could follow."""
        rows = np.arange(len(batch))
        worth = values_of(self._target, batch["following"])[rows, batch["branch"]]
        judged = worth
        if self.config.double:
            judged = values_of(self.arrays, batch["following"])[rows, batch["branch"]]
        later = worth[rows, judged.argmax(axis=1)]
        wanted: Vector = batch["reward"] + np.float32(self.config.gamma) * ~batch["ended"] * later
        return wanted


def _named(vector: Vector) -> Arrays:
    """Its parts, not copied, as parameters by name."""
    named, begin = {}, 0
    for name, shape in shapes().items():
        end = begin + int(np.prod(shape))
        named[name] = vector[begin:end].reshape(shape)
        begin = end
    return named


def _passed(arrays: Arrays, state: Any) -> tuple[Any, Any, Any]:
    """What each layer makes of the one before."""
    first = np.maximum(state @ arrays["first.weight"].T + arrays["first.bias"], 0.0)
    second = np.maximum(first @ arrays["second.weight"].T + arrays["second.bias"], 0.0)
    return first, second, second @ arrays["third.weight"].T + arrays["third.bias"]
