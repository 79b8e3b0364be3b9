"""What the tests of agents share: measurements made by hand, and an agent run on simulated jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from intune.agents.base import Agent
from intune.envs.jobs import Jobs
from intune.envs.measurement import STAGE_FIELDS, Measurement
from intune.envs.simulator import Simulator

Measured = Callable[..., Measurement]


def _measurement(*, stages: int = 3, jobs: int = 1, **values: Any) -> Measurement:
    """Jobs whose stages make 1,000 rows/s with two slots that are always at work, unless said otherwise."""
    given: dict[str, Any] = {
        "slots": 2.0, "rate": 1000.0, "busy": 2.0, "cpu": 2.0, "starved": 0.0, "blocked": 0.0, "block_bytes": 1e6,
        "queued_bytes": 1e6, "queue_fill": 0.5, "pool": 0.0, "delivered": 1000.0, "step": 1e-6, "waiting": 0.9,
        "cpus": 16.0, "cpus_used": 6.0, "memory_used": 1e9, "memory_queued": 1e6, "memory_limit": 8e9,
        "memory_base": 1e8, "slot_limit": 64.0, "clock": np.nan, "bandwidth": np.nan, "since_change": 50.0,
        "interval": 5.0,
    } | values  # fmt: skip
    arrays: dict[str, Any] = {
        name: np.array(
            np.broadcast_to(
                np.asarray(value, dtype=np.float64), (jobs, stages) if name in STAGE_FIELDS else (jobs,)
            )
        )
        for name, value in given.items()
        if name not in ("present", "killed", "watched")
    }
    arrays["present"] = np.array(np.broadcast_to(values.get("present", True), (jobs, stages)))
    for name in ("killed", "watched"):
        arrays[name] = np.array(np.broadcast_to(values.get(name, False), (jobs,)))
    return Measurement(**arrays)


def _play(agent: Agent, jobs: Jobs, steps: int) -> list[Measurement]:
    simulator = Simulator(jobs)
    agent.start(len(jobs), jobs.stages)
    seen = [simulator.run()]
    for _ in range(steps):
        proposal = agent.propose(seen[-1])
        simulator.allocate(proposal.slots, proposal.pool)
        seen.append(simulator.run())
    return seen


@pytest.fixture(scope="session")
def measurement() -> Measured:
    return _measurement


@pytest.fixture(scope="session")
def play() -> Callable[[Agent, Jobs, int], list[Measurement]]:
    """Run an agent on jobs: the measurements, of which the first is before any decision."""
    return _play
