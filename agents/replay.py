"""Replay memory of many jobs side by side: decisions in the order they were made, as float16."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from intune.agents.qlearner import Batch
from intune.agents.rehearsal import Rehearsal
from intune.envs.jobs import Floats

_FIELDS = ("stage", "job", "moves", "options", "present", "allowed")


class Replay:
    """The last decisions of N jobs.

    Episodes are of one length for all jobs; what was seen after the last decision is kept as well, since an
    episode that is cut off goes on to be worth something.

    Args:
        decisions: remembered, of all jobs together.
        jobs: N.
        gamma: discount of a decision.
        n_step: rewards folded into one.
    """

    def __init__(self, *, decisions: int, jobs: int, gamma: float, n_step: int = 1) -> None:
        self._most = decisions
        self._jobs = jobs
        self._gamma = gamma
        self._n_step = n_step
        # One list of episodes; an episode holds its states (one more than its decisions), choices and rewards.
        self._episodes: list[_Episode] = [_Episode()]

    def __len__(self) -> int:
        return sum(len(episode.rewards) for episode in self._episodes)

    def add(self, seen: Rehearsal, choice: Any, reward: Floats) -> None:
        """What was seen, chosen and earned."""
        episode = self._episodes[-1]
        episode.states.append(_small(seen))
        episode.choices.append(np.asarray(choice, dtype=np.int8))
        episode.rewards.append(reward.astype(np.float32))

    def end(self, seen: Rehearsal) -> None:
        """What was seen when the episode was cut off."""
        self._episodes[-1].states.append(_small(seen))
        while len(self._episodes) > 1 and len(self) > self._most:
            self._episodes.pop(0)
        self._episodes.append(_Episode())

    def sample(self, size: int, rng: np.random.Generator) -> Batch:
        """`size` transitions, drawn evenly."""
        usable = [episode for episode in self._episodes if len(episode.states) > 1]
        lengths = np.array([len(episode.states) - 1 for episode in usable])
        which = rng.choice(len(usable), size=size, p=lengths / lengths.sum())
        step = (rng.random(size) * lengths[which]).astype(np.int64)
        job = rng.integers(0, self._jobs, size)
        width = max(episode.states[0]["moves"].shape[2] for episode in usable)
        state: dict[str, list[Any]] = {name: [] for name in _FIELDS}
        following: dict[str, list[Any]] = {name: [] for name in _FIELDS}
        action, reward, discount = [], [], []
        for e, t, i in zip(which.tolist(), step.tolist(), job.tolist(), strict=True):
            episode = usable[e]
            ahead = min(self._n_step, len(episode.states) - 1 - t)
            earned = sum(self._gamma**k * float(episode.rewards[t + k][i]) for k in range(ahead))
            for name in _FIELDS:
                state[name].append(_wide(name, episode.states[t][name][i], width))
                following[name].append(_wide(name, episode.states[t + ahead][name][i], width))
            action.append(int(episode.choices[t][i]))
            reward.append(earned)
            discount.append(self._gamma**ahead)
        return Batch(
            state=_tensors(state),
            following=_tensors(following),
            action=torch.tensor(action),
            reward=torch.tensor(reward, dtype=torch.float32),
            discount=torch.tensor(discount, dtype=torch.float32),
            allowed=torch.as_tensor(np.stack(following["allowed"])),
        )


class _Episode:
    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.choices: list[Any] = []
        self.rewards: list[Any] = []


def _small(seen: Rehearsal) -> dict[str, Any]:
    return {
        name: getattr(seen, name).astype(bool if name in ("present", "allowed") else np.float16)
        for name in _FIELDS
    }


def _wide(name: str, value: Any, width: int) -> Any:
    axis = {"stage": 0, "moves": 1, "present": 0}.get(name)
    if axis is None or value.shape[axis] == width:
        return value
    pad = [(0, 0)] * value.ndim
    pad[axis] = (0, width - value.shape[axis])
    return np.pad(value, pad)


def _tensors(parts: dict[str, list[Any]]) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.as_tensor(np.stack(parts[name]).astype(np.float32))
        for name in ("stage", "job", "moves", "options", "present")
    )
