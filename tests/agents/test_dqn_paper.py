"""The agent after the paper: increments, its reward, seeded training, tuning on line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intune.agents.dqn_paper import SHIPPED, DQNPaper, Tuner, branches, reward_of
from intune.agents.dqn_paper_network import BRANCHES, drawn, shapes, values_of
from intune.agents.dqn_paper_training import PAPER_RECIPE, pretrain_paper
from intune.agents.qlearner import QLearning
from intune.agents.qweights import Weights, load
from intune.envs.actions import MOVES
from intune.envs.measurement import Measurement
from intune.pipelines.errors import ConfigError

Measured = Callable[..., Measurement]
TINY = replace(
    PAPER_RECIPE, families=("paper",), episodes=3, jobs=4, steps=6, batch_size=16, gradient_steps=1
)


def liking(*moves: int) -> Weights:
    """A network that values one increment for each of the first stages most, whatever it sees."""
    arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes().items()}
    bias = arrays["third.bias"].reshape(BRANCHES, len(MOVES))
    for branch, move in enumerate(moves):
        bias[branch, MOVES.index(move)] = 1.0
    return Weights(arrays=arrays, gamma=0.9)


def test_every_stage_gets_the_increment_of_its_branch(measurement: Measured) -> None:
    agent = DQNPaper(weights=liking(5, -1, 0), learning=False)
    agent.start(1, 3)
    proposal = agent.propose(measurement(slots=[[4.0, 4.0, 4.0]]))
    np.testing.assert_array_equal(proposal.slots, [[9.0, 3.0, 4.0]])
    assert proposal.explain(0).startswith("increments +5/-1/+0 are worth most")
    least = agent.propose(measurement(slots=1.0, busy=1.0))
    np.testing.assert_array_equal(least.slots, [[6.0, 1.0, 1.0]])
    full = agent.propose(measurement(slots=[[4.0, 1.0, 1.0]], busy=1.0, slot_limit=6.0))
    np.testing.assert_array_equal(full.slots, [[4.0, 1.0, 1.0]])
    assert full.explain(0).startswith("keep: increments +5/-1/+0 are worth most")
    assert full.explain(0).endswith("but there are no slots for them")
    still = DQNPaper(weights=liking(0, 0, 0), learning=False)
    still.start(1, 3)
    assert still.propose(measurement()).explain(0).startswith("keep: ")


def test_stages_beyond_the_branches_share_the_last() -> None:
    assert branches(BRANCHES + 2).tolist() == [*range(BRANCHES), BRANCHES - 1, BRANCHES - 1]


def test_the_reward_is_the_rate_times_the_free_memory(measurement: Measured) -> None:
    measured = measurement(jobs=3, delivered=[1000.0, 3000.0, 0.0], memory_used=2e9, memory_limit=8e9,
                           killed=[False, False, True])  # fmt: skip
    np.testing.assert_allclose(reward_of(measured, np.full(3, 1000.0)), [0.75, 2.25, -1.0])


def test_values_of_a_problem_of_one_step_are_its_rewards(measurement: Measured) -> None:
    """Every transition ends (out of memory is the end): values become the rewards, here -1."""
    config = QLearning(learning_rate=1e-3, gamma=0.9, double=False)
    tuner = Tuner(drawn(np.random.default_rng(0)), config, seed=0, capacity=64, batch=32, steps=1)
    state = np.full((2, 6), 0.5, dtype=np.float32)
    killed = measurement(jobs=2, stages=3, killed=True)
    choice = np.array([[0, 1, 2], [3, 4, 0]])
    for _ in range(200):
        tuner.saw(state, choice, np.full(2, -1.0), state, killed, np.array([True, True]))
    found = values_of(tuner.network.arrays, state)
    for job in range(2):
        for stage in range(3):
            assert found[job, stage, choice[job, stage]] == pytest.approx(-1.0, abs=0.12)


def test_tuning_on_line_is_seeded_and_leaves_the_weights_alone(measurement: Measured) -> None:
    agent = DQNPaper(seed=3)
    before = {name: value.copy() for name, value in agent.weights.arrays.items()}
    runs = []
    for _ in range(2):
        agent.start(1, 3)
        slots, given = np.full((1, 3), 2.0), []
        for step in range(30):
            slots = agent.propose(measurement(slots=slots, busy=1.0, delivered=900.0 + 10 * step)).slots
            given.append(slots.copy())
        assert agent._tuner is not None
        assert any((agent._tuner.network.arrays[name] != value).any() for name, value in before.items())
        runs.append(np.stack(given))
    np.testing.assert_array_equal(*runs)
    for name, value in before.items():
        np.testing.assert_array_equal(agent.weights.arrays[name], value)


def test_increments_that_were_not_made_teach_nothing(measurement: Measured) -> None:
    """After an interval that says nothing what is in force is kept, whatever the network would do."""
    agent = DQNPaper()
    agent.start(1, 3)
    remembered = []
    for values in ({}, {}, {"delivered": 0.0}, {}, {}):
        agent.propose(measurement(**values))
        tuner: Any = agent._tuner
        remembered.append(tuner.remembered)
    # Rewards of the first interval's scale come from the second on; the third has none, the fourth no decision.
    assert np.diff(remembered).tolist() == [3, 0, 0, 3]


def test_seeded_training_is_equal_and_recorded(tmp_path: Path) -> None:
    seen: list[int] = []
    first, again = pretrain_paper(TINY, watch=lambda episode, _: seen.append(episode)), pretrain_paper(TINY)
    for name, value in first.arrays.items():
        np.testing.assert_array_equal(value, again.arrays[name])
    assert seen == [0, 1, 2]
    assert first.recipe["agent"] == "dqn-paper"
    assert 0 < first.recipe["score"] < 1.5
    first.save(tmp_path / "w.npz")
    assert DQNPaper(weights=tmp_path / "w.npz").weights.recipe["seed"] == TINY.seed


def test_the_shipped_weights_are_small_and_of_the_recipe() -> None:
    assert SHIPPED.stat().st_size < 300_000
    recipe = load(SHIPPED, shapes=shapes()).recipe
    assert recipe["episodes"] == PAPER_RECIPE.episodes
    assert recipe["jobs"] == PAPER_RECIPE.jobs


def test_weights_of_the_other_network_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"has no parameter first\.weight"):
        load(shapes=shapes())
