"""Deep Q-learning itself: what a batch of transitions teaches a network. Knows neither jobs nor candidates.

DQN (Mnih et al. 2015, Nature 518, algorithm 1) with double targets (van Hasselt et al. 2016, arXiv 1509.06461,
equation 4) and Huber loss. Several steps are folded into one reward by whoever fills the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class QLearning:
    """How to learn.

    Attributes:
        learning_rate: of Adam.
        gamma: discount of a decision.
        target_update_interval: gradient steps between copies to the target network.
        max_grad_norm: gradients are scaled down to this norm.
        double: the online network picks the next action, the target network says its worth.

    Raises:
        ConfigError: a value out of range.
    """

    learning_rate: float = 1e-3
    gamma: float = 0.8
    target_update_interval: int = 200
    max_grad_norm: float = 10.0
    double: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma < 1.0:
            raise ConfigError(f"`gamma`={self.gamma!r} must be from 0 to below 1")
        for name in ("learning_rate", "target_update_interval", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}`={getattr(self, name)!r} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B transitions.

    Attributes:
        state, following: arguments of the network before and after.
        action: ``[B]`` int64, what was done.
        reward: ``[B]`` discounted sum of the rewards on the way.
        discount: ``[B]`` ``gamma ** steps``; 0 where the job ended (not where it was merely cut off).
        allowed: ``[B, K]`` actions possible afterwards.
    """

    state: tuple[Tensor, ...]
    following: tuple[Tensor, ...]
    action: Tensor
    reward: Tensor
    discount: Tensor
    allowed: Tensor


def targets(
    online: Callable[..., Tensor], target: Callable[..., Tensor], batch: Batch, *, double: bool
) -> Tensor:
    """``[B]`` what the actions were worth: reward and the discounted worth of the best that could follow."""
    with torch.no_grad():
        worth = target(*batch.following)
        judged = online(*batch.following) if double else worth
        best = judged.masked_fill(~batch.allowed, -torch.inf).argmax(dim=1, keepdim=True)
        return batch.reward + batch.discount * worth.gather(1, best)[:, 0]


class QLearner:
    """A network that learns from batches.

    Args:
        network: maps a state to ``[B, K]`` values.
        config: how.
    """

    def __init__(self, network: nn.Module, config: QLearning | None = None) -> None:
        self.config = config if config is not None else QLearning()
        self.network = network
        self.target = copy.deepcopy(network)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=self.config.learning_rate)
        self.updates = 0

    def learn(self, batch: Batch) -> float:
        """One gradient step; returns the loss."""
        wanted = targets(self.network, self.target, batch, double=self.config.double)
        values = self.network(*batch.state).gather(1, batch.action[:, None])[:, 0]
        loss = nn.functional.smooth_l1_loss(values, wanted)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.updates += 1
        if self.updates % self.config.target_update_interval == 0:
            self.target.load_state_dict(self.network.state_dict())
        return float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        """All that continuing identically takes."""
        return {
            "network": self.network.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = int(state["updates"])
