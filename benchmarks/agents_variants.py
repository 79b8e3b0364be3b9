"""Agents of the benchmark by name: those of the registry, and the `dqn` without one of its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from intune.agents import registry
from intune.agents.base import Agent
from intune.agents.candidates import NAMES, Candidates
from intune.agents.dqn import DQN
from intune.agents.guard import Guard
from intune.agents.referee import Referee
from intune.agents.rehearsal import Rehearsal
from intune.envs.measurement import Measurement


class Without(DQN):
    """The `dqn` that may not choose some of its candidates.

    Args:
        closed: beginnings of the candidates' names.
        **options: of `DQN`.
    """

    def __init__(self, *closed: str, **options: Any) -> None:
        self._closed = np.array([any(name.startswith(start) for start in closed) for name in NAMES])
        super().__init__(**options)

    def look(self, measured: Measurement) -> tuple[Candidates, Rehearsal]:
        """The same, with some not allowed."""
        options, seen = super().look(measured)
        return options, replace(seen, allowed=seen.allowed & ~self._closed)


ABLATIONS: dict[str, Callable[[], Agent]] = {
    "dqn+guard": lambda: Guard(DQN()),
    "with the referee": lambda: Guard(Referee(DQN())),
    "learning on the job": lambda: Guard(DQN(learning=True)),
    "the planner's rule instead of the network": lambda: registry.make("planner+guard"),
    "without pools": lambda: Guard(DQN(pools=False)),
    "without plans": lambda: Guard(Without("plan", "pool", "half way")),
    "without the guard": lambda: DQN(),
}
"""The first is the whole; the referee stands around agents in `tune`, not in the others' figures here."""


def maker(name: str, **options: Any) -> Callable[[], Agent]:
    """What makes an agent or a variant."""
    if name in ABLATIONS and not options:
        return ABLATIONS[name]
    return lambda: registry.make(name, **options)
