"""Q-learning against values known in closed form or from dynamic programming."""

from __future__ import annotations

import numpy as np
import pytest

from intune.agents.qtable import QTable, bins
from intune.pipelines.errors import ConfigError

ONE = np.array([True])


def all_allowed(count: int, actions: int) -> np.ndarray:
    return np.ones((count, actions), dtype=bool)


def test_a_line_of_states_is_solved_exactly() -> None:
    # 0 - 1 - 2 - goal: action 1 goes right, 0 stays. Reaching the goal gives 1 and ends. Q*(s, right) = 0.9^(2 - s).
    table = QTable(4, 2, discount=0.9, power=0.0)
    state, action = (grid.ravel() for grid in np.meshgrid(np.arange(3), np.arange(2), indexing="ij"))
    following = state + action
    ended = following == 3
    for _ in range(60):
        table.update(state, action, ended * 1.0, following, all_allowed(6, 2), ended)
    right = 0.9 ** (2.0 - np.arange(3))
    np.testing.assert_allclose(table.values[:3, 1], right, rtol=1e-12)
    np.testing.assert_allclose(table.values[:3, 0], 0.9 * right, rtol=1e-6)


def solve(chance: np.ndarray, reward: np.ndarray, discount: float) -> np.ndarray:
    """Q* by value iteration: chance is [S, A, S], reward [S, A]."""
    values = np.zeros(reward.shape)
    for _ in range(2000):
        values = reward + discount * chance @ values.max(axis=1)
    return values


def test_a_random_world_is_solved_as_dynamic_programming_does() -> None:
    rng = np.random.default_rng(0)
    chance = rng.dirichlet(np.full(5, 0.5), (5, 3))
    reward = rng.normal(0, 1, (5, 3))
    table = QTable(5, 3, discount=0.8, power=0.7)
    want = solve(chance, reward, 0.8)
    for _ in range(1500):
        state, action = rng.integers(0, 5, 128), rng.integers(0, 3, 128)
        following = (rng.random(128)[:, None] > chance[state, action].cumsum(axis=1)).sum(axis=1)
        noisy = reward[state, action] + rng.normal(0, 0.5, 128)
        table.update(state, action, noisy, following, all_allowed(128, 3), np.zeros(128, dtype=bool))
    np.testing.assert_allclose(table.values, want, atol=0.06)
    np.testing.assert_array_equal(table.values.argmax(axis=1), want.argmax(axis=1))


def test_one_update_by_hand() -> None:
    table = QTable(2, 2, discount=0.5, power=0.5, initial=0.0)
    table.values[1] = [4.0, 6.0]
    table.visits[0, 1] = 3
    error = table.update(
        np.array([0]), np.array([1]), np.array([1.0]), np.array([1]), all_allowed(1, 2), ~ONE
    )
    assert error[0] == 4.0
    assert table.values[0, 1] == 2.0  # half a step, the fourth
    assert table.visits[0, 1] == 4


def test_nothing_follows_a_terminal_state_but_something_follows_one_that_was_cut_off() -> None:
    for terminal, want in ((True, 1.0), (False, 6.0)):
        table = QTable(2, 1, discount=0.5, power=0.0)
        table.values[1] = 10.0
        table.update(
            np.array([0]),
            np.array([0]),
            np.array([1.0]),
            np.array([1]),
            all_allowed(1, 1),
            np.array([terminal]),
        )
        assert table.values[0, 0] == want


def test_actions_that_are_not_allowed_are_neither_taken_nor_hoped_for() -> None:
    table = QTable(1, 3, discount=0.5, power=0.0)
    table.values[0] = [1.0, 2.0, 100.0]
    allowed = np.array([[True, True, False]])
    zero = np.array([0])
    assert table.best(zero, allowed)[0] == 1
    chosen = table.choose(
        np.zeros(500, dtype=np.int64), np.repeat(allowed, 500, axis=0), 1.0, np.random.default_rng(0)
    )
    assert set(chosen.tolist()) == {0, 1}
    table.update(zero, zero, np.array([0.0]), zero, allowed, ~ONE)
    assert table.values[0, 0] == 1.0


def test_several_learners_in_the_same_state_count_as_their_mean() -> None:
    zeros = np.zeros(3, dtype=np.int64)
    slow = QTable(1, 1, discount=0.0, power=0.5)
    slow.visits[0, 0] = 3
    slow.update(zeros, zeros, np.array([1.0, 2.0, 6.0]), zeros, all_allowed(3, 1), np.zeros(3, dtype=bool))
    assert slow.values[0, 0] == pytest.approx(3.0 * (1 - 0.5**3))
    table = QTable(1, 1, discount=0.0, power=0.0)
    table.update(zeros, zeros, np.array([1.0, 2.0, 6.0]), zeros, all_allowed(3, 1), np.zeros(3, dtype=bool))
    assert table.values[0, 0] == 3.0
    assert table.visits[0, 0] == 3


def test_exploring_takes_any_action_as_often() -> None:
    table = QTable(1, 4, discount=0.0)
    state = np.zeros(8000, dtype=np.int64)
    chosen = table.choose(state, all_allowed(8000, 4), 0.4, np.random.default_rng(1))
    share = np.bincount(chosen, minlength=4) / 8000
    np.testing.assert_allclose(share, [0.7, 0.1, 0.1, 0.1], atol=0.02)


def test_bins_are_closed_below_and_take_what_is_not_a_number() -> None:
    np.testing.assert_array_equal(bins(np.array([-1.0, 0.5, 0.7, 2.0, np.nan]), (0.5, 1.0)), [0, 1, 1, 2, 0])


@pytest.mark.parametrize("values", [{"discount": 1.0}, {"discount": -0.1}, {"discount": 0.5, "power": 2.0}])
def test_arguments_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        QTable(1, 1, **values)
