"""Pre-training of the `dqn` in the simulator: many jobs side by side, drawn anew for every episode.

Domain randomisation over all families; the reward is the rate as a share of the best there is (the simulator
knows it; a live job does not), less a little for slots, and a penalty for running out of memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from intune.agents.dqn import DQN
from intune.agents.guard import fit
from intune.agents.memory import MemoryRecord
from intune.agents.network import QNetwork
from intune.agents.one_thread import one_thread
from intune.agents.oracle_plan import plan
from intune.agents.outcomes import mean
from intune.agents.qlearner import QLearner, QLearning
from intune.agents.qweights import Weights
from intune.agents.replay import Replay
from intune.envs.conditions import record
from intune.envs.jobs import Floats, Jobs
from intune.envs.measurement import Measurement
from intune.envs.scenario import Scenario
from intune.envs.simulator import Simulator
from intune.envs.source import JobSource
from intune.pipelines.errors import ConfigError

BATCHES = 4
"""Batches' worth of decisions that are remembered before learning begins."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to pre-train.

    Attributes:
        families: scenarios to draw jobs from; all by default.
        episodes: how many.
        jobs: side by side in an episode.
        steps: decisions in an episode; jobs are cut off then, not ended.
        seed: of everything.
        learning: of the Q-learner.
        n_step: rewards folded into one.
        batch_size: transitions per gradient step; gradient_steps: per decision of all jobs.
        exploration: share of random choices at first; final_exploration: after half of the episodes.
        slot_cost: taken off for slots per CPU; memory_cost: for the share of memory in use.
        killed_cost: for running out of memory.
        buffer: decisions of all jobs remembered.

    Raises:
        ConfigError: a value out of range.
    """

    families: tuple[str, ...] = field(default_factory=Scenario.names)
    episodes: int = 80
    jobs: int = 200
    steps: int = 16
    seed: int = 1
    learning: QLearning = field(default_factory=lambda: QLearning(learning_rate=5e-4))
    n_step: int = 2
    batch_size: int = 128
    gradient_steps: int = 8
    exploration: float = 0.5
    final_exploration: float = 0.05
    slot_cost: float = 0.01
    memory_cost: float = 0.01
    killed_cost: float = 3.0
    buffer: int = 400

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise ConfigError(f"`seed`={self.seed!r} must be a whole number from 0 to 2**64 - 1")
        for name in ("episodes", "jobs", "steps", "n_step", "batch_size", "gradient_steps", "buffer"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"`{name}`={value!r} must be a whole number of 1 or more")
        if not self.families:
            raise ConfigError("`families` is empty; name at least one scenario")

    def explored(self, episode: int) -> float:
        """Share of random choices in an episode."""
        part = min(1.0, episode / max(1.0, 0.5 * self.episodes))
        return self.exploration + part * (self.final_exploration - self.exploration)


Watch = Callable[[int, dict[str, float]], None]
"""Told of each episode: its number, and loss, share of the best rate, kills."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C after some of the episodes, which `weights` come of and their recipe counts."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights


def pretrain(recipe: Recipe, *, watch: Watch | None = None) -> Weights:
    """Train a Q-network from nothing.

    Args:
        recipe: how.
        watch: is told of the progress.

    Raises:
        ConfigError: so few decisions would be remembered that nothing would be learnt.
        Interrupted: by Ctrl-C, where something was learnt by then.
    """
    _check_learns(recipe)
    began = time.monotonic()
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng([recipe.seed, 7])
    network = QNetwork()
    learner = QLearner(network, recipe.learning)
    sources = [JobSource(Scenario.load(name), split="train", seed=recipe.seed) for name in recipe.families]
    replay = Replay(
        decisions=recipe.buffer, jobs=recipe.jobs, gamma=recipe.learning.gamma, n_step=recipe.n_step
    )
    scores: list[dict[str, float]] = []
    arrays, learnt = network.arrays(), False
    try:
        for episode in range(recipe.episodes):
            with one_thread():
                score = _episode(recipe, episode, learner, replay, sources, rng)
            scores.append(score)
            arrays, learnt = network.arrays(), learner.updates > 0
            if watch is not None:
                watch(episode, score)
    except KeyboardInterrupt:
        if not learnt:
            raise
        raise Interrupted(_weights(recipe, arrays, scores, time.monotonic() - began)) from None
    return _weights(recipe, arrays, scores, time.monotonic() - began)


def _weights(recipe: Recipe, arrays: Any, scores: list[dict[str, float]], seconds: float) -> Weights:
    last = scores[-max(1, len(scores) // 10) :]
    told = {key: value for key, value in asdict(recipe).items() if key != "learning"}
    return Weights(
        arrays=arrays,
        gamma=recipe.learning.gamma,
        recipe={
            **told,
            "episodes": len(scores),
            "learning": asdict(recipe.learning),
            "score": float(np.mean([score["rate"] for score in last])),
            "seconds": round(seconds, 1),
        },
    )


def _check_learns(recipe: Recipe) -> None:
    # Episodes are remembered as a whole, beside the one that runs.
    episodes = min(recipe.episodes, max(recipe.buffer // recipe.steps, 1) + 1)
    most, least = episodes * recipe.steps * recipe.jobs, BATCHES * recipe.batch_size
    if most < least or episodes * recipe.steps < 2:
        raise ConfigError(
            f"nothing would be learnt: {most:,} decisions are remembered at most, and learning begins with {least:,}; "
            "give more `jobs`, `episodes` or `steps`, or a smaller `batch_size`"
        )


def draw(sources: Sequence[JobSource], episode: int, jobs: int, steps: int) -> tuple[Jobs, np.ndarray]:
    """Jobs of all families in turn, as wide as the widest, and their random numbers ``[N, T, channels]``.

    Where there are more families than `jobs`, an episode goes on with the families that the one before left off at.
    """
    parts, numbers = [], []
    for number, source in enumerate(sources):
        # Of all jobs ever drawn, every so many is one of this family.
        ids = [-(-(place - number) // len(sources)) for place in (episode * jobs, (episode + 1) * jobs)]
        if ids[0] < ids[1]:
            drawn, normals = source.take(np.arange(*ids), steps)
            parts.append(drawn)
            numbers.append(normals)
    joined = Jobs.joined(parts)
    width = joined.stages
    wide = np.zeros((jobs, steps, 4 * width + 4), dtype=np.float32)
    at = 0
    for drawn, normals in zip(parts, numbers, strict=True):
        own = drawn.stages
        rows = slice(at, at + len(drawn))
        # Channels come stage by stage within a kind; those of absent stages stay 0.
        for kind in range(4):
            wide[rows, :, kind * width : kind * width + own] = normals[:, :, kind * own : (kind + 1) * own]
        wide[rows, :, 4 * width :] = normals[:, :, 4 * own :]
        at += len(drawn)
    return joined, wide


def _episode(
    recipe: Recipe,
    episode: int,
    learner: QLearner,
    replay: Replay,
    sources: Sequence[JobSource],
    rng: np.random.Generator,
) -> dict[str, float]:
    jobs, normals = draw(sources, episode, recipe.jobs, recipe.steps + 2)
    best = plan(jobs, recipe.steps + 2)
    simulator = Simulator(jobs, record(jobs, normals))
    agent = DQN()
    agent.start(len(jobs), jobs.stages)
    guard = MemoryRecord(len(jobs), jobs.stages)
    measured = simulator.run()
    rates, losses, kills = [], [], 0
    rows = np.arange(len(jobs))
    explored = recipe.explored(episode)
    # Some jobs explore more than others throughout.
    chance = explored * rng.random(len(jobs)) * 2.0
    for step in range(recipe.steps + 1):
        guard.see(measured)
        options, seen = agent.look(measured)
        if step == recipe.steps:
            replay.end(seen)
            break
        agent.weights = Weights(arrays=learner.network.arrays(), gamma=recipe.learning.gamma)  # type: ignore[operator]
        choice = agent.values(seen).argmax(axis=1)
        noise = np.where(seen.allowed, rng.random(seen.allowed.shape), -1.0).argmax(axis=1)
        choice = np.where(rng.random(len(jobs)) < chance, noise, choice)
        choice = np.where(measured.sound(), choice, 0)
        slots, pool, _ = fit(guard, measured, options.slots[rows, choice], options.pool[rows, choice])
        simulator.allocate(slots, pool)
        measured = simulator.run()
        share = best.share(measured.delivered, step + 1)
        used = np.where(pool > 0, pool, (slots * jobs.present).sum(axis=1))
        replay.add(seen, choice, _reward(recipe, share, used, measured))
        rates.append(float(np.nan_to_num(mean(share))))
        kills += int(measured.killed.sum())
        # One decision has no state after it yet.
        if len(replay) > 1 and len(replay) * recipe.jobs >= BATCHES * recipe.batch_size:
            batches = (replay.sample(recipe.batch_size, rng) for _ in range(recipe.gradient_steps))
            losses += [learner.learn(batch) for batch in batches]
    return {
        "rate": float(np.mean(rates[5:])) if len(rates) > 5 else float(np.mean(rates)),
        "loss": float(np.mean(losses)) if losses else 0.0,
        "killed": float(kills),
        "explored": explored,
    }


def _reward(recipe: Recipe, share: Floats, used: Floats, measured: Measurement) -> Floats:
    """``[N]`` of the decisions before an interval: the share of the best rate, less what it took.

    Args:
        share: ``[N]``; used: ``[N]`` slots.
    """
    return np.asarray(
        np.minimum(np.nan_to_num(share), 1.2)
        - recipe.slot_cost * used / measured.cpus
        - recipe.memory_cost * measured.memory_used / measured.memory_limit
        - recipe.killed_cost * measured.killed
    )


def describe(recipe: dict[str, Any]) -> str:
    """One line on how weights were made."""
    return (
        f"{recipe.get('episodes')} episodes of {recipe.get('jobs')} jobs, seed {recipe.get('seed')}, "
        f"score {recipe.get('score', float('nan')):.3f}, {recipe.get('seconds')} s"
    )
