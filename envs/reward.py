"""The reward of one interval, for every environment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intune.envs.jobs import Floats
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Reward:
    """``rate^a (1 - memory)^b - slots - moves``, and a penalty for running out of memory.

    *rate* is rows/s delivered, divided by a reference where one is given; *memory* the share of the limit in
    use. The default is the paper's (after the paper): rate x (1 - memory used / memory available).

    Attributes:
        rate: weight of the rate.
        memory: exponent of the free share of memory; 0: memory does not matter.
        slots: taken off for slots in use, as a share of the slots that may be given out.
        moving: taken off for slots moved, as a share of those.
        killed: taken off when the job runs out of memory.

    Raises:
        ConfigError: a negative or infinite weight.
    """

    rate: float = 1.0
    memory: float = 1.0
    slots: float = 0.0
    moving: float = 0.0
    killed: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rate", "memory", "slots", "moving", "killed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigError(f"`{name}`={value!r} of the reward must be 0 or more and finite")

    def __call__(self, measured: Measurement, *, moved: Floats, reference: Floats | float = 1.0) -> Floats:
        """``[N]`` rewards.

        Args:
            measured: the interval.
            moved: ``[N]`` slots added plus slots taken away at its start.
            reference: rows/s that count as 1 (``[N]`` or one for all).
        """
        reward = self.rate * (measured.delivered / reference)
        if self.memory:
            free = np.maximum(1.0 - measured.memory_used / measured.memory_limit, 0.0)
            reward = reward * (free if self.memory == 1.0 else free**self.memory)
        if self.slots or self.moving:
            used = np.where(measured.pool > 0, measured.pool, (measured.slots * measured.present).sum(axis=1))
            reward = reward - (self.slots * used + self.moving * moved) / measured.slot_limit
        if self.killed:
            reward = reward - self.killed * measured.killed
        return np.asarray(reward)


PAPER = Reward(killed=0.0)
"""After the paper: throughput x (1 - memory used / memory available)."""
