"""Wrappers for learners that know one choice only, DQN above all."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from intune.envs.actions import KEEP, MOVES
from intune.pipelines.errors import ConfigError

CHANGES = tuple(at for at in range(len(MOVES)) if at != KEEP)
"""Moves that change something."""


class DiscreteMoves(gym.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """One choice of ``4 S + 1`` instead of one for each stage: 0 keeps all, ``1 + 4 s + m`` makes change m of stage s.

    The changes are -5, -1, +1 and +5 slots.

    Args:
        env: with ``action="moves"``.

    Raises:
        ConfigError: other actions.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)  # so that `env.spec.make()` makes it again
        gym.ActionWrapper.__init__(self, env)
        space = env.action_space
        if not isinstance(space, spaces.MultiDiscrete) or set(space.nvec.tolist()) != {len(MOVES)}:
            raise ConfigError(f'`env` has actions {space}; `DiscreteMoves` needs one with `action`="moves"')
        self._stages = len(space.nvec)
        self._choices = spaces.Discrete(len(CHANGES) * self._stages + 1)
        self.action_space = self._choices

    def action(self, action: Any) -> NDArray[np.int64]:
        """The moves of all stages, ``[S]``.

        Raises:
            ConfigError: a choice that there is not.
        """
        if not self._choices.contains(action):
            raise ConfigError(f"`action`={action!r} must be a whole number from 0 to {self._choices.n - 1}")
        moves = np.full(self._stages, KEEP, dtype=np.int64)
        if action > 0:
            stage, change = divmod(int(action) - 1, len(CHANGES))
            moves[stage] = CHANGES[change]
        return moves

    def action_masks(self) -> NDArray[np.bool_]:
        """``[4 S + 1]`` which choices would be made in full."""
        of_stages = self.env.get_wrapper_attr("action_masks")().reshape(self._stages, len(MOVES))
        return np.concatenate([[True], of_stages[:, list(CHANGES)].reshape(-1)])
