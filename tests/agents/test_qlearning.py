from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intune.agents.evaluate import Trial, evaluate
from intune.agents.outcomes import outcomes
from intune.agents.qlearning import ACTIONS, KILLED, STATES, QLearning, new_table, observe, shipped
from intune.agents.qlearning_training import save, train
from intune.agents.qtable import QTable
from intune.agents.static import Static
from intune.envs.measurement import Measurement
from intune.envs.scenario import Scenario
from intune.envs.source import JobSource
from intune.pipelines.errors import ConfigError

Measured = Callable[..., Measurement]


def fixed(action: str) -> QTable:
    """A table that likes one action most everywhere."""
    table = new_table()
    table.values[:, ACTIONS.index(action)] = 1.0
    return table


def proposed(action: str, measured: Measurement) -> np.ndarray:
    agent = QLearning(table=fixed(action), learn=False)
    agent.start(len(measured), measured.stages)
    return agent.propose(measured).slots[0]


@pytest.mark.parametrize(
    ("action", "slots"),
    [
        ("keep", [4, 8, 20]), ("+1 slowest", [5, 8, 20]), ("+5 slowest", [9, 8, 20]), ("-1 idlest", [4, 8, 19]),
        ("-5 idlest", [4, 8, 15]), ("idlest to slowest", [5, 8, 19]), ("x2 slowest", [8, 8, 20]),
    ],
)  # fmt: skip
def test_actions(action: str, slots: list[int], measurement: Measured) -> None:
    measured = measurement(slots=[[4.0, 8.0, 20.0]], busy=[[4.0, 6.0, 2.0]], cpu=1.0)
    np.testing.assert_array_equal(proposed(action, measured), slots)


def test_what_cannot_be_done_is_not_allowed(measurement: Measured) -> None:
    _, allowed, _, _ = observe(measurement(slots=1.0, busy=[[1.0, 0.2, 0.1]], cpu=0.1, slot_limit=4))
    assert dict(zip(ACTIONS, allowed[0].tolist(), strict=True)) == {
        "keep": True, "+1 slowest": True, "+5 slowest": False, "-1 idlest": False, "-5 idlest": False,
        "idlest to slowest": False, "x2 slowest": True,
    }  # fmt: skip


def test_states_lie_within_the_table_whatever_is_measured(measurement: Measured) -> None:
    rng = np.random.default_rng(0)
    shape = (500, 4)
    measured = measurement(
        stages=4, jobs=500, slots=rng.integers(1, 40, shape), busy=rng.uniform(0, 40, shape),
        cpu=rng.uniform(0, 40, shape), rate=rng.choice([0.0, 1.0, 1e6, np.nan], shape), waiting=rng.uniform(0, 1, 500),
        memory_used=rng.uniform(0, 1e10, 500), cpus_used=rng.choice([0.0, 5.0, np.nan, 40.0], 500),
    )  # fmt: skip
    state, allowed, _, _ = observe(measured)
    assert state.min() >= 0
    assert state.max() < STATES
    assert len(np.unique(state)) > 20
    assert allowed[:, 0].all()


def test_it_learns_from_what_an_action_brought(measurement: Measured) -> None:
    table = fixed("+1 slowest")
    agent = QLearning(table=table)
    agent.start(1, 3)
    first = measurement(delivered=1000.0, step=1e-4)
    agent.propose(first)
    assert table.visits.sum() == 0
    # 16 CPUs at 6 ms a row allow 2,666.7 rows/s.
    agent.propose(measurement(delivered=2000.0, step=1e-4))
    state = observe(first)[0][0]
    action = ACTIONS.index("+1 slowest")
    assert table.visits[state, action] == 1
    assert table.values[state, action] == pytest.approx(2000 / (16 / 0.006) + 0.9 * 1.0)


def test_being_killed_ends_the_episode_and_is_what_the_action_brought(measurement: Measured) -> None:
    table = fixed("+1 slowest")
    agent = QLearning(table=table)
    agent.start(1, 3)
    first = measurement()
    agent.propose(first)
    agent.propose(measurement(killed=True, delivered=0.0))
    agent.propose(measurement(killed=False, delivered=0.0))
    assert table.values[observe(first)[0][0], ACTIONS.index("+1 slowest")] == KILLED
    assert table.visits.sum() == 1


def test_seeded_training_is_the_same_and_learns(tmp_path: Path) -> None:
    def made(seed: int) -> QTable:
        return train(["trainer-bound"], rounds=3, jobs=32, steps=16, seed=seed)

    first, again, other = made(1), made(1), made(2)
    np.testing.assert_array_equal(first.values, again.values)
    assert (first.values != other.values).any()
    assert first.visits.sum() > 1000
    save(first, tmp_path / "new" / "table.npz")
    with np.load(tmp_path / "new" / "table.npz") as saved:
        np.testing.assert_allclose(saved["values"], first.values, rtol=1e-6)


def test_the_table_that_is_shipped_beats_one_slot_a_stage() -> None:
    source = JobSource(Scenario.load("paper"), split="test", seed=3)
    agents: dict[str, Any] = {"ours": QLearning, "static": Static}
    traces = evaluate(agents, source, Trial(jobs=96, steps=32))
    ours, static = (outcomes(traces[name]).whole.mean() for name in ("ours", "static"))
    assert ours > 3 * static


def test_jobs_side_by_side_learn_nothing_from_each_other(measurement: Measured) -> None:
    alone, many = QLearning(), QLearning()
    alone.start(1, 3)
    many.start(2, 3)
    for _ in range(3):
        alone.propose(measurement(busy=[[2.0, 1.0, 0.5]]))
        many.propose(measurement(jobs=2, busy=[2.0, 1.0, 0.5]))
    assert (alone.table.values != shipped().values).any()
    np.testing.assert_array_equal(many.table.values, shipped().values)


def test_learning_on_the_job_does_not_change_the_shipped_table() -> None:
    assert shipped() is not shipped()
    before = shipped().values.copy()
    shipped().values += 1.0
    np.testing.assert_array_equal(shipped().values, before)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="epsilon"):
        QLearning(epsilon=2.0)
    with pytest.raises(ConfigError, match="shape"):
        QLearning(table=QTable(2, 2, discount=0.5))
