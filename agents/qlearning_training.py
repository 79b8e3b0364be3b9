"""Makes the table of `qlearning` in the simulator: ``python -m intune.agents.qlearning_training``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from intune.agents.qlearning import QLearning, new_table
from intune.agents.qtable import QTable
from intune.envs.conditions import record
from intune.envs.scenario import Scenario
from intune.envs.simulator import Simulator
from intune.envs.source import JobSource

ROUNDS = 24
JOBS = 256
STEPS = 48


def train(
    scenarios: Sequence[str], *, rounds: int = ROUNDS, jobs: int = JOBS, steps: int = STEPS, seed: int = 0
) -> QTable:
    """Play training jobs with ever fewer actions at random.

    Args:
        scenarios: names of families.
        rounds: each plays `jobs` new jobs of every family.
        jobs: side by side.
        steps: decisions of a job.
        seed: of the jobs and of chance.
    """
    table = new_table()
    sources = [JobSource(Scenario.load(name), split="train", seed=seed) for name in scenarios]
    for turn in range(rounds):
        epsilon = max(1.0 - 1.25 * turn / max(rounds, 1), 0.1)
        for number, source in enumerate(sources):
            chance = seed * 1_000_003 + turn * 101 + number
            agent = QLearning(table=table, epsilon=epsilon, learn=True, seed=chance)
            ids = np.arange(turn * jobs, (turn + 1) * jobs)
            drawn, normals = source.take(ids, steps + 1)
            simulator = Simulator(drawn, record(drawn, normals))
            agent.start(len(drawn), drawn.stages)
            measured = simulator.run()
            for _ in range(steps):
                proposal = agent.propose(measured)
                simulator.allocate(proposal.slots, proposal.pool)
                measured = simulator.run()
            agent.propose(measured)
    return table


def save(table: QTable, path: Path) -> None:
    """Write a table, in single precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, values=table.values.astype(np.float32), visits=table.visits)


if __name__ == "__main__":
    made = train(Scenario.names())
    save(made, Path(__file__).parent / "weights" / "qlearning.npz")
    print(f"{(made.visits > 0).mean():.0%} of the pairs were tried, {made.visits.sum():,} times in all")
