"""Pre-training of `dqn-paper` in the simulator: some hundreds of episodes of jobs side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np

from intune.agents.dqn_paper import DQNPaper, Tuner
from intune.agents.dqn_paper_network import drawn
from intune.agents.oracle_plan import plan
from intune.agents.outcomes import mean
from intune.agents.pretrain import Interrupted, Recipe
from intune.agents.qlearner import QLearning
from intune.agents.qweights import Weights
from intune.envs.conditions import record
from intune.envs.scenario import Scenario
from intune.envs.simulator import Simulator
from intune.envs.source import JobSource
from intune.pipelines.errors import ConfigError

LEARNING = QLearning(learning_rate=5e-4, gamma=0.9, double=False, target_update_interval=250)

PAPER_RECIPE = Recipe(
    families=("paper", "elastic", "heavy-transform", "criteo"), episodes=300, jobs=16, steps=40, seed=2,
    learning=LEARNING, n_step=1, batch_size=128, gradient_steps=4, exploration=1.0, final_exploration=0.1,
    killed_cost=1.0, buffer=20_000,
)  # fmt: skip
"""Some hundreds of episodes; machines like those of the paper. `buffer` counts transitions of single stages."""


def pretrain_paper(
    recipe: Recipe = PAPER_RECIPE, *, watch: Callable[[int, dict[str, float]], None] | None = None
) -> Weights:
    """Train the paper's network from nothing.

    Args:
        recipe: how; `n_step`, `slot_cost`, `memory_cost` and `killed_cost` do not apply to this agent.
        watch: is told of the progress.

    Raises:
        ConfigError: there were so few transitions that nothing was learnt.
        Interrupted: by Ctrl-C, where something was learnt by then.
    """
    began = time.monotonic()
    tuner = Tuner(
        drawn(np.random.default_rng(recipe.seed)), recipe.learning, seed=recipe.seed, capacity=recipe.buffer,
        batch=recipe.batch_size, steps=recipe.gradient_steps,
    )  # fmt: skip
    network = tuner.network
    sources = [JobSource(Scenario.load(name), split="train", seed=recipe.seed) for name in recipe.families]
    agent = DQNPaper(weights=Weights(arrays=network.arrays, gamma=recipe.learning.gamma), seed=recipe.seed)
    scores: list[float] = []
    arrays, learnt = deepcopy(network.arrays), False
    try:
        for episode in range(recipe.episodes):
            score = _episode(recipe, episode, agent, tuner, sources[episode % len(sources)])
            scores.append(score["rate"])
            arrays, learnt = deepcopy(network.arrays), network.updates > 0
            if watch is not None:
                watch(episode, score)
    except KeyboardInterrupt:
        if not learnt:
            raise
        raise Interrupted(_weights(recipe, arrays, scores, time.monotonic() - began)) from None
    if not network.updates:
        raise ConfigError(
            f"nothing was learnt: there were fewer transitions than `batch_size`={recipe.batch_size}; give more "
            "`episodes`, `jobs` or `steps`, or a smaller one"
        )
    return _weights(recipe, arrays, scores, time.monotonic() - began)


def _episode(
    recipe: Recipe, episode: int, agent: DQNPaper, tuner: Tuner, source: JobSource
) -> dict[str, float]:
    ids = np.arange(episode * recipe.jobs, (episode + 1) * recipe.jobs)
    jobs, normals = source.take(ids, recipe.steps + 1)
    best = plan(jobs, recipe.steps + 1)
    simulator = Simulator(jobs, record(jobs, normals))
    agent.start(len(jobs), jobs.stages)
    agent.epsilon = recipe.explored(episode)
    agent.tuned_by(tuner, np.random.default_rng([recipe.seed, episode]))
    measured = simulator.run()
    shares, kills = [], 0
    for step in range(recipe.steps):
        proposal = agent.propose(measured)
        simulator.allocate(proposal.slots, proposal.pool)
        measured = simulator.run()
        shares.append(float(np.nan_to_num(mean(best.share(measured.delivered, step + 1)))))
        kills += int(measured.killed.sum())
    return {"rate": float(np.mean(shares)), "killed": float(kills), "explored": agent.epsilon}


def _weights(recipe: Recipe, arrays: Any, scores: list[float], seconds: float) -> Weights:
    last = scores[-max(1, len(scores) // 10) :]
    return Weights(
        arrays=arrays,
        gamma=recipe.learning.gamma,
        recipe={
            "agent": "dqn-paper", "families": recipe.families, "episodes": len(scores), "jobs": recipe.jobs,
            "steps": recipe.steps, "seed": recipe.seed, "batch_size": recipe.batch_size,
            "gradient_steps": recipe.gradient_steps, "learning_rate": recipe.learning.learning_rate,
            "score": float(np.mean(last)), "seconds": round(seconds, 1),
        },
    )  # fmt: skip
